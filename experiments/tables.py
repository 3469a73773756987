"""Measures one table of the paper: plans, sweeps and writes it with our numbers.

    python experiments/tables.py 3 [protocol=released] [OVERRIDE ...]

Needs a GPU; qbench plan experiment=table3 says how long it takes. Overrides are those of qbench run, such as
model=qwen3-8b-base method=gptq machine.results_dir=DIR. If the plan says that something cannot fit, nothing is started.
The same command continues after an interruption, and several processes may run it on one results folder.
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
    if code := subprocess.run([*qbench, "plan", "--strict", f"experiment=table{table}", *overrides]).returncode:
        return code
    code = subprocess.run([*qbench, "run", "-m", f"experiment=table{table}", *overrides]).returncode
    return max(code, subprocess.run([*qbench, "report", chosen.get("machine.results_dir", "runs")]).returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
