"""Checkpoint formats of other engines: one file each, found by the name of its class."""

import pkgutil
from importlib import import_module

from qbench.formats.base import Format, Stored
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


def stored_as(told: dict, shapes: dict[str, tuple[int, int]]) -> Stored:
    """How a checkpoint holds linears of these shapes (N, K) by name; ``told``: the quantization_config of its
    config.json. ValueError where no format here reads it."""
    read = {name: cls for name, cls in formats().items() if "stored" in vars(cls)}
    if (method := str(told.get("quant_method"))) not in read:
        raise ValueError(f"quant_method {method} is not supported; supported: {', '.join(read)}")
    try:
        return read[method].stored(told, shapes)
    except (AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"its quantization_config is damaged ({type(e).__name__}: {e})") from e
