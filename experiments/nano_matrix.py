"""The nano study: every method x 1-8 bits x three model sizes, by conf/experiment/nano_matrix.yaml, then its report.

    python experiments/nano_matrix.py [--results DIR] [--workers N] [OVERRIDE ...]

The workers share the bit-widths out. What is measured is left out, so the study may be stopped at any time and started
again; where neither code, configuration, models nor results have changed since it was complete, it only shows them.
Overrides are qbench run's own: model=nano-s grid.bits=4,2
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from qbench.files import write_atomic
from qbench.report import summary

ROOT = Path(__file__).parent.parent
BITS = "grid.bits="


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--workers", type=int, default=2)
    options, overrides = parser.parse_known_args()
    started, stamp = time.monotonic(), options.results / ".complete"
    if stamp.is_file() and stamp.read_text() == state(options.results, overrides):
        print(f"nothing has changed since the study was complete\n\n{summary(options.results)}")
        print(f"{options.results}/tables, {options.results}/figures")
        return 0
    code = sweep(options.results, options.workers, overrides)
    code = max(code, subprocess.run([sys.executable, "-m", "qbench.cli", "report", options.results]).returncode)
    if code == 0:
        write_atomic(stamp, state(options.results, overrides))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"{minutes} min {seconds} s")
    return code


def sweep(results: Path, workers: int, overrides: list[str]) -> int:
    """Runs the sweep in ``workers`` processes; the worst of their exit codes."""
    command = [
        sys.executable,
        "-m",
        "qbench.cli",
        "run",
        "-m",
        "experiment=nano_matrix",
        f"machine.results_dir={results}",
    ]
    command += ["machine=cpu", "machine.threads=1", *(o for o in overrides if not o.startswith(BITS))]
    bits = next((o.removeprefix(BITS) for o in overrides if o.startswith(BITS)), "8,7,6,5,4,3,2,1").split(",")
    shares = [BITS + ",".join(bits[i::workers]) for i in range(min(workers, len(bits)))]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, share], env=env) for share in shares]
    try:
        codes = [worker.wait() for worker in running]
    except KeyboardInterrupt:
        for worker in running:
            worker.terminate()
        sys.exit("stopped; the same command goes on from here")
    for i, code in enumerate(codes):
        if code < 0:  # killed: once more, it goes on where it was
            codes[i] = subprocess.run([*command, shares[i]], env=env).returncode
    return max(0 if code == 3 else abs(code) for code in codes)  # 3: a cell was left to the other worker


def state(results: Path, overrides: list[str]) -> str:
    """A hash of all that the study is made from, and of which results there are."""
    total = hashlib.sha256(repr(overrides).encode())
    for path in sorted(p for room in ("conf", "qbench") for p in (ROOT / room).rglob("*") if p.is_file()):
        if path.suffix in (".py", ".yaml", ".safetensors", ".json"):
            total.update(str(path.relative_to(ROOT)).encode() + hashlib.sha256(path.read_bytes()).digest())
    for room in ("measurements", "failures", "tables", "figures"):
        total.update(repr(sorted(p.name for p in (results / room).glob("*"))).encode())
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
