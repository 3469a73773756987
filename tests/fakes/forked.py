"""The command ``qbench`` in a forked process: what ``python -m qbench.cli`` does, without seconds of imports.

It cannot be used where a test changes variables that libraries read while they are imported.
"""

import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkProcess
from pathlib import Path

import qbench.run
from qbench import cli
from qbench.progress import Progress


class Command(ForkProcess):
    """The command, which has started."""

    def __init__(self, *args, cwd: Path, env: dict[str, str] | None = None):
        super().__init__()
        self.words, self.cwd, self.env = [str(arg) for arg in args], cwd, env or dict(os.environ)
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  closed when it has finished
        self.start()

    def run(self) -> None:
        for fd, file in enumerate(self.files, 1):
            os.dup2(file.fileno(), fd)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(fd, "wb", closefd=False), write_through=True) for fd in (1, 2)
        )
        os.environ.clear()
        os.environ.update(self.env)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        Progress.shown = math.inf  # no lines of progress, however slow the machine
        sys.argv = ["qbench", *self.words]
        with contextlib.chdir(self.cwd):
            cli.main()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def finished(self) -> subprocess.CompletedProcess:
        """Waits: its exit code, and what it wrote to stdout and stderr."""
        self.join()
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return subprocess.CompletedProcess(self.words, self.exitcode, *texts)


def qbench(*args, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """The finished command."""
    return Command(*args, cwd=cwd, env=env).finished()
