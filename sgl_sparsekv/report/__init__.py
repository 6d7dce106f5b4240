"""One HTML page from files of results: `report` for a folder, `write_page` for some files."""

from .page import report, write_page

__all__ = ["report", "write_page"]
