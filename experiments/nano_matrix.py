"""The nano study: every method x 1-8 bits x three model sizes, by conf/experiment/nano_matrix.yaml, then its report.

    python experiments/nano_matrix.py [--results DIR] [--workers N] [OVERRIDE ...]

The workers share the bit-widths out. What is measured is left out, so the study may be stopped at any time and started
again. Overrides are qbench run's own: model=nano-s grid.bits=4,2
"""

import argparse
import os
import subprocess
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="results")
    parser.add_argument("--workers", type=int, default=2)
    options, overrides = parser.parse_known_args()
    started = time.monotonic()
    sweep = [sys.executable, "-m", "qbench.cli", "run", "-m", "experiment=nano_matrix"]
    sweep += [f"machine.results_dir={options.results}", "machine=cpu", "machine.threads=1", *overrides]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    bits = next((o.partition("=")[2] for o in overrides if o.startswith("grid.bits=")), "8,7,6,5,4,3,2,1").split(",")
    shares = [",".join(bits[i :: options.workers]) for i in range(min(options.workers, len(bits)))]
    workers = [subprocess.Popen([*sweep, f"grid.bits={share}"], env=env) for share in shares]
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if any(code < 0 for code in codes):  # a worker was killed: what it was at is nobody's now
        codes = [subprocess.run(sweep, env=env).returncode]
    report = subprocess.run([sys.executable, "-m", "qbench.cli", "report", options.results]).returncode
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"{minutes} min {seconds} s")
    return max(*(abs(code) for code in codes), report)


if __name__ == "__main__":
    sys.exit(main())
