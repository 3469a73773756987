"""What an audit of printed tables finds, and the printed rows arranged so that rules can look up neighbours.

A printed number can be checked without its authors' machine, because it has neighbours: the 16-bit row of the
same model, the same cell of another model, the same model under another group size, the tasks beside it, and
the mean that was made from them. Each rule of the audit looks at one kind of neighbourhood.
"""

import math
from dataclasses import dataclass

from qbench.printed.published import METHODS, METRICS, PERPLEXITIES, TASKS, Printed

NAMES = {ours: printed for printed, ours in METHODS.items()}
HEADERS = {"wikitext2_ppl": "WikiText2 PPL", "c4_ppl": "C4 PPL", "piqa": "PIQA", "arc_easy": "ARC-e"}
HEADERS |= {"arc_challenge": "ARC-c", "hellaswag": "HellaSwag", "winogrande": "WinoGrande", "boolq": "BoolQ"}
HEADERS |= {"zeroshot_mean": "Zero-shot mean", "mmlu": "MMLU"}
PER_ROW_TABLE, GROUP_TABLE = {3: 1, 4: 2}, {1: 3, 2: 4}

Cell = tuple[int, str, str, float, int, str]
"""Table, model, method, weight bits, activation bits, metric."""


@dataclass(frozen=True)
class Kind:
    """A rule of the audit: its ``title``, what we do about it, and whether its cells are ``doubted``."""

    title: str
    action: str
    doubted: bool = True


KINDS = {
    "group_order": Kind("Finer groups lose", "Measure both group sizes; compare each with both printed cells."),
    "exchanged": Kind("Zero-shot rows exchanged between models", "Mark the cells and the means."),
    "repeated_row": Kind("One model's row under another's name", "Mark the row."),
    "misprint": Kind("One digit wrong", "Mark the cell; the corrected digit is our guess and is not used."),
    "impossible": Kind("One task knows, all others guess", "Mark the cell and the mean that contains it."),
    "above_16": Kind("Quantized beats 16 bit beyond chance", "Mark the cell."),
    "below_16_ppl": Kind("Perplexity below the 16-bit model's", "Mark the cell; ours says whether it is real."),
    "not_mean": Kind("Means that are not the mean of the six", "Recompute; compare ours with the recomputed."),
    "base_differs": Kind("16-bit rows differ between tables", "Compare with the table at hand.", False),
    "nan": Kind("NaN in print", "Nothing to compare with; ours may be finite.", False),
    "near_equal": Kind("Two models share their perplexities", "Mark the cells."),
    "larger_worse": Kind("The larger model is the worse one", "Not an error: outlier columns; reproduce it.", False),
    "text": Kind("The text and its tables", "Quote the table, not the text.", False),
}


@dataclass(frozen=True)
class Finding:
    """One result of one rule. ``evidence`` is numbers in words; ``inference``: likely, but not certain by itself."""

    kind: str
    cells: tuple[Cell, ...]
    evidence: str
    inference: bool = False

    def _nth(self, i: int) -> tuple:
        return tuple(dict.fromkeys(cell[i] for cell in self.cells))

    @property
    def tables(self) -> tuple[int, ...]:
        return self._nth(0)

    @property
    def models(self) -> tuple[str, ...]:
        return self._nth(1)

    @property
    def methods(self) -> tuple[str, ...]:
        return self._nth(2)

    @property
    def action(self) -> str:
        return KINDS[self.kind].action


class Book:
    """Printed rows, by what a rule asks for."""

    def __init__(self, rows: list[Printed]):
        self.rows = rows
        self.quantized = [r for r in rows if r.method != "none"]
        self.models = list(dict.fromkeys(r.model for r in sorted(rows, key=lambda r: size(r.model))))
        self._rows = {(r.table, *r.cell): r for r in rows}

    def get(self, table: int, model: str, method: str, w_bits: float = 16, a_bits: int = 16) -> Printed | None:
        return self._rows.get((table, model, method, 0.0 if method == "billm" else float(w_bits), a_bits))

    def base(self, row: Printed) -> Printed | None:
        """The 16-bit row of the same model in the same table."""
        return self.get(row.table, row.model, "none")

    def regrouped(self, row: Printed) -> Printed | None:
        """The same cell under the other group size, from the table that prints it."""
        other = GROUP_TABLE.get(row.table) or PER_ROW_TABLE.get(row.table)
        return self._rows.get((other, *row.cell)) if row.method != "none" else None

    def pairs(self, table: int | None = None):
        """Pairs of rows of different models with the same table, method and bits, the smaller model first."""
        groups = {}
        for r in sorted(self.quantized, key=lambda r: size(r.model)):
            if table in (None, r.table):
                groups.setdefault((r.table, *r.cell[1:]), []).append(r)
        for rows in groups.values():
            yield from ((a, b) for i, a in enumerate(rows) for b in rows[i + 1 :])


def cells(row: Printed, metrics=METRICS) -> tuple[Cell, ...]:
    return tuple((row.table, row.model, row.method, row.w_bits, row.a_bits, m) for m in metrics)


def size(model: str) -> float:
    """Billions of parameters by the model's name; ValueError where the name has none."""
    for part in model.split("-"):
        if part.endswith("b") and part[:-1].replace(".", "", 1).isdecimal():
            return float(part[:-1])
    raise ValueError(f"{model!r} has no size in its name, such as 0.6b; the audit orders models by it")


def short(model: str) -> str:
    """qwen3-8b-base as 8B-Base."""
    return model.removeprefix("qwen3-").replace("b", "B", 1).replace("-base", "-Base")


def bits(row: Printed) -> str:
    """GPTQ W4 per row, SmoothQuant W8A8, 16 bit."""
    if row.method == "none":
        return "16 bit"
    acts = f"A{row.a_bits}" if row.a_bits < 16 else ""
    group = "" if row.method in ("billm", "smoothquant") else " per row" if row.group_size is None else " g128"
    return f"{NAMES[row.method]} W{row.w_bits:g}{acts}{group}"


def where(row: Printed) -> str:
    return f"Table {row.table}, {short(row.model)}, {bits(row)}"


def mean(row: Printed) -> float:
    """The mean of the six tasks as printed."""
    return sum(row.values[t] for t in TASKS) / len(TASKS)


def worse(metric: str, a: float, b: float) -> bool | None:
    """Whether ``a`` is a worse value of ``metric`` than ``b``; None where one of them is NaN."""
    if math.isnan(a) or math.isnan(b):
        return None
    return a > b if metric in PERPLEXITIES else a < b
