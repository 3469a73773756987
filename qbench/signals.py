"""How Ctrl-C and SIGTERM end a command: at once while libraries are imported, later by an exception."""

import os
import signal
import sys

ENDING = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []  # the signals that came


def end_at_once() -> None:
    """Until ``end_by_exception``. Nothing has been measured, and imported C code would turn an exception into another
    error."""
    for number in ENDING:
        signal.signal(number, _exit)


def end_by_exception() -> None:
    """From now on cleanup runs; in the workers of a launcher too. Handlers of others stay."""
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _exit):
            signal.signal(number, stop)


def stop(number: int, frame: object = None) -> None:
    """The handler that raises SystemExit; the second signal of a kind ends the process at once."""
    _asked.append(number)
    signal.signal(number, signal.SIG_DFL)
    end_if_asked()


def end_if_asked() -> None:
    """Raises SystemExit once more where a signal came and compiled code turned the first one into another error."""
    if _asked:
        sys.exit(128 + _asked[0])


def _exit(number: int, frame: object) -> None:
    print("qbench: stopped before any work; the same command starts again", file=sys.stderr, flush=True)
    os._exit(128 + number)
