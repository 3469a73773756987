"""The two tables that only paper/ has, as LaTeX tabulars: the nano study with bits across, and its ablations."""

from experiments.paper.numbers import in_study
from qbench.record import Measurement
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import to_tabular
from qbench.report.quality.columns import column
from qbench.report.quality.frame import frame
from qbench.report.quality.table import make_table
from qbench.report.quality.text import bits_across
from qbench.report.quality.variants import UNQUANTIZED

METRICS = {"nano/ppl": "perplexity", "nano_world/acc": "questions answered, %"}


def compact(measurements: list[Measurement]) -> str:
    """The nano study: a block per metric, a row per model and method, bits across."""
    t = make_table(frame(m for m in measurements if in_study(m)))
    return to_tabular(bits_across(t, [c for c in t.columns if c.key in METRICS]))


def ablations(measurements: list[Measurement]) -> str:
    """What one changed field of a method does: a block per metric, a row per method, bits and field value."""
    rows = [r for r in make_table(frame(measurements)).rows if r.method != UNQUANTIZED]
    models = list(dict.fromkeys(r.model for r in rows))
    found: dict[tuple, dict[str, dict]] = {}
    for r in rows:
        found.setdefault((r.name, f"{r.bits:g}", r.variant), {})[r.model] = r.cells
    s = Sheet("ablations", "", ["Method", "#W", "Setting", *models], "lrl" + "r" * len(models))
    for metric, title in METRICS.items():
        cells = [
            [*key, *(column(metric).short(by_model[m][metric].value) if m in by_model else "–" for m in models)]
            for key, by_model in found.items()
        ]
        s.blocks.append((title, [[Cell(text) for text in row] for row in cells]))
    return to_tabular(s)
