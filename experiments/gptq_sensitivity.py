"""Measures how far GPTQ on a real model depends on act_order, damping, the text and amount of its calibration data, and
on which windows of that text are drawn.

    python experiments/gptq_sensitivity.py NAME [OVERRIDE ...]
    python experiments/gptq_sensitivity.py c4
    python experiments/gptq_sensitivity.py wikitext2 calib=text calib.path=FILE machine.data_dir=FOLDER

NAME is what the table calls the calibration text; without overrides it is calib=NAME. Measures SmolLM2-135M at 3 bits
in groups of 64 on the first five windows of WikiText-2. The records go into results/gptq_sensitivity/NAME.jsonl, and a
table of the records of all texts beside it. Without a NAME only the table is made. Existing records are not measured
again, so what was interrupted goes on. One core needs about an hour per text, and two more for
the 262,144 tokens, which come last.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from hydra import compose, initialize_config_dir

from qbench.files import packaged, write_atomic
from qbench.record import Measurement, measurement
from qbench.records.folding import fold
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import to_csv, to_latex, to_markdown
from qbench.run import run
from qbench.store import Store, lines

LENGTH = 512
COMMON = ["model=smollm2-135m", "method=gptq", "grid.bits=3", "grid.group_size=64", f"calib.length={LENGTH}"]
COMMON += ["eval=kl", "eval.source=wikitext2", "eval.limit=5", "eval.perplexity=true", "machine=cpu"]
ORDERS = (False, True)
CELLS = [  # act_order, damp, windows, seed
    *((order, 0.01, 32, seed) for seed, order in product(range(5), ORDERS)),
    *((order, damp, 32, 0) for damp, order in product((0.001, 0.1), ORDERS)),
    *((order, 0.01, 128, seed) for seed, order in product(range(2), ORDERS)),
    *((order, 0.01, 512, 0) for order in ORDERS),
]
METRICS = {"ppl": "wikitext2/ppl", "KL": "wikitext2/kl"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/gptq_sensitivity"))
    parser.add_argument("name", nargs="?")
    options, overrides = parser.parse_known_args()
    if options.name:
        common = [*COMMON, *(overrides or [f"calib={options.name}"]), f"machine.results_dir={options.results}"]
        ids = set(measure(common))
        fold(Store(options.results), options.name, lambda record: record["id"] in ids)
    files = sorted(options.results.glob("*.jsonl"))
    table = sheet([(path.stem, measurement(d, where)) for path in files for where, d in lines(path)])
    for ending, write in ((".md", to_markdown), (".csv", to_csv), (".tex", to_latex)):
        write_atomic(options.results / f"gptq_sensitivity{ending}", write(table))
    print(to_markdown(table))
    return 0


def measure(overrides: list[str]) -> Iterator[str]:
    """Measures all cells; the ids of their records, up to a cell that failed."""
    with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
        for order, damp, n, seed in CELLS:
            cell = [f"method.act_order={order}", f"method.damp={damp}", f"calib.n={n}", f"calib.seed={seed}"]
            outcome = run(compose("config", overrides + cell))
            print(*cell, outcome.message or f"{outcome.metrics[METRICS['ppl']].value:.4g}", flush=True)
            yield from outcome.records
            if outcome.is_bad:
                return


def sheet(records: list[tuple[str, Measurement]]) -> Sheet:
    """One row per setting: mean, standard deviation and range over the draws of its calibration windows."""
    found: dict[tuple, dict[int, Measurement]] = defaultdict(dict)
    for text, record in records:
        method, calib = record.science["method"], record.science["calib"]
        key = (text, calib["n"] * calib["length"], method["damp"], method["act_order"])
        found[key][calib["seed"]] = record
    head = ["calibration", "tokens", "damping", "act_order", "draws"]
    rows, numbers = [], []
    for key, by_seed in sorted(found.items()):
        text, tokens, damp, order = key
        cells = [text, f"{tokens:,}", str(damp), "yes" if order else "no", str(len(by_seed))]
        for label, metric in METRICS.items():
            values = [by_seed[seed].metrics[metric].value for seed in sorted(by_seed)]
            spread = f" ± {stdev(values):.3g}" if len(values) > 1 else ""
            cells += [f"{mean(values):.4g}{spread}", f"{min(values):.4g} to {max(values):.4g}" if spread else "–"]
            numbers += [[*key, seed, label, by_seed[seed].metrics[metric].value] for seed in sorted(by_seed)]
        rows.append([Cell(cell) for cell in cells])
    return Sheet(
        "gptq_sensitivity",
        "GPTQ at 3 bits on SmolLM2-135M: act_order, damping and calibration data",
        [*head, "PPL", "range of PPL", "KL", "range of KL"],
        "lrrlrrrrr",
        [("", rows)],
        csv_head=[*head[:4], "seed", "metric", "value"],
        csv_rows=numbers,
        lines=[
            "On 5 windows of WikiText-2. ± is the standard deviation over draws of the calibration windows, which "
            "differ in nothing but calib.seed; it does not contain the error of the evaluation, which all rows share."
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
