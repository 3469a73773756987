"""A machine to measure latency on without a GPU: a clock that is told the time, products in plain torch."""

import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from experiments.gpu_timing import session
from experiments.peers import torch_kernels
from qbench.latency.bench import Bench
from qbench.latency.products import Contender, Product, normal
from qbench.latency.record import BF16, Kernel, LatencyRecord
from qbench.shape import Shape

TINY = Shape(64, 128, 2, heads=4, kv_heads=2, head_dim=16, vocab=256, tied=True)
STATE = ("driver", "sm_clock_mhz", "sm_clock_max_mhz", "memory_clock_mhz", "power_limit_w", "temperature_c")
GPU = ("multiprocessors", "l2_bytes", "memory_bytes", "torch", "triton", "cuda", "python", "commit")
PROVENANCE = dict.fromkeys(STATE + GPU) | {"gpu": "NVIDIA Test-1", "time": "2026-01-01T00:00:00Z"}


class FakeClock:
    """A replay takes ``us``, or what ``us`` makes of the number of timings before; time passes in replays only.

    At ``stop`` seconds the call is interrupted.
    """

    def __init__(self, us=1000.0, stop=math.inf):
        self.us, self.seconds, self.timed, self.dead, self.launched, self.stop = us, 0.0, 0, False, [], stop

    def graph(self, fn):
        def replay():
            self.launched.append(len(fn()))

        return replay

    def time(self, replay, runs):
        replay()
        us = self.us(self.timed) if callable(self.us) else self.us
        self.timed += 1
        samples = us if isinstance(us, list) else [us] * runs
        self.seconds += sum(samples) / 1e6
        if self.seconds > self.stop:
            raise KeyboardInterrupt
        return samples

    def synchronize(self):
        if self.dead:
            raise RuntimeError("an illegal memory access was encountered")

    def now(self):
        return self.seconds


class Plain(Product):
    """A kernel that is right."""

    def __init__(self, N, K, device, seed, count=None):
        super().__init__(N, K, device)
        self.weight_bytes = 2 * N * K
        self.w_NK, self.count = normal((N, K), device, seed), count if count is not None else []

    def multiply(self, x_MK):
        self.count.append(self)
        return x_MK @ self.w_NK.T


class Wrong(Plain):
    def multiply(self, x_MK):
        return super().multiply(x_MK) * 1.05


class Lazy(Plain):
    """Leaves its last output as it found it: right only where memory happens to hold the right number."""

    def multiply(self, x_MK):
        y = torch.empty(x_MK.shape[0], self.N, dtype=x_MK.dtype)
        y[:, :-1] = super().multiply(x_MK)[:, :-1]
        return y


def bench(contenders=None, clock=None, **changes) -> Bench:
    fields = {
        "device": "cpu",
        "clock": clock or FakeClock(),
        "l2_bytes": 20_000,
        "provenance": dict(PROVENANCE),
        "contenders": contenders or [Contender(BF16, torch_kernels.CublasBf16), OURS],
        "steps": (),
        "compilers": ThreadPoolExecutor(1),
        "models": {"qwen3-8b": TINY, "qwen3-0.6b": TINY},
        "tokens": (1, 3, 16),
        "copy_bytes": 2**14,
        "gemm": 16,
    }
    return Bench(**fields | changes)


def tiles(N, K, M, device):
    return {"block_m": M}


OURS = Contender(Kernel("wna16", 4, 128), Plain, config=tiles)


def made(folder, *arguments, resume=None, **changes):
    run = session.Session(bench(*arguments, **changes), folder, resume)
    with suppress(KeyboardInterrupt):
        run.run()
    return LatencyRecord.read(run.path)


def script():
    spec = importlib.util.spec_from_file_location(
        "latency_script", Path(__file__).parents[2] / "experiments" / "latency.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
