"""Let SkyPilot's own schema check qvg.yaml of docs/clusters.md; needs `pip install skypilot`, no cloud."""

from __future__ import annotations

from pathlib import Path

import yaml
from sky import Task
from sky.utils import common_utils, schemas

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"


def main() -> None:
    """Check the file, and what can be read of it without SkyPilot's list of GPUs, which it downloads."""
    text = PAGE.read_text(encoding="utf-8").partition('```yaml title="qvg.yaml"\n')[2].partition("```")[0]
    config = yaml.safe_load(text)
    common_utils.validate_schema(config, schemas.get_task_schema(), "qvg.yaml: ")
    del config["resources"]["accelerators"]
    print(Task.from_yaml_config(config))


if __name__ == "__main__":
    main()
