"""Which tables of quality there are, and what each shows: rows, columns and a value per cell.

One table per family of models. A metric that no pattern names gets a column of its own behind the others.
"""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pandas as pd

from qbench.report.quality.columns import Column, column
from qbench.report.quality.rows import Row, Value, make_rows
from qbench.report.quality.variants import UNQUANTIZED, canon

ZERO_SHOT = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq")
NANO_SUBJECTS, MMLU_SUBJECTS = "nano_*/acc*", "mmlu_*/acc*"  # parts of nano_world and MMLU, which have a column
STUDY = "The study in small: five methods on the embedded models"
SUBJECTS = "Accuracy on the subjects of the nano tasks"
COLUMNS: tuple[str, ...] = ("nano/ppl", "wikitext2/ppl*", "c4/ppl*", "*/ppl", "*perplexity", "*/kl", "*/top1")
COLUMNS += ("nano_world/acc", *(f"{task}/acc*" for task in ZERO_SHOT), "mmlu/acc", "mmlu_hendrycks/acc", "*")
SUMMARY = ("nano/ppl", "wikitext2/ppl", "nano_world/acc", "mmlu/acc", "*/acc", "*/ppl", "*/kl")
FIGURES = ("nano/ppl", "wikitext2/ppl", "*/kl", "nano_world/acc", "mmlu/acc", "*/ppl", "*/acc")


@dataclass(frozen=True)
class TableSpec:
    """A table of the models of one ``family``.

    ``columns`` are globs over metrics, in order; "*" stands for all but subjects. ``is_matrix``: it is the main table
    of its family, which also has paired differences, a compact form and figures.
    """

    name: str
    caption: str
    family: str
    columns: tuple[str, ...] = COLUMNS
    is_matrix: bool = True

    def select(self, df: pd.DataFrame) -> pd.DataFrame:
        return df[df["model"].map(family) == self.family]

    def resolve(self, df: pd.DataFrame) -> list[Column]:
        """The columns that the patterns stand for among the metrics of ``df``, as their measures declare them."""
        said = df[["metric", "unit", "header", "higher_is_better", "chance"]]
        said = said.replace({"header": {"": None}}).groupby("metric").first()  # the first that says it
        subjects = {key for p in (NANO_SUBJECTS, MMLU_SUBJECTS) for key in fnmatch.filter(said.index, p)}
        keys = [k for p in self.columns for k in fnmatch.filter(said.index, p) if p != "*" or k not in subjects]
        told = {key: {k: v for k, v in said.loc[key].items() if not pd.isna(v)} for key in dict.fromkeys(keys)}
        return [column(key, **fields) for key, fields in told.items()]


def family(model: str) -> str:
    """The model's name up to its first "-": qwen3-0.6b and qwen3-8b-base are both of ``qwen3``."""
    name = re.sub(r"\W+", "_", model.split("-")[0].lower())
    return name[:64] or "unnamed"  # it is part of file names


def specs(models: Iterable[str]) -> list[TableSpec]:
    """The tables that records of ``models`` give rise to, the nano study's first."""
    found = {family(m) for m in models}
    nano = [matrix("nano"), TableSpec("nano_subjects", SUBJECTS, "nano", (NANO_SUBJECTS,), is_matrix=False)]
    return nano * ("nano" in found) + [matrix(f) for f in sorted(found - {"nano"})]


def matrix(family: str) -> TableSpec:
    """The main table of the models of ``family``."""
    caption = STUDY if family == "nano" else f"Post-training quantization of {family} models"
    return TableSpec(f"{family}_matrix", caption, family)


