"""Folders that travel with the code: beside the package in a clone, inside it when installed from a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def conf_dir() -> Path:
    """The configuration groups."""
    return _folder("conf", "conf")


def published_dir() -> Path:
    """The numbers of the paper as printed, one csv a table."""
    return _folder("printed/tables", "paper/published")


def _folder(inside: str, beside: str) -> Path:
    packed = PACKAGE / inside
    return packed if packed.is_dir() else PACKAGE.parent / beside
