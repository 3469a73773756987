"""A table of the paper by one command: plan, sweep, report.

    python experiments/tables.py 3 [protocol=released] [OVERRIDE ...]

Overrides are qbench run's own: model=qwen3-8b-base method=gptq machine.results_dir=DIR. Stops before anything is
started where the plan says that something cannot fit. Interrupted, the same command goes on; several at once on
one results folder share the cells.
"""

import subprocess
import sys

from qbench.printed.published import TABLES


def main(args: list[str]) -> int:
    if not args or args[0] not in map(str, TABLES):
        print(__doc__)
        return 2
    table, overrides = args[0], args[1:]
    qbench = [sys.executable, "-m", "qbench.cli"]
    chosen = dict(o.split("=", 1) for o in overrides if "=" in o)
    report = ["report", chosen.get("machine.results_dir", "runs"), "--table", table]
    report += ["--protocol", chosen.get("protocol", "paper")]
    if code := subprocess.run([*qbench, "plan", "--strict", f"experiment=table{table}", *overrides]).returncode:
        return code
    code = subprocess.run([*qbench, "run", "-m", f"experiment=table{table}", *overrides]).returncode
    return max(code, subprocess.run([*qbench, *report]).returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