@dataclass
class Table:
    """What is shown: one value per row and column.

    ``records``: a row of the long frame per record of the family. ``notes`` are sentences on what is left out.
    ``delta``: values are differences to the unquantized model.
    ``chosen`` is set by ``one_evaluation``: {metric: (the evaluation that is shown, {others: their records})}.
    """

    spec: TableSpec
    columns: list[Column]
    rows: list[Row]
    records: pd.DataFrame
    notes: list[str]
    delta: bool = False
    chosen: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)

    def left_out(self, columns: list[Column]) -> list[str]:
        """Which evaluations of ``columns`` this view shows and leaves out."""
        texts = defaultdict(list)
        for c in columns:
            if c.key in self.chosen:
                how, others = self.chosen[c.key]
                lost = ", ".join(f"{n} record{'s' * (n > 1)} by {other}" for other, n in sorted(others.items()))
                texts[f"by {how}; left out: {lost}, which are in tables/{self.spec.name}.md"].append(c.header)
        return [f"{', '.join(headers)} {text}" for text, headers in texts.items()]

    def choose(self, patterns: tuple[str, ...], most: int) -> list[Column]:
        """At most ``most`` of the columns that have a value, in the order of ``patterns``."""
        columns = {c.key: c for c in self.columns if any(r.cells[c.key].state != "missing" for r in self.rows)}
        return [columns[k] for k in dict.fromkeys(k for p in patterns for k in fnmatch.filter(columns, p))][:most]


def make_table(spec: TableSpec, df: pd.DataFrame, delta: bool = False) -> Table:
    """The table of ``spec``, or with ``delta`` the paired differences to the unquantized models."""
    df, notes = spec.select(df), []
    columns = spec.resolve(df)
    if delta:
        paired = set(df[(df["status"] == "ok") & (df["delta_note"] == "") & (df["method"] != UNQUANTIZED)]["metric"])
        comparable = [c for c in columns if c.delta]
        columns = [c for c in comparable if c.key in paired]
        if unpaired := sorted({c.key for c in comparable} - paired):
            notes = [f"Left out, as nothing is paired: {', '.join(unpaired)}."]
    elif parts := set(fnmatch.filter(df["metric"], MMLU_SUBJECTS)) - {c.key for c in columns}:
        notes = [f"Left out: the accuracies of {len(parts)} subjects of MMLU, which are in the records."]
    rows = [r for r in make_rows(df, [c.key for c in columns], delta) if not (delta and r.method == UNQUANTIZED)]
    return Table(spec, columns, rows, df.drop_duplicates("id"), notes, delta)


def one_evaluation(t: Table) -> Table:
    """``t`` with one row per quantization, for views that have no room for several evaluations of a metric.

    Of those the one with the most rows is kept, among equals the one over the most items; ``chosen`` names the rest.
    """
    size = {r.how: (0, 0.0) for r in t.rows}
    for r in t.rows:
        records = [v.record for v in r.cells.values() if v.record]
        items = [x["n"] for x in records if x["how"] and x["status"] == "ok"]
        if items:
            size[r.how] = (size[r.how][0] + 1, max(size[r.how][1], *items))
    chosen = {}
    for c in t.columns:
        ids = defaultdict(set)
        for x in (r.cells[c.key].record for r in t.rows):
            if x.get("how"):
                ids[x["how"]].add(x["id"])
        if ids:
            how = max(ids, key=lambda how: (size[how], how))
            chosen[c.key] = (how, {other: len(found) for other, found in ids.items() if other != how})
    rows: dict[str, Row] = {}
    for r in t.rows:
        row = rows.setdefault(r.quant, replace(r, how="", cells=dict.fromkeys(r.cells, Value())))
        for key in r.cells:
            if key not in chosen or r.how == chosen[key][0]:
                row.cells[key] = r.cells[key]
    return replace(t, rows=list(rows.values()), chosen={k: v for k, v in chosen.items() if v[1]})


def winners(rows: list[Row], c: Column, text: Callable[[float], str]) -> set[int]:
    """The ``id`` of each cell of ``c`` that prints like the best finite one of its rivals; none where all print alike.

    Rivals have one model, equal weight and activation bits and group size, and the same calibration and evaluation.
    """
    rivals = defaultdict(list)
    for r in rows:
        if x := r.cells[c.key].record:
            same = (canon(x["science"]["model"]), canon(x["science"].get("calib")), x["how"])
            rivals[f"{r.bits:.3g}", r.act_bits, str(r.group_size), *same].append(r.cells[c.key])
    best = set()
    for cells in rivals.values() if c.higher_is_better is not None else ():
        values = [v.value for v in cells if v.finite]
        top = text((max if c.higher_is_better else min)(values)) if values else ""
        first = {id(v) for v in cells if v.finite and text(v.value) == top}
        best |= first if len(first) < len(cells) else set()
    return best
