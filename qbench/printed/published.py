"""The numbers of the paper as printed: four tables, one csv each, read and checked.

A table is only worth comparing with if every number of it arrived. So the reader accepts no cell that it does
not understand: what is missing, doubled or misspelt is named by file, line and column. What is *wrong* in the
tables themselves is not its business: a printed NaN is NaN, a misprint stays (``qbench.printed.audit`` finds those).
"""

import csv
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from qbench.shipped import published_dir

TABLES = (1, 2, 3, 4)
TASKS = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq")
PERPLEXITIES = ("wikitext2_ppl", "c4_ppl")
METRICS = (*PERPLEXITIES, *TASKS, "zeroshot_mean", "mmlu")
METHODS = {"FP16": "none", "RTN": "rtn", "GPTQ": "gptq", "AWQ": "awq", "SmoothQuant": "smoothquant", "BiLLM": "billm"}
COLUMNS = ("model", "method", "w_bits", "a_bits", "group_size", *METRICS)
GROUPS = {"none": None, "per-channel": None}
_NUMBER = re.compile(r"\d+(\.\d+)?(E\d+)?")


@dataclass(frozen=True)
class Printed:
    """One printed row: perplexities as they are, accuracies in per cent; ``text`` is each cell as printed.

    ``model`` and ``method`` are our names; ``group_size`` None is one scale a row, or no quantization.
    """

    table: int
    model: str
    method: str
    w_bits: float
    a_bits: int
    group_size: int | None
    values: dict[str, float] = field(compare=False)  # a NaN is not equal to itself; the text is
    text: dict[str, str]

    @property
    def cell(self) -> tuple[str, str, float, int]:
        """What names the row within its table; BiLLM's bits, which differ by model, are no part of it."""
        return (self.model, self.method, 0.0 if self.method == "billm" else self.w_bits, self.a_bits)

    def step(self, metric: str) -> float:
        """One unit of the last printed digit of ``metric``: 0.1 for 52.3, 100 for 5.25E4."""
        digits, _, exponent = self.text[metric].partition("E")
        return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def load(folder: str | Path | None = None) -> list[Printed]:
    """All rows of table1.csv .. table4.csv in ``folder`` (default: those shipped), in the paper's order.

    ValueError with file, line and column for a cell, a column, a name or a row that is missing, malformed,
    unknown or there twice; FileNotFoundError for a table that is not there.
    """
    folder = Path(folder or published_dir())
    return [row for k in TABLES for row in _table(folder / f"table{k}.csv", k)]


def is_printed(table: int, model: str, method: str, w_bits: float, a_bits: int = 16) -> bool:
    """Whether ``table`` prints this cell; any ``w_bits`` for BiLLM, any bits for the unquantized model ``none``.

    ValueError for a table other than 1 to 4.
    """
    if table not in TABLES:
        raise ValueError(f"table {table!r}: the paper's result tables are 1, 2, 3 and 4; choose one of them")
    bits = {"none": (16.0, 16), "billm": (0.0, 16)}.get(method, (float(w_bits or 0), int(a_bits or 16)))
    return (model, method, *bits) in _cells()[table]


@cache
def _cells() -> dict[int, set[tuple]]:
    rows = load()
    return {k: {r.cell for r in rows if r.table == k} for k in TABLES}


def _table(path: Path, table: int) -> list[Printed]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a folder of printed numbers holds table1.csv to table4.csv")
    with path.open(newline="", encoding="utf-8") as f:
        lines = list(csv.reader(f))
    head, out, seen = lines[0] if lines else [], [], {}
    for name in COLUMNS:
        if name not in head:
            raise ValueError(f"{path}, line 1: no column {name!r} among {', '.join(head) or 'nothing'}; add it")
    if unknown := [name for name in head if name not in COLUMNS]:
        raise ValueError(f"{path}, line 1: unknown column {unknown[0]!r}; the columns are {', '.join(COLUMNS)}")
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(head):
            raise ValueError(f"{path}, line {number}: {len(cells)} cells under {len(head)} columns; fill in the rest")
        row = _row(path, number, table, dict(zip(head, cells)))
        if (*row.cell, row.group_size) in seen:
            first = seen[*row.cell, row.group_size]
            what = f"{row.model} {row.method} W{row.w_bits:g}A{row.a_bits}"
            raise ValueError(f"{path}, line {number}: {what} is on line {first} already; keep one of them")
        seen[*row.cell, row.group_size] = number
        out.append(row)
    return out


def _row(path: Path, number: int, table: int, cells: dict[str, str]) -> Printed:
    def refuse(column: str, wanted: str):
        raise ValueError(f"{path}, line {number}, column {column}: {cells[column]!r} is not {wanted}; correct it")

    if not re.fullmatch(r"[\w.-]+", cells["model"]):
        refuse("model", "the name of a model")
    if cells["method"] not in METHODS:
        refuse("method", f"one of {', '.join(METHODS)}")
    for column in ("w_bits", "a_bits"):
        if not _NUMBER.fullmatch(cells[column]):
            refuse(column, "a number of bits")
    if not cells["a_bits"].isdecimal():
        refuse("a_bits", "a whole number of bits")
    group = cells["group_size"]
    if group not in GROUPS and not group.isdecimal():
        refuse("group_size", "none, per-channel or a number of columns")
    for metric in METRICS:
        if cells[metric] != "NaN" and not _NUMBER.fullmatch(cells[metric]):
            refuse(metric, "a number as printed, such as 52.3, 5.25E4 or NaN")
        if metric not in PERPLEXITIES and cells[metric] != "NaN" and float(cells[metric]) > 100:
            refuse(metric, "an accuracy in per cent")
    return Printed(
        table=table,
        model=cells["model"].lower(),
        method=METHODS[cells["method"]],
        w_bits=float(cells["w_bits"]),
        a_bits=int(cells["a_bits"]),
        group_size=GROUPS[group] if group in GROUPS else int(group),
        values={metric: float(cells[metric]) for metric in METRICS},
        text={metric: cells[metric] for metric in METRICS},
    )
