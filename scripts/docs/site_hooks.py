"""What mkdocs adds to the pages in docs/: references that are read from the code when the site is built."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from scripts.docs.api_reference import api_page
from scripts.docs.errors_reference import errors_page
from scripts.docs.settings_reference import settings_page

PAGES = {
    "reference/settings.md": settings_page,
    "reference/errors.md": errors_page,
    "reference/python.md": api_page,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files."""
    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files
