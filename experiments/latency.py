"""Latency on a GPU: ceilings, single products and whole decoders, in one command and one record.

    python experiments/latency.py [--out FOLDER] [--minutes 9] [--resume FILE]
    python experiments/latency.py --tune [--minutes 9]

Writes results/latency/<gpu>.json. Its notes count the rows that there was no time for, and ``--resume FILE`` measures
them; on an H200 everything takes two calls of nine minutes. If a kernel leaves the GPU unusable, the record says so and
the command continues in a new process. The command needs torch, triton and transformers, no installation, no network.

``--tune`` searches the launch parameters of our kernels and writes them to qbench/kernels/configs, where the kernels
look for them. Tune before you measure: a resumed record keeps the rows it has.
"""

import argparse
import faulthandler
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a working copy that is not installed

import torch

from experiments.gpu_timing.session import Session, gpu_bench
from experiments.gpu_timing.tuning import tune
from experiments.peers import torch_kernels
from qbench.latency.bench import Bench, DeviceLostError
from qbench.latency.record import LatencyRecord


def main(arguments: list[str] | None = None, bench: Bench | None = None) -> int:
    """``bench``: the machine, for tests; by default the first GPU."""
    options = parse(arguments)
    if bench is None:
        if not torch.cuda.is_available():
            print(
                f"latency: torch {torch.__version__} sees no CUDA device, and times are only measured on a GPU; "
                "the parts that need no GPU are tested by: pytest tests/latency",
                file=sys.stderr,
            )
            return 2
        faulthandler.dump_traceback_later(60 * options.minutes + 30, exit=True)  # a kernel that hangs ends here
        bench = gpu_bench(torch_kernels.contenders(), options.commit)
    session = None if options.tune else Session(bench, options.out, options.resume)
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # the end of the time is like Ctrl-C
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes)
    try:
        with bench.compilers:
            tune(bench) if options.tune else session.run()
    except KeyboardInterrupt:
        print("latency: stopped; the same command with --resume goes on", file=sys.stderr)
    except DeviceLostError as e:
        print(f"latency: {e}; continuing in a new process", file=sys.stderr)
        resume = [] if options.tune else ["--resume", str(session.path)]
        left = max(signal.getitimer(signal.ITIMER_REAL)[0] / 60, 0.01)
        restart(["--minutes", f"{left:.2f}", *resume])
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if session is not None:
        print(summary(session.record))
        print(
            f"written: {session.path}; `qbench report` makes tables of it, and "
            "`python -m experiments.gpu_timing.figures` figures"
        )
    return 0


def restart(more: Sequence[str]) -> None:
    """Replaces this process by the same command with ``more`` arguments, which prevail over earlier ones."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv, *more])


def summary(record: LatencyRecord) -> str:
    """Ceilings, the number of rows, why some have no time, and the notes."""
    lines = [f"{name} {c.value:.5g} ({c.p20:.5g} to {c.p80:.5g})" for name, c in record.ceilings.items()]
    lines.append(f"{len(record.kernels)} products, {len(record.models)} rows of decoders")
    untimed = [r for r in record.kernels if r.us is None] + [r for r in record.models if r.ms is None]
    reasons = Counter((f"{r.kernel.name} {r.kernel.bits} bits", note) for r in untimed for note in r.notes)
    lines += [f"no time: {kernel}: {note} ({count} rows)" for (kernel, note), count in reasons.most_common(10)]
    return "\n".join(lines + [f"note: {note}" for note in record.notes])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/latency"), help="folder of the record")
    parser.add_argument("--minutes", type=float, default=9.0, help="the call ends after this time")
    parser.add_argument("--resume", type=Path, help="a record of this GPU to continue")
    parser.add_argument("--tune", action="store_true", help="search launch parameters instead of measuring")
    parser.add_argument("--commit", help="commit of the code, where there is no .git")
    options = parser.parse_args(arguments)
    if options.resume and not options.resume.is_file():
        parser.error(f"--resume {options.resume}: no such record; leave it out to start one")
    return options


if __name__ == "__main__":
    sys.exit(main())
