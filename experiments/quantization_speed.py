"""How long quantization takes, phase by phase, against what the machine can do and against llm-compressor.

    python experiments/quantization_speed.py [--peer PYTHON] [--layers 4] [--sequences 64] [--repeats 2] [--out FILE]

A random model of Qwen3-0.6B's shape (bfloat16, 4 layers) is quantized on 64 x 512 random tokens: GPTQ W4 g128, then
AWQ and SmoothQuant, which share the unquantized model's statistics, each at a second bit-width. The machine's limit
is counted (qbench.costs): products in bfloat16 and in float32 at the rates that large matrix products reach here at
the same time. PYTHON is an interpreter with llm-compressor (pip install llmcompressor==0.14.*), which quantizes
the same model on the same tokens in turns with us; both are judged on tokens that neither has seen.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import torch
from random_weights import write_random
from safetensors.torch import load_file, save_file

from qbench import costs, provenance, stream
from qbench.calibration import BlockCalibration, first_block_inputs
from qbench.files import write_json
from qbench.grid import Grid
from qbench.methods import gptq as gptq_module
from qbench.methods.awq import AWQ
from qbench.methods.gptq import GPTQ
from qbench.methods.smoothquant import SmoothQuant
from qbench.models.checkpoint import Checkpoint
from qbench.models.quantized import QuantizedFolder
from qbench.shape import Shape
from qbench.statistics_cache import CachedStatistics
from qbench.stats import Gram
from qbench.stream import quantize

PEER = Path(__file__).parent / "peers" / "llm_compressor.py"
PHASES = [
    ("statistics", Gram, "update"),
    ("factorisation", Gram, "_factor"),
    ("columns", gptq_module, "round_columns"),
    ("scale search", AWQ, "_search_scale"),
    ("clip search", AWQ, "_search_clip"),
    ("layer errors", Gram, "relative_error"),
    ("disk", QuantizedFolder, "save"),
    ("disk", QuantizedFolder, "save_hidden"),
    ("disk", CachedStatistics, "write"),
    ("disk", CachedStatistics, "read"),
    ("forward", BlockCalibration, "observe"),
    ("forward", BlockCalibration, "advance"),
    ("forward", BlockCalibration, "outputs"),
    ("forward", stream, "first_block_inputs"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python with llm-compressor")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2, help="rounds of GPTQ and the peer in turns")
    parser.add_argument("--out", type=Path, default=Path("results/speed/quantization.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        found = measure(Path(room), options)
    write_json(options.out, found)
    print(json.dumps({k: v for k, v in found.items() if k != "provenance"}, indent=1))


def measure(room: Path, options) -> dict:
    started = time.perf_counter()
    model = write_random(room / "model", "qwen3-0.6b", options.layers)
    ids_BT = torch.randint(0, 151936, (options.sequences, 512), generator=torch.Generator().manual_seed(0))
    save_file({"ids_BT": ids_BT}, room / "tokens.safetensors")
    bench = Bench(room, Checkpoint("random", path=str(model)).open(), ids_BT)
    gptq, peer, rates = [], [], []
    for i in range(options.repeats):
        rates.append(bench.rates())
        gptq.append(bench.run(f"gptq-{i}", GPTQ(Grid(4, 128))))
        if options.peer:
            peer.append(bench.peer(options.peer))
    shared = CachedStatistics(room / "statistics")
    runs = {
        "gptq W4 g128": min(gptq, key=lambda r: r["seconds"]),
        "awq W4 g128": bench.run("awq-4", AWQ(Grid(4, 128)), shared),
        "awq W3 g128, further": bench.run("awq-3", AWQ(Grid(3, 128)), shared),
        "smoothquant W4A8, further": bench.run("sq-4", SmoothQuant(Grid(4, -1, True)), shared),
    }
    alone = CachedStatistics(room / "statistics-2")
    runs["smoothquant W8A8"] = bench.run("sq-8", SmoothQuant(), alone)
    runs["smoothquant W6A8, further"] = bench.run("sq-6", SmoothQuant(Grid(6, -1, True)), alone)
    rates.append(bench.rates())
    best = {name: max(r[name] for r in rates) for name in rates[0]}
    flops = bench.flops()
    first = runs["gptq W4 g128"]["seconds"]
    found = {
        "model": f"qwen3-0.6b shape, {options.layers} layers, bfloat16",
        "tokens": ids_BT.numel(),
        "gemm_gflops": best,
        "gptq_flops": flops,
        "gptq_floor_seconds": {name: n / 1e9 / best[dtype] for name, (dtype, n) in flops.items()},
        "runs": runs,
        "gptq_all_seconds": [r["seconds"] for r in gptq],
        "ratios": {
            "awq / gptq": runs["awq W4 g128"]["seconds"] / first,
            "smoothquant / gptq": runs["smoothquant W8A8"]["seconds"] / first,
            "awq further / first": runs["awq W3 g128, further"]["seconds"] / runs["awq W4 g128"]["seconds"],
            "smoothquant further / first": runs["smoothquant W6A8, further"]["seconds"]
            / runs["smoothquant W8A8"]["seconds"],
        },
        "error": {"ours": bench.error(bench.weights("gptq-0"))},
    }
    if peer:
        found["peer"] = peer[0] | {"seconds": min(p["seconds"] for p in peer), "all": [p["seconds"] for p in peer]}
        found["error"]["peer"] = bench.error(load_file(room / "peer.safetensors"))
        pairs = [p["seconds"] / g["seconds"] for p, g in zip(peer, gptq)]
        found["ratios"]["peer / ours"] = statistics.median(pairs)
        found["ratios"]["peer / ours, each round"] = pairs
    return found | {"provenance": provenance.collect("cpu", time.perf_counter() - started)}


class Bench:
    def __init__(self, room, ckpt, ids_BT):
        self.room, self.ckpt, self.ids_BT = room, ckpt, ids_BT

    def run(self, name, method, statistics=None) -> dict:
        with stopwatch() as phases:
            started = time.perf_counter()
            folder = QuantizedFolder(self.room / name)
            reports = quantize(self.ckpt, method, self.ids_BT, folder, statistics=statistics)
            seconds = time.perf_counter() - started
        phases["other"] = seconds - sum(phases.values())
        return {
            "seconds": round(seconds, 2),
            "phases": {k: round(v, 2) for k, v in phases.items()},
            "mean_layer_error": sum(r.error for r in reports) / len(reports),
        }

    def peer(self, python) -> dict:
        command = [python, PEER, self.room / "model", self.room / "tokens.safetensors", self.room / "peer.safetensors"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=self.room).stdout
        return json.loads(next(line for line in out.splitlines() if line.startswith("PEER")).removeprefix("PEER"))

    def rates(self) -> dict[str, float]:
        """GFLOP/s of a large product, the best of five."""
        found = {}
        for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
            a, b = torch.randn(4096, 3072).to(dtype), torch.randn(3072, 3072).to(dtype)
            seconds = []
            for _ in range(6):
                started = time.perf_counter()
                a @ b
                seconds.append(time.perf_counter() - started)
            found[name] = 2 * 4096 * 3072 * 3072 / min(seconds) / 1e9
        return found

    def flops(self) -> dict[str, tuple[str, int]]:
        """GPTQ's operations by phase, and the dtype they are done in."""
        shape, tokens = Shape.of(self.ckpt.config), self.ids_BT.numel()
        stages, L = shape.stages, shape.layers
        linears = [(n, K) for K, names, _ in stages for n in names.values()]
        forward = costs.forward_flops(shape, *self.ids_BT.shape)
        return {
            "forward": ("bfloat16", forward),
            "statistics": ("float32", L * sum(costs.gram_flops(K, tokens) for K, _, _ in stages)),
            "factorisation": ("float32", L * sum(costs.factor_flops(K) for K, _, _ in stages)),
            "columns": ("float32", L * sum(N * K * (K - 1) for N, K in linears)),
            "layer errors": ("float32", L * sum(costs.error_flops(N, K) for N, K in linears)),
        }

    def weights(self, name) -> dict[str, torch.Tensor]:
        folder, found = QuantizedFolder(self.room / name), {}
        for index in range(self.ckpt.config.num_hidden_layers):
            _, weights = folder.read(self.ckpt, index, "cpu")
            found |= {f"model.layers.{index}.{linear}": w.dequantize() for linear, w in weights.items()}
        return found

    def error(self, weights) -> dict[str, float]:
        """On 8 unseen sequences: ||(Q - W) X|| / ||W X|| over all linears with X as it occurs in the quantized model,
        and the change of the last block's output, relative to that output."""
        ids_BT = torch.randint(0, 151936, (8, 512), generator=torch.Generator().manual_seed(1))
        source, moved, total = self.ckpt.embedding("cpu"), 0.0, 0.0
        plain = ours = first_block_inputs(source, source.model.layers[0], ids_BT, "cpu", "cpu")
        for block, new in zip(self.ckpt.blocks("cpu"), self.ckpt.blocks("cpu")):
            for name in (name for stage in block.stages for name in stage.linears):
                new[name].weight.copy_(weights[f"model.layers.{block.index}.{name}"])
            calib = BlockCalibration(new, ours, "cpu")
            plain, ours = BlockCalibration(block, plain, "cpu").outputs(), calib.observe([Gram])
            for stage in block.stages:
                for name in stage.linears:
                    w, q = block[name].weight.float(), new[name].weight.float()
                    moved += float(calib.stats[stage][Gram].energy(q - w).sum())
                    total += float(calib.stats[stage][Gram].energy(w).sum())
        a, b = (torch.cat([item.x_BTD for item in side]).float() for side in (plain, ours))
        return {"layers": (moved / total) ** 0.5, "output": float((a - b).norm() / a.norm())}


@contextmanager
def stopwatch():
    """Seconds of each phase while inside; what runs inside another phase counts for itself alone."""
    spent, stack, kept = defaultdict(float), [], []

    def timed(phase, function):
        def wrapper(*args, **kwargs):
            started = time.perf_counter()
            stack.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                inner = stack.pop()
                spent[phase] += elapsed - inner
                if stack:
                    stack[-1] += elapsed

        return wrapper

    for phase, owner, name in PHASES:
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, timed(phase, getattr(owner, name)))
    try:
        yield spent
    finally:
        for owner, name, function in reversed(kept):
            setattr(owner, name, function)


if __name__ == "__main__":
    main()
