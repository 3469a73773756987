"""Checkpoint formats of other engines: one file each, found by the name of its class."""

import pkgutil
from importlib import import_module

from qbench.formats.base import Format
from qbench.settings import near


def formats() -> dict[str, type[Format]]:
    """All formats of this folder by the name that users type."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {cls.name: cls for cls in Format.__subclasses__()}


def format_of(name: str) -> type[Format]:
    """The class of the format ``name``; ValueError with the names that are near it."""
    known = formats()
    if name not in known:
        raise ValueError(f"format={name} is unknown; {near(str(name), known)}")
    return known[name]
