"""Measures a study with several processes and makes its tables and figures.

    python experiments/study.py [--results runs] [--workers 2] [OVERRIDE ...]

By default the nano study (5 methods x 1-8 bits x 3 models, about ten minutes on two cores). Overrides are those of
qbench run: experiment=smollm2 measures a real model, experiment=agreement how far packed weights agree with
dequantized ones, and model=nano-s grid.bits=4,2 less of a study. The workers share the bit-widths. Existing records are
not measured again, so a study may be stopped and started at any time. If code, configuration and records are those of
the last complete run, the script only prints the summary.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from qbench.files import write_atomic
from qbench.overrides import swept_by
from qbench.report import Report
from qbench.store import Store

ROOT = Path(__file__).parent.parent
QBENCH = [sys.executable, "-m", "qbench.cli"]
BITS = "grid.bits="


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("runs"))
    parser.add_argument("--workers", type=int, default=2)
    options, overrides = parser.parse_known_args()
    if not any(o.startswith("experiment=") for o in overrides):
        overrides.insert(0, "experiment=nano_matrix")
    started, stamp = time.monotonic(), options.results / ".complete"
    if stamp.is_file() and state(options.results, overrides) == stamp.read_text():
        print(f"nothing has changed since this was complete\n\n{Report(options.results).summary()}")
        print(f"{options.results}/tables, {options.results}/figures")
        return 0
    code = sweep(options.results, options.workers, overrides)
    code = max(code, subprocess.run([*QBENCH, "report", options.results]).returncode)
    if code == 0:
        write_atomic(stamp, state(options.results, overrides))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"{minutes} min {seconds} s")
    return code


def sweep(results: Path, workers: int, overrides: list[str]) -> int:
    """Runs the sweep in ``workers`` processes; the worst of their exit codes."""
    command = [*QBENCH, "run", "-m", f"machine.results_dir={results}", "machine=cpu", "machine.threads=1"]
    command += [o for o in overrides if not o.startswith(BITS)]
    shares = bits_of(overrides, workers)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, share], env=env) for share in shares]
    try:
        codes = [worker.wait() for worker in running]
    except KeyboardInterrupt:
        for worker in running:
            worker.terminate()
        sys.exit("stopped; the same command continues")
    for i, code in enumerate(codes):
        if code < 0:  # killed; a second run continues where it stopped
            codes[i] = subprocess.run([*command, shares[i]], env=env).returncode
    return max(0 if code == 3 else abs(code) for code in codes)  # 3: cells were left to the other worker


def bits_of(overrides: list[str], workers: int) -> list[str]:
    """The override that each worker adds: its share of the bit-widths asked for, or of those of the experiment."""
    asked = {key: value for word in overrides for key, value in swept_by(word).items()}
    asked |= dict(o.split("=", 1) for o in overrides if o.startswith(BITS))
    bits = asked[BITS.removesuffix("=")].split(",")
    return [BITS + ",".join(bits[i::workers]) for i in range(min(workers, len(bits)))]


def state(results: Path, overrides: list[str]) -> str:
    """A hash of the code, the configuration, the models and the records that there are."""
    total = hashlib.sha256(repr(overrides).encode())
    for path in sorted(p for room in ("conf", "qbench") for p in (ROOT / room).rglob("*") if p.is_file()):
        if path.suffix in (".py", ".yaml", ".safetensors", ".json"):
            total.update(str(path.relative_to(ROOT)).encode() + hashlib.sha256(path.read_bytes()).digest())
    store = Store(results)
    total.update(repr([m.id for m in store.measurements()] + [f["id"] for f in store.failures()]).encode())
    for room in ("tables", "figures"):
        total.update(repr(sorted(p.name for p in (results / room).glob("*"))).encode())
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
