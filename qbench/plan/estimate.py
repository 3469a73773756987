"""Seconds, memory and disk of one cell on one machine; its phases run one after another, nothing overlaps."""

from dataclasses import dataclass
from pathlib import Path

from qbench.config import Config
from qbench.costs import Work, error_flops, forward_flops, rounding
from qbench.data.corpus import Calibration
from qbench.measure.base import TextMeasure
from qbench.models.anatomies import ANATOMIES
from qbench.models.checkpoint import NANO, Checkpoint
from qbench.models.files import read_config
from qbench.plan import footprint
from qbench.plan.machines import Machine
from qbench.shape import RELEASED, Shape
from qbench.stats import Gram

READ, WRITE = 2e9, 1e9  # bytes per second from and to a disk: assumptions
SHORT = 203  # mean tokens of a C4 document of at most 512
PROCESS = 4 << 30  # bytes of Python, libraries, texts and rendered prompts in CPU memory: an assumption


@dataclass(frozen=True)
class Estimate:
    """Seconds by phase; peaks in bytes; ``disk``: what lies there while the cell runs; ``left``: what stays there for
    other cells; ``unknown``: what is not counted."""

    seconds: dict[str, float]
    gpu: int
    cpu: int
    disk: int
    left: int
    unknown: tuple[str, ...]


def shape_of(model: Checkpoint) -> Shape | None:
    """That of a released model by its name, a folder's by its config.json; None where neither tells."""
    folder = NANO / model.nano if model.nano else model.path and Path(model.path).expanduser()
    if model.gguf and model.gguf.folder.is_dir():
        folder = model.gguf.folder
    if folder:
        return Shape.of(read_config(folder, ANATOMIES))
    names = (model.name.lower(), *((repo or "").rpartition("/")[2].lower() for repo in (model.repo, model.base)))
    return next((RELEASED[name] for name in names if name in RELEASED), None)


def shares_statistics(config: Config, shape: Shape) -> bool:
    """Whether the statistics of a cell are kept for all methods that see the unquantized model."""
    method = config.method
    if not config.quantizes or method.calibrates_on != "float" or method.reads_inputs:
        return False
    return footprint.statistics_bytes(shape) <= config.machine.statistics_gib * footprint.GIB


def windows(calib: Calibration) -> int:
    """How many windows of ``calib.length`` tokens calibration reads."""
    return calib.n if calib.draw == "windows" else max(1, calib.n * SHORT // calib.length)


def quantization(config: Config, shape: Shape) -> dict[str, Work]:
    """The phases of a quantization: forward passes, statistics, and what the method and each linear's error take."""
    method, n, length = config.method, windows(config.calib), config.calib.length
    kinds = dict.fromkeys(kind for kind in (Gram, method.statistic) if kind)
    statistics = sum((kind.work(K, n * length) for K, _, _ in shape.stages for kind in kinds), Work())
    errors = (Work(float32=error_flops(N, K), bytes=rounding(N, K).bytes) for N, K in shape.linears)
    return {
        "calibrate": Work(model=forward_flops(shape, n, length) * (2 if method.calibrates_on == "block" else 1)),
        "statistics": statistics.times(shape.layers),
        "solve": sum(errors, method.work(shape, n, length)).times(shape.layers),
    }


def cell_cost(config: Config, shape: Shape, machine: Machine, parts: list[str], known: bool = False) -> Estimate:
    """What measuring the evaluations ``parts`` of a cell costs; ``known``: its statistics are in the cache by then."""
    dtype, method, length = config.model.dtype, config.method, config.calib.length
    tokens, shares = windows(config.calib) * length, shares_statistics(config, shape)
    load, phases = shape.weight_bytes(dtype) / READ, {}
    disk = left = resting = peak = 0
    if config.quantizes:
        phases = quantization(config, shape)
        if shares and known:
            phases = {"solve": phases["solve"]}
        on_disk = footprint.stored_bytes(shape, method)
        load += on_disk / WRITE + on_disk / READ
        if shares:
            load += footprint.statistics_bytes(shape) / (READ if known else WRITE)
            left = 0 if known else footprint.statistics_bytes(shape)
        disk = on_disk + footprint.hidden_bytes(shape, tokens, dtype)
        left += disk if config.machine.keep_weights else 0
        waiting = footprint.waiting_bytes(shape, tokens, dtype)
        stays = not machine.is_gpu or config.machine.rest(waiting, "cuda") != "cpu"
        resting = 0 if stays else waiting
        grams = "stage" if method.calibrates_on == "stage" else "all"
        peak = footprint.peak_quantize(shape, grams, length, dtype, waiting if stays else 0)
    phases["evaluate"] = sum((config.eval[part].work(shape) for part in parts), Work())
    texts = [measure for part in parts if isinstance(measure := config.eval[part], TextMeasure)]
    longest = max((text.window for text in texts), default=2048)  # tasks are packed to less
    peak = max(peak, footprint.peak_evaluate(shape, longest, dtype, float_head=bool(texts)))
    gpu, cpu = (peak, resting) if machine.is_gpu else (0, peak)
    seconds = {"load": load} | {name: work.seconds(machine, dtype) for name, work in phases.items()}
    unknown = tuple(what for work in phases.values() for what in work.unknown)
    return Estimate(seconds, gpu, cpu + PROCESS, disk, left, unknown)
