"""The numbers of the paper as printed: four tables, one csv file each.

A printed NaN is NaN and a misprint stays; ``doubts.csv`` beside the tables lists the cells that can hardly be right, as
``python -m experiments.audit`` found them.
"""

import csv
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from qbench.files import packaged

TABLES = (1, 2, 3, 4)
TASKS = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq")
PERPLEXITIES = ("wikitext2_ppl", "c4_ppl")
METRICS = (*PERPLEXITIES, *TASKS, "zeroshot_mean", "mmlu")
HEADERS = {"wikitext2_ppl": "WikiText2 PPL", "c4_ppl": "C4 PPL", "piqa": "PIQA", "arc_easy": "ARC-e"}
HEADERS |= {"arc_challenge": "ARC-c", "hellaswag": "HellaSwag", "winogrande": "WinoGrande", "boolq": "BoolQ"}
HEADERS |= {"zeroshot_mean": "Zero-shot mean", "mmlu": "MMLU"}
METHODS = {"FP16": "none", "RTN": "rtn", "GPTQ": "gptq", "AWQ": "awq", "SmoothQuant": "smoothquant", "BiLLM": "billm"}
NAMES = {ours: printed for printed, ours in METHODS.items()}
DOUBTS = {  # the kinds of doubt about a printed cell, in the order in which their letters stand in a table
    "group_order": "Groups of 128 worse than one scale per row",
    "exchanged": "Zero-shot rows exchanged between models",
    "repeated_row": "A row repeats another model's",
    "misprint": "One digit looks wrong",
    "impossible": "One task knows, all others guess",
    "above_16": "Quantized better than 16 bit beyond chance",
    "below_16_ppl": "Perplexity below the 16-bit model's",
    "not_mean": "Mean is not that of the six tasks",
    "near_equal": "Two models with the same perplexities",
}


class PrintedCell(NamedTuple):
    """What names one printed number."""

    table: int
    model: str
    method: str
    w_bits: float
    a_bits: int
    metric: str


@dataclass(frozen=True)
class Printed:
    """One printed row: perplexities as they are, accuracies in per cent; ``text`` is each cell as printed.

    ``model`` and ``method`` are our names; ``group_size`` None is one scale per row, or no quantization.
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

    def cells(self, *metrics: str) -> tuple[PrintedCell, ...]:
        """The cells of ``metrics``, or all of the row."""
        who = (self.table, self.model, self.method, self.w_bits, self.a_bits)
        return tuple(PrintedCell(*who, metric) for metric in metrics or METRICS)

    def step(self, metric: str) -> float:
        """One unit of the last printed digit of ``metric``: 0.1 for 52.3, 100 for 5.25E4."""
        digits, _, exponent = self.text[metric].partition("E")
        return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))

    @property
    def task_mean(self) -> float:
        """The mean of the six printed tasks, which ``zeroshot_mean`` should be."""
        return sum(self.values[t] for t in TASKS) / len(TASKS)

    @property
    def size(self) -> str:
        """8B-Base for qwen3-8b-base."""
        return self.model.removeprefix("qwen3-").replace("b", "B", 1).replace("-base", "-Base")

    @property
    def grouping(self) -> str:
        return "per row" if self.group_size is None else f"g{self.group_size}"


@cache
def load() -> list[Printed]:
    """All rows of table1.csv .. table4.csv, in the paper's order."""
    return [_row(k, cells) for k in TABLES for cells in _read(f"table{k}.csv")]


@cache
def doubts() -> dict[PrintedCell, tuple[str, ...]]:
    """The kinds of doubt about each printed cell, in the order of ``DOUBTS``; cells without a doubt are not in it."""
    found: dict[PrintedCell, tuple[str, ...]] = {}
    for line in _read("doubts.csv"):
        who = int(line["table"]), line["model"], METHODS[line["method"]], float(line["w_bits"]), int(line["a_bits"])
        for metric in METRICS if line["metrics"] == "all" else line["metrics"].split():
            cell = PrintedCell(*who, metric)
            found[cell] = (*found.get(cell, ()), line["kind"])
    return found


def rows_of(table: int) -> list[Printed]:
    """The rows of one table; ValueError for a table other than 1 to 4."""
    if table not in TABLES:
        raise ValueError(f"table {table!r}: the paper's result tables are 1, 2, 3 and 4; choose one of them")
    return [row for row in load() if row.table == table]


def is_printed(table: int, model: str, method: str, w_bits: float, a_bits: int = 16) -> bool:
    """Whether ``table`` prints this cell; any ``w_bits`` for BiLLM, any bits for the unquantized model ``none``."""
    bits = {"none": (16.0, 16), "billm": (0.0, 16)}.get(method, (float(w_bits or 0), int(a_bits or 16)))
    return any(row.cell == (model, method, *bits) for row in rows_of(table))


def _read(name: str) -> list[dict[str, str]]:
    with (packaged("paper/published") / name).open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def _row(table: int, cells: dict[str, str]) -> Printed:
    return Printed(
        table=table,
        model=cells["model"].lower(),
        method=METHODS[cells["method"]],
        w_bits=float(cells["w_bits"]),
        a_bits=int(cells["a_bits"]),
        group_size=int(cells["group_size"]) if cells["group_size"].isdecimal() else None,
        values={metric: float(cells[metric]) for metric in METRICS},
        text={metric: cells[metric] for metric in METRICS},
    )
