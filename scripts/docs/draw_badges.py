"""Draw the README's badges as SVG files, from the package's own metadata.

python -m scripts.docs.draw_badges docs/images
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from qvg_cli import __version__

ROOT = Path(__file__).parents[2]
HEIGHT, CHARACTER, PADDING = 20, 6.6, 7


def main() -> None:
    """Write one file a badge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    label = "Programming Language :: Python :: "
    pythons = [entry.removeprefix(label) for entry in project["classifiers"] if entry.startswith(label)]
    badges = {
        "version": (__version__, "#0369a1"),
        "python": (f"{pythons[0]} to {pythons[-1]}", "#1d4ed8"),
        "licence": (project["license"], "#15803d"),
    }
    for name, (value, colour) in badges.items():
        (folder / f"badge-{name}.svg").write_text(badge(name, value, colour), encoding="utf-8")


def badge(name: str, value: str, colour: str) -> str:
    """A grey half with the name and a coloured one with the value."""
    left, right = (round(len(text) * CHARACTER + 2 * PADDING) for text in (name, value))
    middle = HEIGHT / 2 + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img" '
        f'aria-label="{name}: {value}"><title>{name}: {value}</title>'
        f'<rect width="{left + right}" height="{HEIGHT}" rx="4" fill="#374151"/>'
        f'<path d="M{left} 0h{right - 4}a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4h-{right - 4}z" fill="{colour}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2}" y="{middle}">{name}</text>'
        f'<text x="{left + right / 2}" y="{middle}">{value}</text></g></svg>\n'
    )


if __name__ == "__main__":
    main()
