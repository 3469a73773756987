"""JSON records that are no measurements (results/full_size, speed, quirks): their values, their files, their tables.

These records differ in shape and more will come, so this file assumes only that they are nested. Each value has the key
<folder>/<record>/<path>; signs that a key of LaTeX cannot hold, such as a space, become "-".
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from qbench.render.escape import tex
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import to_latex

FOLDERS = ("full_size", "speed", "quirks")
MOST = 40  # values of a record that its table shows


def values(results: Path) -> dict[str, str]:
    """Key to text of all records in ``FOLDERS``, and ``<folder>/any`` and ``records/any`` where there is one."""
    out: dict[str, str] = {}
    for folder in FOLDERS:
        for name, d in records(results / folder):
            out |= {f"{folder}/any": "yes", "records/any": "yes"}
            out |= {f"{folder}/{name}/{key}": tex(plain(value)) for key, value in json_values(d)}
    return {re.sub(r"[^\w/=.-]", "-", key): text for key, text in out.items()}


def records(folder: Path) -> list[tuple[str, dict]]:
    """(name, JSON) of each .json file, and of each line of a .jsonl, which holds its name; sorted by name."""
    found = [(path.stem, json.loads(path.read_text())) for path in folder.glob("*.json")]
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted([*found, *((d.pop("name"), d) for d in lines)], key=lambda pair: pair[0])


def json_values(x, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, value) of every number, text and truth value in nested JSON; a plain list gives first, last and length."""
    if isinstance(x, list) and not any(isinstance(value, dict | list) for value in x):
        x = {"first": x[0], "last": x[-1], "length": len(x)} if x else None
    if isinstance(x, dict | list):
        for key, value in x.items() if isinstance(x, dict) else enumerate(x):
            yield from json_values(value, f"{path}/{key}" if path else str(key))
    elif x is not None:
        yield path, x


def plain(x) -> str:
    """A number with four digits, or with thousands apart; everything else as it is."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return str(x)
    return f"{x:,}" if isinstance(x, int) else f"{x:,.0f}" if 1e3 <= abs(x) < 1e7 else f"{x:.4g}"


def inputs(folder: Path, reach: str) -> str:
    """LaTeX that shows the tables and figures of ``folder``, which it reaches as ``reach``; "" where there is none."""
    lines = [rf"\input{{{reach}/{p.name}}}" for p in sorted(folder.glob("*.tex"))]
    lines += [rf"\whole{{{reach}/{p.name}}}{{{tex(_title(p))}}}" for p in sorted(folder.glob("*.pdf"))]
    return "\n".join([*lines, ""]) if lines else ""


def tables(folder: Path) -> str:
    """A LaTeX table of names and values per JSON record of ``folder``; of its provenance only the machine and time."""
    out = []
    for name, d in records(folder):
        about = d.pop("provenance", {})
        found = list(json_values(d))
        caption = f"The record {_title(folder / name)}"
        if where := ", ".join(str(about[key]) for key in ("device", "time") if about.get(key)):
            caption += f" ({where})"
        caption += f". The first {MOST} of {len(found)} values." if len(found) > MOST else "."
        s = Sheet(f"{folder.name}_{name}", caption, ["Name", "Value"], "ll")
        s.tex_align = r"@{}p{0.55\linewidth}p{0.4\linewidth}@{}"
        s.blocks = [("", [[Cell(key.replace("_", " ")), Cell(plain(value))] for key, value in found[:MOST]])]
        out.append(to_latex(s))
    return "\n".join(out)


def _title(path: Path) -> str:
    return f"{path.parent.name.replace('_', ' ')}: {path.stem.replace('_', ' ')}"
