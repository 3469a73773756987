"""The command ``qbench`` in a forked process: what ``python -m qbench.cli`` does, without seconds of imports.

It cannot be used where a test changes variables that libraries read while they are imported, or sends signals.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import qbench.run
from qbench import cli


def qbench(*args, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """The finished command: its exit code, and what it wrote to stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os._exit(_child([str(arg) for arg in args], out.fileno(), err.fileno(), cwd, env or dict(os.environ)))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(args, code, *texts)


def _child(args: list[str], out: int, err: int, cwd: Path, env: dict[str, str]) -> int:
    for to, fd in ((1, out), (2, err)):
        os.dup2(fd, to)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(fd, "wb", closefd=False), write_through=True) for fd in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.argv = ["qbench", *args]
    code = 0
    try:
        with contextlib.chdir(cwd):
            cli.main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
