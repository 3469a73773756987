"""Measures what single changes do on the nano models, above all the ways of the study's released code, one by one.

    python experiments/nano_ablations.py [--results results/nano_ablations] [MODEL ...]

What conf/protocol/method/released_*.yaml sets is turned on field by field, then all together, and compared with the
default (the paper's text) on the same windows and questions; differences are paired. The last change takes perplexity
from logits in the model's dtype (in bfloat16; all else is in float32). Takes about ten minutes on one core. Existing
records are not measured again. Folds the records into ablations.jsonl, and writes quirks/quirks.md, .csv and .tex
beside their folder.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from qbench.files import packaged, write_atomic
from qbench.record import Metric
from qbench.records.folding import fold
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import to_csv, to_latex, to_markdown
from qbench.run import run
from qbench.significance import LEVEL, compare, holm
from qbench.store import Store

STUDY = ["eval=study"]
BF16 = ["model.dtype=bfloat16", "eval=ppl"]
LINES = ["calib.draw=lines", "calib.length=256", "calib.seed=42"]
BILLM = ["method.salience=cholesky", "method.split_on=salience", "method.count=last_block"]
AWQ = {
    "loss=module": ["method.loss=module"],
    "arithmetic=bfloat16": ["method.arithmetic=bfloat16"],
    "draw=lines": LINES,
}
CHANGES = [  # method, bits, what all share, {change: overrides}
    ("rtn", (4, 3), STUDY, {"whole_rows": ["method.whole_rows=true"]}),
    ("gptq", (4, 3, 2), STUDY, {"act_order": ["method.act_order=true"]}),
    (
        "awq",
        (4, 3, 2),
        STUDY,
        AWQ | {"all of them": [o for overrides in AWQ.values() for o in overrides]},
    ),
    ("smoothquant", (8, 4), STUDY, {"alpha=null": ["method.alpha=null"]}),
    ("billm", (1,), STUDY, {o.removeprefix("method."): [o] for o in BILLM} | {"all of them": BILLM}),
    ("none", (16,), BF16, {"logits=model": ["eval.logits=model"]}),
    ("gptq", (4,), BF16, {"logits=model": ["eval.logits=model"]}),
]


@dataclass
class Line:
    """One change on one model: the default's metrics and the differences that the change makes."""

    method: str
    bits: int
    change: str
    model: str
    cells: dict[str, tuple[float, float, float, float]]  # metric: value by default, difference, standard error, p


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/nano_ablations"))
    parser.add_argument("models", nargs="*", default=["nano-s", "nano-m", "nano-l"])
    options = parser.parse_args()
    base, lines = [f"machine.results_dir={options.results}", "machine=cpu", "machine.threads=1"], []
    with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
        for model in options.models:
            measured([f"model={model}", "method=none", *base, *STUDY])
            for method, bits, common, changes in CHANGES:
                for b in bits:
                    cell = [f"model={model}", f"method={method}", *base, *common]
                    cell += [f"grid.bits={b}"] if method != "none" else []
                    before = measured(cell)
                    for change, overrides in changes.items():
                        found = differences(before, measured([*cell, *overrides]))
                        lines.append(Line(method, b, change, model, found))
    lines.sort(key=lambda x: [c[0] for c in CHANGES].index(x.method))
    folder, text = options.results.parent / "quirks", to_markdown(per_model(lines))
    write_atomic(folder / "quirks.md", text)
    write_atomic(folder / "quirks.csv", to_csv(per_model(lines)))
    write_atomic(folder / "quirks.tex", to_latex(per_change(lines)))
    fold(Store(options.results), "ablations")
    print(text)
    return 0


def measured(overrides: list[str]) -> dict[str, Metric]:
    """The metrics of one configuration, from its records where there are some."""
    cfg = compose("config", overrides)
    outcome = run(cfg)
    if outcome.is_bad:
        sys.exit(f"{' '.join(overrides)}: {outcome.message}")
    if outcome.status == "measured":
        print(f"{' '.join(overrides)}  {outcome.seconds:.1f} s", flush=True)
    return {key: metric for key, metric in outcome.metrics.items() if metric.samples}


