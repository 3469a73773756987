"""What single changes do, on the nano models: first of all the ways of the study's released code, one by one.

    python experiments/nano_ablations.py [--results results/nano_ablations] [MODEL ...]

What conf/protocol/method/released_*.yaml sets is turned on field by field, then together, and compared with the
default (the paper's text) on the same windows and questions; differences are paired. So is perplexity from logits in
the model's dtype (in bfloat16; the rest is in float32). What is measured is left out. Writes the records and their
tables, and beside their folder quirks/quirks.md, .csv and .tex.
"""

import argparse
import csv
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from qbench.files import write_atomic
from qbench.record import Metric
from qbench.report import build
from qbench.run import Run, run
from qbench.shipped import conf_dir
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
    """One change on one model: the default's metric and the difference the change makes, with its paired error."""

    method: str
    bits: int
    change: str
    model: str
    cells: dict[str, tuple[float, float, float]]  # metric: value by default, difference, standard error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/nano_ablations"))
    parser.add_argument("models", nargs="*", default=["nano-s", "nano-m", "nano-l"])
    options = parser.parse_args()
    base, lines = [f"machine.results_dir={options.results}", "machine=cpu", "machine.threads=1"], []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
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
    for name, text in (("quirks.md", markdown(lines)), ("quirks.csv", table(lines)), ("quirks.tex", latex(lines))):
        write_atomic(options.results.parent / "quirks" / name, text)
    build(options.results, figures=False, paper=False)
    print(markdown(lines))
    return 0


def measured(overrides: list[str]) -> dict[str, Metric]:
    """The metrics of one configuration, measured unless they are there."""
    cfg = compose("config", overrides)
    outcome = run(cfg)
    if outcome.is_bad:
        sys.exit(f"{' '.join(overrides)}: {outcome.message}")
    if outcome.status == "measured":
        print(f"{' '.join(overrides)}  {outcome.seconds:.1f} s", flush=True)
    store, records = Store(cfg.machine.results_dir), Run(cfg).ids.values()
    return {key: metric for id in records for key, metric in store.get(id).metrics.items() if metric.samples}


def differences(before: dict[str, Metric], after: dict[str, Metric]) -> dict[str, tuple[float, float, float]]:
    """{"ppl" and "acc": (value before, change, its paired standard error)}: perplexity in per cent, accuracy in points.

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
            found[key.rpartition("/")[2]] = (a.value, 100 * float(change), 100 * float(stderr))
    return found


def markdown(lines: list[Line]) -> str:
    out = ["| method | bits | change | model | PPL | change in PPL, % | accuracy, % | change, points |"]
    out.append("|---|---:|---|---|---:|---:|---:|---:|")
    for x in lines:
        ppl, acc = x.cells["ppl"], x.cells.get("acc")
        cells = [x.method, str(x.bits), x.change, x.model, f"{ppl[0]:.4g}", _signed(ppl)]
        cells += [f"{100 * acc[0]:.1f}", _signed(acc)] if acc else ["–", "–"]
        out.append(f"| {' | '.join(cells)} |")
    out += ["", "PPL and accuracy by default; then what the change makes of them, ± its paired standard error;"]
    out += ["bold: more than twice that error. `logits=model` is in bfloat16, all else in float32."]
    return "\n".join(out) + "\n"


def latex(lines: list[Line]) -> str:
    """The changes in perplexity, a column a model."""
    models = list(dict.fromkeys(x.model for x in lines))
    rows: dict[tuple, dict[str, tuple]] = {}
    for x in lines:
        rows.setdefault((x.method, x.bits, x.change), {})[x.model] = x.cells["ppl"]
    out = [r"\begin{table}[!htbp]\centering\footnotesize"]
    out += [
        r"\caption{What single ways of the released code change in perplexity, per cent, with paired standard errors "
    ]
    out += [r"(bold: beyond two of them).}\label{tab:quirks}"]
    out += [rf"\begin{{tabular}}{{lrl{'r' * len(models)}}}", r"\toprule"]
    out += [" & ".join(["Method", r"\#W", "Change", *models]) + r" \\", r"\midrule"]
    for (method, bits, change), cells in rows.items():
        name = r"\texttt{" + change.replace("_", r"\_") + "}"
        values = [_tex(cells[m]) if m in cells else "--" for m in models]
        out.append(" & ".join([method, str(bits), name, *values]) + r" \\")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _tex(cell) -> str:
    _, value, error = cell
    digits = 2 if abs(value) < 1000 else 0
    text = rf"{value:+.{digits}f} \pm {error:.{digits}f}"
    return rf"$\mathbf{{{text}}}$" if abs(value) > 2 * error else f"${text}$"


def _signed(cell) -> str:
    _, value, error = cell
    digits = 2 if abs(value) < 1000 else 0
    text = f"{value:+.{digits}f} ± {error:.{digits}f}"
    return f"**{text}**" if abs(value) > 2 * error else text


def table(lines: list[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "bits", "change", "model", "metric", "default", "difference", "stderr"])
    for x in lines:
        for metric, numbers in x.cells.items():
            writer.writerow([x.method, x.bits, x.change, x.model, metric, *(f"{n:.6g}" for n in numbers)])
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
