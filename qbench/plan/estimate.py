"""Seconds, memory and disk of one cell on one machine: phases in order, nothing overlapped."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from qbench import nano
from qbench.plan import footprint, work
from qbench.plan.machines import GIB, Machine
from qbench.plan.status import evaluations, expected
from qbench.settings import target
from qbench.shape import BYTES, QWEN3, Shape

READ, WRITE = 2e9, 1e9  # bytes a second from and to a disk: assumptions
SHORT = 203  # mean tokens of a C4 document of at most 512
PROCESS = 4 << 30  # bytes of Python, libraries, texts and rendered prompts in CPU memory: an assumption


@dataclass(frozen=True)
class Estimate:
    """Seconds by phase; peaks in bytes; ``disk``: what lies there while the cell runs; ``left``: and what stays for
    other cells; ``unknown``: not counted."""

    seconds: dict[str, float]
    gpu: int
    cpu: int
    disk: int
    left: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def shape_of(cell: dict) -> Shape | None:
    """The shape of a cell's model: Qwen3's by name, a folder's by its config.json; None where neither tells."""
    model = cell["model"]
    folder = _nano(model["nano"]) if model.get("nano") else model.get("path") and Path(model["path"]).expanduser()
    if folder:
        file = folder / "config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"model {model['name']}: there is no {file}; set model.path to a checkpoint's folder"
            )
        return Shape.of(json.loads(file.read_text()))
    for name in (model["name"], (model.get("repo") or "").rpartition("/")[2]):
        size = name.lower().removeprefix("qwen3-").removesuffix("-base")
        if size in QWEN3 and name.lower().startswith("qwen3-"):
            return QWEN3[size]
    return None


def _nano(name) -> Path:
    return Path(nano.__file__).parent / "models" / name


def shares_statistics(cell: dict, shape: Shape) -> bool:
    """Whether a cell's statistics lie in the cache, for all methods that see the unquantized model."""
    cls, method = target(cell["method"], "method"), cell["method"]
    if cls.name == "none" or cls.calibrates_on != "float" or method.get("loss") == "module":
        return False
    return footprint.statistics_bytes(shape) <= cell["machine"].get("statistics_gib", 0) * GIB


def estimate(cell: dict, shape: Shape, machine: Machine, parts: list[str], known: bool = False) -> Estimate:
    """What it costs to measure the evaluations ``parts`` of a cell; ``known``: statistics are in the cache by then."""
    dtype, settings = cell["model"]["dtype"], cell["machine"]
    cls, wanted = target(cell["method"], "method"), evaluations(cell)
    is_float = cls.name == "none"
    seconds = {"load": shape.weight_bytes(dtype) / READ}
    disk = left = resting = quantizing = 0
    if not is_float:
        calib = expected(cell, next(iter(wanted.values())))["calib"].fields
        n = calib["n"] if calib.get("draw") != "lines" else max(1, calib["n"] * SHORT // calib["length"])
        tokens, on_disk = n * calib["length"], stored(shape, cls.name, cell["method"])
        phases = {
            "calibrate": work.calibrate(shape, cls, cell["method"], n, calib["length"], dtype),
            "statistics": work.statistics(shape, tokens),
            "solve": work.solve(shape, cls, cell["method"]),
        }
        shares = shares_statistics(cell, shape)
        if shares and known:
            phases = {"solve": phases["solve"]}
        seconds |= {name: done.seconds(machine) for name, done in phases.items()}
        seconds["load"] += on_disk / WRITE + on_disk / READ
        if shares:
            seconds["load"] += footprint.statistics_bytes(shape) / (READ if known else WRITE)
        disk = on_disk + footprint.hidden_bytes(shape, tokens, dtype)
        left = footprint.statistics_bytes(shape) if shares and not known else 0
        waiting = footprint.waiting_bytes(shape, tokens, dtype)
        stays = not machine.is_gpu or _stays(settings, waiting)
        grams = "stage" if cls.calibrates_on == "stage" else "all"
        quantizing = footprint.peak_quantize(shape, grams, calib["length"], dtype, waiting if stays else 0)
        resting = 0 if stays else waiting
    jobs = {name: work.evaluate(shape, wanted[name], dtype) for name in parts}
    seconds["evaluate"] = sum(done.seconds(machine) for done, _ in jobs.values())
    unknown = tuple(dict.fromkeys(what for _, missing in jobs.values() for what in missing))
    texts = any("source" in wanted[name] for name in parts)
    peak = max(quantizing, footprint.peak_evaluate(shape, longest(wanted, parts), dtype, texts))
    gpu, cpu = (peak, resting) if machine.is_gpu else (0, peak)
    return Estimate(seconds, gpu, cpu + PROCESS, disk, left, unknown)


def _stays(settings: dict, waiting: int) -> bool:
    """Whether hidden states wait on the GPU."""
    if settings["hidden_device"] == "auto":
        return waiting <= settings["hidden_gib"] * GIB
    return settings["hidden_device"] != "cpu"


def longest(wanted: dict[str, dict], parts: list[str]) -> int:
    """Tokens of the longest sequence: the window of texts; tasks are packed to less."""
    return max([part.get("window") or 2048 for name in parts if "source" in (part := wanted[name])], default=2048)


def stored(shape: Shape, method: str, settings: dict) -> int:
    """Bytes of the quantized weights on disk."""
    if method == "billm":
        return footprint.binary_bytes(shape, settings["block_size"])
    grid = settings.get("grid")
    if grid is None:
        return shape.linear_parameters * BYTES["bfloat16"]
    return footprint.codes_bytes(shape, grid["group_size"], grid["symmetric"])


def corrections(cells, records, machine: Machine) -> dict[str, tuple[float, int]]:
    """{model: (measured / estimated seconds of evaluation, records)} where this machine has measured the model."""
    ratios: dict[str, list[float]] = {}
    for cell in cells:
        shape, known = shape_of(cell), evaluations(cell)
        for part in known.values():
            head = records.find(cell, part)
            if shape is None or head is None or not machine.is_like(head.provenance.get("device")):
                continue
            guess = work.evaluate(shape, part, cell["model"]["dtype"])[0].seconds(machine)
            if guess > 0 and (took := head.provenance.get("seconds", 0)) > 0:
                ratios.setdefault(cell["model"]["name"], []).append(took / guess)
    return {name: (math.exp(sum(map(math.log, found)) / len(found)), len(found)) for name, found in ratios.items()}
