"""Take pictures of the built site at desktop and phone width, to look at.

    make docs-site && python -m scripts.docs.take_screenshots build/screenshots [PAGE ...]

Needs Chromium. The site is served on 127.0.0.1 while the pictures are taken.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SITE = Path(__file__).parents[2] / "build" / "site"
SIZES = {"desktop": (1400, 2000), "phone": (400, 2400)}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
]


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve the site and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="*", help="such as guides/walk.html; without, all of them")
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium on PATH")
    pages = arguments.pages or [
        path.relative_to(SITE).as_posix() for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"
    ]
    if not pages:
        sys.exit(f"no page in {SITE}; run: make docs-site")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(QuietHandler, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in pages:
            for name, (width, height) in SIZES.items():
                target = arguments.folder / f"{page.replace('/', '-').removesuffix('.html')}-{name}.png"
                command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
                command += [f"--screenshot={target}", f"http://127.0.0.1:{server.server_port}/{page}"]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=60)
        server.shutdown()


if __name__ == "__main__":
    main()
