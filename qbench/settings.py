"""Settings are checked against the annotations of the dataclasses that take them.

A value of another type is refused, not converted. Values are those of YAML 1.2, where ``yes`` and ``off`` are text.
Limits of a number stand in its annotation, ``bits: Annotated[int, Range(1, 8)]``.
"""

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
PLAIN |= {types.NoneType: "null"}


@dataclass(frozen=True)
class Range:
    """Limits of a number, themselves allowed unless ``open``."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, x: float) -> bool:
        return self.low < x < self.high if self.open else self.low <= x <= self.high

    def __str__(self) -> str:
        words = "between {} and {}" if self.open else "from {} to {}" if self.high < math.inf else "of at least {}"
        return words.format(self.low, self.high)


Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1, open=True)]


def build(node, where: str, kind: type) -> Any:
    """The dataclass that ``node``, {field: value}, describes: ``_target_`` names its class, by default ``kind``.

    ``where`` is the node's name on the command line, "method" or "eval.text". ValueError names a field that is unknown,
    missing or of the wrong type.
    """
    if not isinstance(node, Mapping):
        names = [f"{where}.{f.name}" for f in fields(kind)] or [where]
        raise ValueError(f"{where} is a group of settings, not {node!r}; set single ones, as in {names[0]}={node}")
    cls = target(node, where, kind)
    known = {f.name: f for f in fields(cls)}
    for name in node:
        if name != "_target_" and name not in known:
            raise ValueError(f"{_join(where, name)} is unknown; {near(name, known)}")
    for name, field in known.items():
        if name not in node and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{_join(where, name)} is not set; add {_join(where, name)}=VALUE")
    hints = _hints(cls)
    return cls(**{name: checked(node[name], hints[name], _join(where, name)) for name in known if name in node})


def target(node: Mapping, where: str, kind: type = object) -> type:
    """The class that ``node`` names in ``_target_``, else ``kind``; ValueError where it does not derive from it."""
    name = node.get("_target_")
    if name is None and is_dataclass(kind):
        return kind
    module, _, last = str(name).rpartition(".")
    try:
        cls = getattr(import_module(module), last)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"{where}._target_={name}: there is no such class ({e})") from e
    if not (isinstance(cls, type) and issubclass(cls, kind) and is_dataclass(cls)):
        raise ValueError(f"{where}._target_={name} is not a dataclass derived from {kind.__name__}")
    return cls


def check(settings: object, where: str) -> None:
    """Checks every field of a dataclass, in its ``__post_init__``. Whole numbers become floats, and lists tuples, where
    the annotation says so."""
    for name, hint in _hints(type(settings)).items():  # type: ignore[arg-type]  # mypy takes no class for hashable
        object.__setattr__(settings, name, checked(getattr(settings, name), hint, _join(where, name)))


def checked(value, hint, where: str) -> Any:
    """``value`` in the type that the annotation ``hint`` names, or ValueError."""
    if isinstance(value, str) and value == "???":
        raise ValueError(f"{where} is not set; add {where}=VALUE")
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Annotated:
            number = float(value) if inner[0] is float and type(value) is int else value
            if type(number) is inner[0] and number in inner[1]:
                return number
        if isinstance(kind, type) and is_dataclass(kind):
            if isinstance(value, Mapping) and "." in where and "_target_" not in value:
                field, name = next(iter(value), ""), where.rpartition(".")[2]
                raise ValueError(f"{where} follows {name}; set {_join(name, field)} instead of {_join(where, field)}")
            return value if isinstance(value, kind) else build(value, where, kind)
        if kind is Path and isinstance(value, str | Path):
            return Path(value).expanduser()
        if kind is float and type(value) is int:
            return float(value)
        if origin is type(value) is list and {*map(type, value)} <= {*inner}:
            return value  # long lists of numbers, quickly
        if origin in (tuple, list) and isinstance(value, list | tuple | str):
            return origin(checked(v, inner[0], where) for v in ((value,) if isinstance(value, str) else value))
        if origin is dict and isinstance(value, Mapping):
            return {key: checked(v, inner[1], _join(where, key)) for key, v in value.items()}
        if type(value) is kind or (origin is Literal and (type(value), value) in [(type(x), x) for x in inner]):
            return value
    got = {None: "null", True: "true", False: "false"}[value] if type(value) in (bool, type(None)) else repr(value)
    raise ValueError(f"{where} must be {_described(kinds)}, got {got}")


def near(name: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the known ones that are close to it, or all."""
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(found)}?" if found else f"there is {', '.join(known) or 'nothing to set'}"


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def _join(where: str, name: str) -> str:
    return ".".join(str(part) for part in (where, name) if part != "")


def _described(kinds) -> str:
    words = []
    for kind in kinds:
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            words += map(str, inner)
        elif origin is Annotated:
            words.append(f"{PLAIN[inner[0]]} {inner[1]}")
        elif origin in (tuple, list):
            words.append(f"a list, each item {_described(inner[:1])}")
        elif origin is dict:
            words.append(f"{{name: value}}, each value {_described(inner[1:])}")
        else:
            words.append(str(PLAIN.get(kind) or getattr(kind, "__name__", kind)))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
