"""Which tables of quality there are, and what each shows: rows, columns and a value per cell.

One family of models has one main table, its differences to the unquantized models, and figures of the same rows. A
metric that no pattern names gets a column of its own behind the others.
"""

import fnmatch
import re
from dataclasses import dataclass

import pandas as pd

from qbench.printed.published import TASKS
from qbench.report.quality.columns import Column, column
from qbench.report.quality.rows import Row, make_rows
from qbench.report.quality.variants import UNQUANTIZED

NANO_SUBJECTS, MMLU_SUBJECTS = "nano_*/acc*", "mmlu_*/acc*"  # parts of nano_world and MMLU, which have a column
QUANTILES = "*/kl_p*"
DIVERGENCES = ("*/kl", QUANTILES, "*/top1")
SUMMARY = ("nano/ppl", "wikitext2/ppl", "nano_world/acc", "mmlu/acc", "*/acc", "*/ppl", "*/kl")
COLUMNS: tuple[str, ...] = ("nano/ppl", "wikitext2/ppl*", "c4/ppl*", "*/ppl", "*perplexity", "*/kl", "*/top1")
COLUMNS += ("nano_world/acc", *(f"{task}/acc*" for task in TASKS), "mmlu/acc", "mmlu_hendrycks/acc", "*")


@dataclass
class Table:
    """What is shown: one value per row and column.

    ``records``: a row of the long frame per record. ``notes`` are sentences on metrics that are left out, ``left_out``
    one on evaluations. ``delta``: values are differences to the unquantized model.
    """

    name: str
    caption: str
    columns: list[Column]
    rows: list[Row]
    records: pd.DataFrame
    notes: list[str]
    left_out: list[str]
    delta: bool

    def choose(self, patterns: tuple[str, ...], most: int) -> list[Column]:
        """At most ``most`` of the columns that have a value, in the order of ``patterns``."""
        columns = {c.key: c for c in self.columns if any(r.cells[c.key].state != "missing" for r in self.rows)}
        return [columns[k] for k in dict.fromkeys(k for p in patterns for k in fnmatch.filter(columns, p))][:most]


def family(model: str) -> str:
    """The model's name up to its first "-": qwen3-0.6b and qwen3-8b-base are both of ``qwen3``."""
    name = re.sub(r"\W+", "_", model.split("-")[0].lower())
    return name[:64] or "unnamed"  # it is part of file names


def families(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of a long frame by family of models, the nano study's first."""
    parts = {name: part for name, part in df.groupby(df["model"].map(family))}
    return {name: parts[name] for name in sorted(parts, key=lambda name: (name != "nano", name))}


def make_table(
    df: pd.DataFrame, *, delta: bool = False, subjects: bool = False, tokens: bool = False, compact: bool = False
) -> Table:
    """The main table of the models in ``df``, which are of one family (ValueError if not).

    With ``delta`` it shows the paired differences to the unquantized models, with ``subjects`` the parts of the nano
    tasks, with ``tokens`` how far the predictions of single tokens move. A ``compact`` table has one evaluation per
    metric and so one row per quantization.
    """
    if len(names := families(df)) != 1:
        models = ", ".join(sorted(set(df["model"]))) or "none"
        raise ValueError(f"a table or figure shows one family of models, these are {models}: filter the frame first")
    (name,) = names
    caption = f"Post-training quantization of {name} models"
    if name == "nano":
        caption = "The study in small: five methods on the embedded models"
    if subjects:
        caption = "Accuracy on the subjects of the nano tasks"
    if tokens:
        caption = f"KL divergence of single tokens from the unquantized {name} models: mean, median and tail"
    name += "_subjects" if subjects else "_divergence" if tokens else "_matrix"
    notes, left_out = [], []
    if compact:
        df, left_out = _one_evaluation(df, name)
    columns = _columns(df, (NANO_SUBJECTS,) if subjects else DIVERGENCES if tokens else COLUMNS)
    if delta:
        paired = set(df[(df["status"] == "ok") & (df["delta_note"] == "") & (df["method"] != UNQUANTIZED)]["metric"])
        if unpaired := sorted({c.key for c in columns if c.delta} - paired):
            notes = [f"Left out, as nothing is paired: {', '.join(unpaired)}."]
        columns = [c for c in columns if c.delta and c.key in paired]
    elif (parts := set(fnmatch.filter(df["metric"], MMLU_SUBJECTS)) - {c.key for c in columns}) and not tokens:
        notes = [f"Left out: the accuracies of {len(parts)} subjects of MMLU, which are in the records."]
    rows = [r for r in make_rows(df, [c.key for c in columns], delta) if not (delta and r.method == UNQUANTIZED)]
    return Table(name, caption, columns, rows, df.drop_duplicates("id"), notes, left_out, delta)


def _columns(df: pd.DataFrame, patterns: tuple[str, ...]) -> list[Column]:
    """What ``patterns`` stand for among the metrics of ``df``, as measures declare them; "*": all but details."""
    said = df[["metric", "unit", "header", "higher_is_better", "chance"]]
    said = said.replace({"header": {"": None}}).groupby("metric").first()  # the first that says it
    parts = {key for p in (NANO_SUBJECTS, MMLU_SUBJECTS, QUANTILES) for key in fnmatch.filter(said.index, p)}
    keys = [k for p in patterns for k in fnmatch.filter(said.index, p) if p != "*" or k not in parts]
    told = {key: {k: v for k, v in said.loc[key].items() if not pd.isna(v)} for key in dict.fromkeys(keys)}
    return [column(key, **fields) for key, fields in told.items()]


def _one_evaluation(df: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[str]]:
    """``df`` with one evaluation of each metric: the one with the most quantizations, among equals the most items."""
    ways = df.groupby(["metric", "evaluation"], as_index=False).agg(rows=("quant", "nunique"), items=("n", "max"))
    kept = ways.sort_values(["rows", "items", "evaluation"]).drop_duplicates("metric", keep="last")
    keep = pd.MultiIndex.from_frame(df[["metric", "evaluation"]]).isin(pd.MultiIndex.from_frame(kept.iloc[:, :2]))
    lost = df[~keep].groupby("evaluation")["id"].nunique()
    said = ", ".join(f"{n} record{'s' * (n > 1)} by {way}" for way, n in lost.items())
    return df[keep], [f"One evaluation per metric; left out: {said}, which are in tables/{name}.md"] if said else []
