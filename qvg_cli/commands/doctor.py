"""`qvg doctor`: what this machine has of what a video needs, in one screen or for a bug report."""

import json
from pathlib import Path

from qvg_cli.commands.options import DEBUG, option
from qvg_cli.console import show_data
from qvg_cli.errors import QvgError

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(
    out: Path = option("--out FOLDER", "Results folder to check.", default=Path("results")),
    json_: bool = option("--json", "Print JSON for a bug report."),
    debug: bool = DEBUG,
) -> None:
    """Check the environment (GPU, kernels, ffmpeg, disk, Hub).

    Exits with 1 if a problem prevents generating videos. Says whether a token was found, never the token.
    """
    from qvg_cli.redaction import redact
    from qvg_cli.report.doctor import examine, to_json
    from qvg_cli.report.tables import format_facts

    del debug
    findings = examine(out)
    if json_:
        show_data(json.dumps(to_json(findings), indent=1))
    else:
        rows = []
        for finding in findings:
            said = f"{_MARKS[finding.state]}: {finding.said}"
            is_told = finding.remedy and finding.state != "ok"
            rows.append((finding.name, f"{said} ({finding.remedy})" if is_told else said))
        show_data(redact(format_facts(rows)))
    problems = [finding.name for finding in findings if finding.state == "problem"]
    if problems:
        raise QvgError(f"problems found: {', '.join(problems)}", hint="see above")
