"""Timing by CUDA graphs: the median over replays of a graph that holds many launches of one kernel.

* Neither Python nor the driver is in the time. The GPU's own gap between two launches is, and a decoding step pays it
  too; ``ceilings`` measures that gap with an empty kernel.
* The launches go round a ring of independent operands (``products.Ring``), so every weight comes from memory.
* Events on the stream bracket each replay, and all replays are queued without waiting.
* Where the samples spread widely the timing has a note: another process or a throttled clock shows there first.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

SPREAD = 0.05  # (p80 - p20) / median above which a timing gets a note
MOST_LAUNCHES = 512  # in one graph


class Clock:
    """Events around replays of a CUDA graph on the current device. Tests have other clocks with these methods."""

    def graph(self, fn: Callable[[], Any]) -> Callable[[], None]:
        """``fn`` warmed up and captured; a call replays it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            fn()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = fn()

        def replay(_alive=(fn, result)):
            graph.replay()

        return replay

    def time(self, replay: Callable[[], None], runs: int) -> list[float]:
        """Microseconds of each of ``runs`` replays, after one that is not counted."""
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        replay()
        for start, end in pairs:
            start.record()
            replay()
            end.record()
        torch.cuda.synchronize()
        return [1000 * start.elapsed_time(end) for start, end in pairs]

    def synchronize(self) -> None:
        """Waits for the device; raises the error of what failed on it."""
        torch.cuda.synchronize()

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()


@dataclass(frozen=True)
class Timing:
    """Median, 20th and 80th percentile of ``runs`` samples in microseconds, and notes on how far to trust them."""

    us: float
    p20: float
    p80: float
    runs: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        p20, us, p80 = (torch.tensor(samples, dtype=torch.double).quantile(q).item() for q in (0.2, 0.5, 0.8))
        spread, notes = (p80 - p20) / us, ()
        if spread > SPREAD:
            notes = (f"unsteady: p20 to p80 is {100 * spread:.0f} % of the median; the GPU may be busy or throttled",)
        return cls(us, p20, p80, len(samples), notes)


def measure(
    launches: Sequence[Callable],
    clock: Clock,
    budget_us: float = 30_000,
    replay_us: float = 1_000,
    runs: tuple[int, int] = (10, 100),
) -> Timing:
    """Microseconds of one launch.

    ``launches`` is the ring: each does the same work on operands of its own. One graph repeats them until a replay
    takes about ``replay_us``, so that the few microseconds at its start do not count. The graph is replayed for about
    ``budget_us`` of device time, at least and at most ``runs`` times. The result of a launch is kept until the ring
    comes round to it, so outputs go round as well.
    """

    def chain(rounds: int):
        results = [None] * len(launches)
        for _ in range(rounds):
            for i, launch in enumerate(launches):
                results[i] = launch()
        return results

    replay = clock.graph(lambda: chain(1))
    once = median(clock.time(replay, 3))
    rounds = max(1, min(math.ceil(replay_us / once), MOST_LAUNCHES // len(launches)))
    if rounds > 1:
        replay = clock.graph(lambda: chain(rounds))
    count = max(runs[0], min(runs[1], int(budget_us / (once * rounds))))
    return Timing.of([us / (rounds * len(launches)) for us in clock.time(replay, count)])
