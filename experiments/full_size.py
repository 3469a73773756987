"""Runs qbench at full size without a GPU and without real weights: random checkpoints of real shapes, real text.

    python experiments/full_size.py --data DIR --tokenizer DIR [--out FILE] [--work DIR] [whole] [mmlu] [killed] [large]

whole   all of Qwen3-0.6B (28 layers, 151,936 tokens): GPTQ W4 g128 on 16 x 512 tokens of C4, perplexity on 8 windows
        of WikiText-2 and one MMLU subject: minutes and peak memory
mmlu    five questions of each of the 57 MMLU subjects, 5-shot, with that quantized model
killed  the same quantization, killed half way and started again: the same bits, no block quantized twice
large   a checkpoint of Qwen3-8B's shape with 5 blocks in shards: the memory at each block

Takes about 25 minutes on two cores. ``--data`` holds wikitext2/, mmlu/ and a C4 parquet as machine.data_dir does;
``--tokenizer`` is a folder with Qwen3's.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from random_weights import write_random
from safetensors import safe_open

from qbench import provenance
from qbench.files import write_atomic
from qbench.store import Store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["whole", "mmlu", "killed", "large"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/full_size/parts.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("cache/full_size"))
    options = parser.parse_args()
    road = Road(options.data.resolve(), options.tokenizer.resolve(), options.work.resolve())
    for part in options.parts:
        found = getattr(road, part)()
        record = {"name": part} | found | {"provenance": provenance.collect("cpu", found["seconds"])}
        others = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
        kept = [record, *(d for d in others if d["name"] != part)]
        lines = (json.dumps(d, separators=(",", ":")) + "\n" for d in sorted(kept, key=lambda d: d["name"]))
        write_atomic(options.out, "".join(lines))
        print(part, json.dumps(found, indent=1), flush=True)
    return 0


class Road:
    """Runs the command a user would run, and watches it."""

    def __init__(self, data: Path, tokenizer: Path, work: Path):
        self.data, self.tokenizer, self.work = data, tokenizer, work

    def whole(self) -> dict:
        model = self.model("qwen3-0.6b")
        seconds, _ = self.run("whole", model, ["calib.n=16", "eval=wikitext2", "eval.limit=8"])
        told = {"model": "qwen3-0.6b shape, 28 layers", "quantize_and_perplexity_seconds": round(seconds, 1)}
        again, _ = self.run("whole", model, ["calib.n=16", "eval=mmlu", "eval.tasks=[mmlu_marketing]"])
        for r in Store(self.work / "whole/results").measurements():
            told |= {k: {"value": m.value, "n": m.n} for k, m in r.metrics.items() if m.samples}
            told["peak_mib"] = max(told.get("peak_mib", 0), r.provenance["peak_cpu_mib"])
        told["mmlu_subject_seconds"] = round(again, 1)
        told["blocks"] = len(list((self.work / "whole/cache").glob("quantized/*/block-*.safetensors")))
        return told | {"seconds": seconds + again, "minutes": round((seconds + again) / 60, 2)}

    def mmlu(self) -> dict:
        overrides = ["calib.n=16", "eval=mmlu", "eval.limit=5"]
        seconds, _ = self.run("whole", self.model("qwen3-0.6b"), overrides)
        records = Store(self.work / "whole/results").measurements()
        (found,) = (r.metrics for r in records if "mmlu/acc" in r.metrics)
        told = {"subjects": sum(key.startswith("mmlu_") for key in found), "questions": found["mmlu/acc"].n}
        return told | {"accuracy": found["mmlu/acc"].value, "seconds": round(seconds, 1)}

    def killed(self) -> dict:
        model, started = self.model("qwen3-0.6b"), time.perf_counter()
        overrides = ["calib.n=16", "eval=wikitext2", "eval.limit=1"]
        self.run("killed", model, overrides, kill_after=12)
        (folder,) = (self.work / "killed/cache/quantized").iterdir()
        done = {p.name: p.stat().st_mtime_ns for p in folder.glob("block-*.safetensors")}
        self.run("killed", model, overrides)
        kept = sum((folder / name).stat().st_mtime_ns == stamp for name, stamp in done.items())
        (other,) = (self.work / "whole/cache/quantized").iterdir()
        files = sorted(p.name for p in folder.glob("block-*.safetensors"))
        same = sum(_equal(folder / name, other / name) for name in files)
        told = {"blocks_before_the_kill": len(done), "of_them_untouched": kept, "blocks": len(files)}
        return told | {"equal_to_the_uninterrupted_run": same, "seconds": round(time.perf_counter() - started, 1)}

    def large(self) -> dict:
        model = self.model("qwen3-8b", layers=5)
        seconds, trace = self.run("large", model, ["calib.n=16", "eval=wikitext2", "eval.limit=1"])
        return {"model": "qwen3-8b shape, 5 layers", "seconds": round(seconds, 1), "peak_mib_at_each_block": trace}

    def model(self, name: str, layers: int | None = None) -> Path:
        folder = self.work / f"{name}-{layers or 'all'}"
        if not (folder / "tokenizer_config.json").is_file():
            write_random(folder, name, layers)
            for file in self.tokenizer.iterdir():
                shutil.copy(file, folder)
        return folder

    def run(self, name, model, overrides, kill_after=None) -> tuple[float, list[int]]:
        """Seconds, and the peak memory in MiB up to each block that was written."""
        room = self.work / name
        if kill_after:
            shutil.rmtree(room, ignore_errors=True)
        calib = next((self.data / "c4").glob("*.parquet"))
        command = [sys.executable, "-m", "qbench.cli", "run", "model=local", f"model.path={model}", "method=gptq"]
        command += ["grid.bits=4", "calib=text", f"calib.path={calib}", "calib.length=512", *overrides]
        command += [f"machine.data_dir={self.data}", f"machine.results_dir={room}/results", "machine=cpu"]
        command += [f"machine.cache_dir={room}/cache", "machine.keep_weights=true"]
        started, seen, trace = time.perf_counter(), set(), []
        process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        while process.poll() is None:
            time.sleep(0.2)
            files = set((room / "cache").glob("quantized/*/block-*.safetensors"))
            trace += [_peak_mib(process.pid)] * len(files - seen)
            seen |= files
            if kill_after and len(files) >= kill_after:
                process.send_signal(signal.SIGKILL)
        if process.wait() and not kill_after:
            sys.exit(f"failed: {' '.join(command)}")
        return time.perf_counter() - started, trace


def _peak_mib(pid: int) -> int:
    """The most that a process has had in memory; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0) >> 10


def _equal(a: Path, b: Path) -> bool:
    with safe_open(a, framework="pt") as x, safe_open(b, framework="pt") as y:
        keys = list(x.keys())
        return keys == list(y.keys()) and all(torch.equal(x.get_tensor(k), y.get_tensor(k)) for k in keys)


if __name__ == "__main__":
    sys.exit(main())
