"""Progress of long work: a bar in a terminal, and one line every half minute in a log file."""

import sys
import time

from tqdm import tqdm

EVERY = 30  # seconds between two lines, of any bars


class Progress(tqdm):
    """As ``tqdm``; the lines look like "nano-s gptq W4A16: 12 of 28 blocks, 1:30"."""

    shown = time.monotonic()  # when a line was last printed, by any bar

    def __init__(self, *args, **kwargs):
        self.plain = not sys.stderr.isatty()
        super().__init__(*args, **kwargs, leave=False, delay=0 if self.plain else 2, miniters=1 if self.plain else None)

    def display(self, msg=None, pos=None) -> None:
        if not self.plain:
            super().display(msg, pos)
        elif msg != "" and time.monotonic() - Progress.shown >= EVERY:
            Progress.shown = time.monotonic()
            took = self.format_interval(self.format_dict["elapsed"])
            print(
                f"{self.desc.removesuffix(': ')}: {self.n} of {self.total} {self.unit}, {took}",
                file=sys.stderr,
                flush=True,
            )
