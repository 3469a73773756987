"""The printed rows arranged so that rules can look up neighbours.

A printed number can be checked without its authors' machine, because it has neighbours: the 16-bit row of the same
model, the same cell of another model, the same model with another group size, the tasks beside it, and the mean made
from them. Each rule of the audit looks at one kind of neighbourhood.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

from qbench.printed.published import NAMES, PERPLEXITIES, Printed, PrintedCell

OTHER_GROUPING = {1: 3, 2: 4, 3: 1, 4: 2}  # tables 1 and 2 have one scale per row, 3 and 4 groups of 128

Found = Iterator[tuple[tuple[PrintedCell, ...], str]]
"""What a rule yields: the cells that it is about, and the evidence, which puts numbers in words."""


class Book:
    """The printed rows with their neighbours."""

    def __init__(self, rows: list[Printed]):
        self.rows = rows
        self.quantized = [r for r in rows if r.method != "none"]
        self._rows = {(r.table, *r.cell): r for r in rows}

    def all_tables(self, model: str, method: str, w_bits: float) -> list[Printed]:
        """This cell in every table that prints it: one per group size."""
        cell = (model, method, 0.0 if method == "billm" else float(w_bits), 16)
        return [self._rows[table, *cell] for table in OTHER_GROUPING if (table, *cell) in self._rows]

    def base(self, row: Printed) -> Printed:
        """The 16-bit row of the same model in the same table."""
        return self._rows[row.table, row.model, "none", 16.0, 16]

    def regrouped(self, row: Printed) -> Printed | None:
        """The same cell in the table of the other group size, where it is printed."""
        return self._rows.get((OTHER_GROUPING[row.table], *row.cell))

    def same_setting(self, row: Printed) -> list[Printed]:
        """The rows of the other models with the same table, method and bits."""
        return [r for r in self.rows if (r.table, *r.cell[1:]) == (row.table, *row.cell[1:]) and r is not row]

    def pairs(self) -> Iterator[tuple[Printed, Printed]]:
        """Rows of two models with the same table, method and bits, the smaller model first."""
        groups = defaultdict(list)
        for row in sorted(self.quantized, key=lambda r: billions(r.model)):
            groups[row.table, *row.cell[1:]].append(row)
        for rows in groups.values():
            yield from combinations(rows, 2)


def billions(model: str) -> float:
    """Billions of parameters by the model's name; ValueError where the name has none."""
    for part in model.split("-"):
        if part.endswith("b") and part[:-1].replace(".", "", 1).isdecimal():
            return float(part[:-1])
    raise ValueError(f"{model!r} has no size in its name, such as 0.6b; the audit orders models by it")


def worse(metric: str, a: Printed, b: Printed) -> bool | None:
    """Whether ``a`` has a worse value of ``metric`` than ``b``; None where one of them is NaN."""
    x, y = a.values[metric], b.values[metric]
    if math.isnan(x) or math.isnan(y):
        return None
    return x > y if metric in PERPLEXITIES else x < y


def setting(row: Printed) -> str:
    """GPTQ W4 per row, SmoothQuant W8A8, 16 bit."""
    if row.method == "none":
        return "16 bit"
    acts = f"A{row.a_bits}" if row.a_bits < 16 else ""
    group = "" if row.method in ("billm", "smoothquant") else f" {row.grouping}"
    return f"{NAMES[row.method]} W{row.w_bits:g}{acts}{group}"


def place(row: Printed) -> str:
    return f"Table {row.table}, {row.size}, {setting(row)}"
