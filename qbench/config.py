"""All settings of one run, composed from conf/ by Hydra, as checked objects."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qbench.data.corpus import Calibration
from qbench.grid import Grid
from qbench.machine import Machine
from qbench.measure.base import Measure
from qbench.methods.base import Method
from qbench.models.checkpoint import Checkpoint
from qbench.printed import published
from qbench.settings import Positive, Range, build, near
from qbench.tracking import Tracking


@dataclass(frozen=True)
class Protocol:
    """What several evaluations share; conf/protocol says what each is."""

    name: str
    logits: Literal["float32", "model"]
    c4: Literal["head", "released"]
    mmlu: str
    max_prompt: Positive | None


@dataclass(frozen=True)
class Home:
    """The data that a model is calibrated and evaluated on by default."""

    calib: str
    text: str
    tasks: tuple[str, ...]
    num_fewshot: Annotated[int, Range(0)]


@dataclass(frozen=True)
class Config:
    """One configuration. ``eval`` holds evaluations by name, "" where there is only one."""

    home: Home
    protocol: Protocol
    model: Checkpoint
    grid: Grid
    method: Method
    calib: Calibration
    eval: dict[str, Measure]
    machine: Machine
    wandb: Tracking
    retry_failed: bool
    fail_fast: bool
    table: Literal[1, 2, 3, 4] | None

    @classmethod
    def of(cls, cfg: DictConfig | Mapping) -> "Config":
        """ValueError, naming the field, for what is unknown, missing, of the wrong type or out of range."""
        try:
            plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
        except OmegaConfBaseException as e:
            raise ValueError(str(e)) from e
        parts = plain.get("eval")
        if not isinstance(parts, Mapping) or not parts:
            raise ValueError(f"eval={parts} names no evaluation; choose one, e.g. eval=ppl")
        parts = {"": parts} if "_target_" in parts else parts
        if bare := [name for name, part in parts.items() if not (isinstance(part, Mapping) and "_target_" in part)]:
            raise ValueError(f"eval.{bare[0]} is unknown; {near(bare[0], set(parts) - set(bare))}")
        return build(plain | {"eval": parts}, "", cls)

    @property
    def quantizes(self) -> bool:
        """False for the unquantized model."""
        return self.method.name != "none"

    @property
    def readers(self) -> list[Measure | Calibration]:
        """What may read data sets from the Hub: nothing where there is a machine.data_dir."""
        calib = [self.calib] if self.quantizes else []
        return [*self.eval.values(), *calib] if self.machine.data_dir is None else []

    @property
    def is_wanted(self) -> bool:
        """False where ``table`` names a table of the paper that does not print this cell."""
        grid, acts = self.method.grid, self.method.acts
        bits = (grid.bits if grid else 16, acts.bits if acts else 16)
        return self.table is None or published.is_printed(self.table, self.model.name, self.method.name, *bits)

    def settings(self) -> dict:
        """The part of every record's identity that needs neither the model's files nor data; ``eval`` is not in it.

        The unquantized model depends on no calibration.
        """
        grid = self.method.grid and asdict(self.method.grid)
        calib = self.calib.settings() if self.quantizes else None
        return {"model": self.model.settings(), "method": self.method.science(), "grid": grid, "calib": calib}

    def check_lengths(self, positions: int) -> None:
        """ValueError for a sequence longer than the ``positions`` of the model; a missing file is not judged."""
        asked: list[tuple[str, object, int | None]]
        asked = [("calib.length", self.calib, self.calib.length)] if self.quantizes else []
        for part, measure in self.eval.items():
            at = f"eval.{part}." if part else "eval."
            asked += [(at + name, measure, getattr(measure, name, None)) for name in ("window", "max_length")]
        for name, source, tokens in asked:
            is_there = (path := getattr(source, "path", None)) is None or Path(path).is_file()
            if is_there and tokens is not None and tokens > positions:
                what = f"{name}={tokens} tokens, but {self.model.name} has {positions} positions"
                raise ValueError(f"{what}; set {name} to {positions} or less")


def name_of(cfg: DictConfig | Mapping) -> str:
    """A name for messages about a run whose settings may be wrong."""
    cfg = OmegaConf.create(cfg)
    model, method, bits = (OmegaConf.select(cfg, key) for key in ("model.name", "method._target_", "grid.bits"))
    return f"{model} none" if str(method).endswith(".Method") else f"{model} {str(method).rpartition('.')[2]} W{bits}"
