"""The command ``qbench``."""

import os
import signal
import sys

from qbench.shipped import conf_dir

HELP = """\
qbench: post-training quantization of Qwen3, measured.

  qbench run [GROUP=CHOICE | GROUP.FIELD=VALUE ...]      quantize and evaluate one model
  qbench run -m GROUP=A,B,C ...                          every combination, one after another
  qbench run --help                                      all groups, choices and fields
  qbench plan experiment=table3 ...                      what a sweep would measure, what is there, what it would cost
  qbench fetch experiment=table3 ...                     its models and data, for machines without a network
  qbench report [RESULTS_DIR]                            tables and figures from the records, the paper's beside ours
  qbench report --table 4 --metric mmlu                  one of the paper's tables in the terminal
  qbench audit [FOLDER]                                  what is wrong in the paper's printed numbers, by themselves

First steps, with models that are inside the package (no network, no GPU):

  qbench run model=nano-s method=gptq grid.bits=3
  qbench run -m model=nano-s method=none,rtn,gptq,awq grid.bits=4,3,2 eval=study
  qbench report

The same with a real model from the Hub: model=qwen3-0.6b instead of nano-s.
Records land in ./results (machine.results_dir=...); what is there already is not measured again.
"""


def main() -> None:
    command, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command == "run":
        sys.exit(_run(rest))
    if command == "plan":
        from qbench import plan

        sys.exit(plan.main(rest))
    if command == "fetch":
        from qbench import fetch

        sys.exit(fetch.main(rest))
    if command == "report":
        sys.exit(_report(rest))
    if command == "audit":
        sys.exit(_audit(rest))
    if command in ("-h", "--help", "help"):
        print(HELP)
        sys.exit(0)
    known = "run, plan, fetch, report or audit"
    print(f"qbench: unknown command {command!r}; it is {known}, see qbench --help", file=sys.stderr)
    sys.exit(2)


def _run(args: list[str]) -> int:
    """One run or a sweep through Hydra; 1 if anything failed or was refused, else 0."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import hydra
    from hydra.core.hydra_config import HydraConfig

    outcomes = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg):
        import torch

        if not torch.cuda.is_available():  # kernels run in Triton's interpreter, which it asks for when it is imported
            os.environ.setdefault("TRITON_INTERPRET", "1")
        from qbench.run import run

        outcome = run(cfg)
        outcomes.append(outcome)
        sweeping = HydraConfig.get().mode.name == "MULTIRUN"
        if not sweeping or outcome.status not in ("present", "elsewhere", "left out"):
            print(line(outcome, HydraConfig.get().job.num + 1 if sweeping else None), flush=True)
        if outcome.is_bad and cfg.fail_fast:
            print("stopped at the first failure (fail_fast=true)", file=sys.stderr)
            sys.exit(1)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as an exception: cleanup runs
    try:
        sys.argv = ["qbench run", *(_prepared(args))]
    except ValueError as e:
        print(f"qbench run: {e}", file=sys.stderr)
        return 2
    job()
    if len(outcomes) > 1:
        print(summary(outcomes))
    return int(any(o.is_bad for o in outcomes))


def _prepared(args: list[str]) -> list[str]:
    """The arguments with their overrides as Hydra shall take them; Hydra's own flags and completion as they are."""
    from qbench.overrides import prepared

    if {"-sc", "--shell-completion"} & set(args):
        return args
    return [prepared([word])[0] if "=" in word and not word.startswith("-") else word for word in args]


def line(outcome, number=None) -> str:
    """One run in one line."""
    place = "" if number is None else f"#{number:<4}"
    words = [f"{key.rpartition('/')[2]} {m.value:.4g}" for key, m in _headline(outcome.metrics)]
    what = outcome.message or "  ".join(words)
    took = f"  ({outcome.seconds:.1f} s)" if outcome.status == "measured" else ""
    return f"{place}{outcome.cell:<28} {outcome.status:<9} {what}{took}"


def _headline(metrics):
    """Metrics with items behind them, which leaves out the subjects of a group, and those of kernels; at most six."""
    kernels = ("agreement/", "latency/")
    return [(key, m) for key, m in metrics.items() if m.samples is not None or key.startswith(kernels)][:6]


def summary(outcomes) -> str:
    """Counts by status, and a line for each cell that failed."""
    kinds = ("measured", "present", "elsewhere", "left out", "failed", "refused")
    counts = {s: sum(o.status == s for o in outcomes) for s in kinds}
    lines = [", ".join(f"{n} {status}" for status, n in counts.items() if n)]
    lines += [f"  {o.status:<8} {o.cell}: {o.message}" for o in outcomes if o.is_bad]
    return "\n".join(lines)


def _report(args: list[str]) -> int:
    import argparse

    from qbench import report

    parser = argparse.ArgumentParser(prog="qbench report", description="Tables and figures from the records.")
    default = os.environ.get("QBENCH_RESULTS", "results")
    parser.add_argument(
        "results_dir", nargs="?", default=default, help="folder with measurements/ (default: %(default)s)"
    )
    parser.add_argument("--table", type=int, help="print one of the paper's tables, 1 to 4, beside ours")
    parser.add_argument("--protocol", help="paper or released (with --table)")
    parser.add_argument("--metric", help="one column, e.g. mmlu or c4_ppl (with --table)")
    options = parser.parse_args(args)
    return report.main(options.results_dir, table=options.table, protocol=options.protocol, metric=options.metric)


def _audit(args: list[str]) -> int:
    import argparse

    from qbench.report.audit import write_audit

    parser = argparse.ArgumentParser(prog="qbench audit", description="Checks the printed numbers of the paper.")
    parser.add_argument("folder", nargs="?", default="results/audit", help="where the page goes (default: %(default)s)")
    for path in write_audit(parser.parse_args(args).folder):
        print(path)
    return 0


if __name__ == "__main__":
    main()
