"""Measures how much the order of sums changes a number: one configuration with other threads and other forward passes.

    python experiments/numerical_spread.py [--out results/numerical_spread] [MODEL ...]

A record's identity does not name the machine, so what a machine changes must be small beside the standard error. The
number of threads is a setting. The number of tokens per forward pass is none (``qbench.shape.PASS_TOKENS``); varying it
stands for another device, which sums in another order. Takes about ten minutes on two cores. Writes spread.json and
spread.md; each run has a temporary results folder.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir

from qbench import provenance, shape
from qbench.files import packaged, write_atomic, write_json
from qbench.run import run

METHODS = ("rtn", "gptq")
THREADS = (1, 2, 3)  # chunks of three threads end inside a vector register, where SiLU gives another last bit
TOKENS = (256, 768, 2048)  # 1, 3 and 8 sequences
METRICS = {"nano/ppl": ("PPL", 1, 4), "nano_world/acc": ("accuracy, %", 100, 2)}  # name, factor, decimals


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/numerical_spread"))
    parser.add_argument("models", nargs="*", default=["nano-s", "nano-m", "nano-l"])
    options = parser.parse_args()
    ways = [("threads", n, shape.PASS_TOKENS) for n in THREADS] + [("tokens", 1, n) for n in TOKENS]
    runs = [
        {"model": model, "method": method, "varies": varies, "threads": threads, "tokens": tokens}
        | {"metrics": measured(model, method, threads, tokens)}
        for model in options.models
        for method in METHODS
        for varies, threads, tokens in ways
    ]
    write_json(options.out / "spread.json", {"runs": runs, "provenance": provenance.collect("cpu", 0)})
    write_atomic(options.out / "spread.md", markdown(runs))
    print(markdown(runs))
    return 0


def measured(model: str, method: str, threads: int, tokens: int) -> dict[str, list[float]]:
    """Value and standard error of each metric, measured without any cache."""
    kept, shape.PASS_TOKENS = shape.PASS_TOKENS, tokens
    try:
        with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            where = [f"machine.results_dir={folder}", f"machine.cache_dir={folder}/cache", "machine=cpu"]
            cell = [f"model={model}", f"method={method}", "grid.bits=4", f"machine.threads={threads}"]
            cell += ["eval=study", "eval.text.limit=1000"]
            outcome = run(compose("config", [*where, *cell]))
    finally:
        shape.PASS_TOKENS = kept
    if outcome.status != "measured":
        sys.exit(f"{model} {method}: {outcome.message}")
    print(f"{outcome.cell}, {threads} threads, passes of {tokens} tokens: {outcome.seconds:.0f} s", flush=True)
    return {key: [outcome.metrics[key].value, outcome.metrics[key].stderr] for key in METRICS}


def markdown(runs: list[dict]) -> str:
    """One row per model and method; a spread is the largest value less the smallest."""
    out = ["| model | method | metric | value | standard error | spread over threads | spread over passes |"]
    out.append("|---|---|---|---:|---:|---:|---:|")
    for model, method in dict.fromkeys((r["model"], r["method"]) for r in runs):
        mine = [r for r in runs if (r["model"], r["method"]) == (model, method)]
        for key, (name, factor, digits) in METRICS.items():
            value, stderr = (factor * x for x in mine[0]["metrics"][key])
            cells = [f"{value:.{digits}f}", f"{stderr:.{digits}f}"]
            for varies in ("threads", "tokens"):
                values = [factor * r["metrics"][key][0] for r in mine if r["varies"] == varies]
                spread = max(values) - min(values)
                small = 0 < spread < 0.5 * 10**-digits
                cells.append(f"{spread:.0e}" if small else f"{spread:.{digits}f}" if spread else "0")
            out.append(f"| {model} | {method} | {name} | {' | '.join(cells)} |")
    out += ["", f"At 4 bits. Threads: {', '.join(map(str, THREADS))}. Passes of "]
    out[-1] += f"{', '.join(map(str, TOKENS))} tokens, with 1 thread; records are made with {shape.PASS_TOKENS}."
    out += ["A spread is the largest value less the smallest, in the units of the value."]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