def differences(before: dict[str, Metric], after: dict[str, Metric]) -> dict[str, tuple[float, float, float, float]]:
    """{"ppl" and "acc": (value before, change, its standard error, p)}: perplexity in per cent, accuracy in points.

    With d the mean difference of the windows' log-likelihoods, perplexity changes by exp(d) - 1, whose standard error
    is exp(d) times that of d (delta method).
    """
    found = {}
    for key in before:
        a, b = before[key], after[key]
        if key.endswith(("/ppl", "/acc")):
            d = np.asarray(b.samples) - np.asarray(a.samples)
            change, slope = (math.expm1(d.mean()), math.exp(d.mean())) if key.endswith("/ppl") else (d.mean(), 1.0)
            stderr = slope * d.std(ddof=1) / math.sqrt(len(d))
            found[key.rpartition("/")[2]] = (a.value, 100 * float(change), 100 * float(stderr), compare(b, a).p)
    return found


def per_model(lines: list[Line]) -> Sheet:
    """One row per change and model, with the default's values."""
    head = ["method", "bits", "change", "model", "PPL", "change in PPL, %", "accuracy, %", "change, points"]
    rows, numbers, corrected = [], [], iter(holm([found[3] for x in lines for found in x.cells.values()]))
    for x in lines:
        p = {metric: next(corrected) for metric in x.cells}
        ppl, acc = x.cells["ppl"], x.cells.get("acc")
        cells = [Cell(text) for text in (x.method, str(x.bits), x.change, x.model, f"{ppl[0]:.4g}")]
        cells += [_signed(ppl, p["ppl"]), Cell(f"{100 * acc[0]:.1f}" if acc else "–")]
        rows.append([*cells, _signed(acc, p["acc"]) if acc else Cell("–")])
        numbers += [[x.method, x.bits, x.change, x.model, name, *found, p[name]] for name, found in x.cells.items()]
    return Sheet(
        "quirks",
        "What single changes do on the nano models",
        head,
        "lrllrrrr",
        [("", rows)],
        csv_head=["method", "bits", "change", "model", "metric", "default", "difference", "stderr", "p", "p_holm"],
        csv_rows=numbers,
        lines=[
            "PPL and accuracy are the default's; each change is ± its paired standard error. Bold: p below 5 % by the "
            "paired t test (PPL) or McNemar's exact test (accuracy), with Holm's correction over this table. "
            "logits=model is in bfloat16, all else in float32."
        ],
    )


def per_change(lines: list[Line]) -> Sheet:
    """One row per change, with the change in perplexity of each model."""
    models = list(dict.fromkeys(x.model for x in lines))
    rows: dict[tuple, dict[str, Cell]] = {}
    for x, p in zip(lines, holm([x.cells["ppl"][3] for x in lines])):
        rows.setdefault((x.method, str(x.bits), x.change), {})[x.model] = _signed(x.cells["ppl"], p)
    return Sheet(
        "quirks",
        "What single ways of the released code change in perplexity, in per cent",
        ["Method", "#W", "Change", *models],
        "lrl" + "r" * len(models),
        [("", [[*map(Cell, name), *(cells.get(m, Cell("–")) for m in models)] for name, cells in rows.items()])],
        lines=[
            "± paired standard errors. Bold: p below 5 % in a paired t test, after Holm's correction of this table."
        ],
    )


def _signed(cell: tuple[float, float, float, float], p: float) -> Cell:
    _, value, error, _ = cell
    digits = 2 if abs(value) < 1000 else 0
    return Cell(f"{value:+.{digits}f} ± {error:.{digits}f}", bold=p <= LEVEL)


if __name__ == "__main__":
    sys.exit(main())
