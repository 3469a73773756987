"""The contract of a measurement. To write your own, subclass `Measure` and add a yaml to conf/eval.

A measurement is a frozen dataclass whose fields are its settings. The runner calls, in this order,

    measure.check_model(config) whether it can measure a model of this architecture
    measure.science(ctx)        what will be measured, JSON-able: settings() and data(ctx); bad input fails here
    measure.prepare(ctx)        work on the unquantized model alone, before the quantized one takes its memory
    measure.run(model, ctx)     {"<data>/<quantity>": Metric}

A plan has no data: it compares ``settings()`` with the records that exist.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from qbench.costs import Work, forward_flops, head_flops
from qbench.data.corpus import TOKENS, Corpus, Source, sha256_of_tokens
from qbench.data.sources import HubFile
from qbench.data.windows import windows
from qbench.record import Metric
from qbench.settings import Positive, Range, check
from qbench.shape import Shape


@dataclass(frozen=True)
class Context:
    """What a measurement may need besides the model; none of it but `model_id` belongs to an identity."""

    tokenizer: PreTrainedTokenizerBase
    device: str
    data_dir: Path | None
    cache_dir: Path
    model_id: str  # digest of the unquantized model's science: repository, revision, dtype
    reference: Callable[[], nn.Module]  # loads the unquantized model
    packed: Callable[[], nn.Module] | None = None  # loads the quantized model packed; None where nothing is quantized
    head: Callable[[], Tensor] | None = None  # reads the unquantized model's head where the other may have its own


@dataclass(frozen=True)
class Measure:
    """One measurement. `version` goes up whenever the same settings would give other numbers than before."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    runs_packed: ClassVar[bool] = False  # whether it uses ctx.packed
    compares: ClassVar[bool] = False  # whether it uses ctx.reference

    def __post_init__(self):
        check(self, "eval")

    def settings(self) -> dict:
        """The part of the identity that needs no data: name, version and every field that may change a number."""
        return {"name": self.name, "version": self.version} | {f.name: getattr(self, f.name) for f in fields(self)}

    def data(self, ctx: Context) -> dict:
        """The rest of the identity, such as the hash of the tokens; raises on bad input, loads no weights."""
        return {}

    def check_model(self, config: PretrainedConfig) -> None:
        """Raises ValueError for a model that this measurement cannot run. Default: for none."""

    def science(self, ctx: Context) -> dict:
        """This measurement's part of a record's identity."""
        return self.settings() | self.data(ctx)

    def hub_files(self) -> Sequence[HubFile | tuple[str, str | None]]:
        """What is read from the Hub where there is no machine.data_dir: files, or (data set, its configuration)."""
        return []

    def prepare(self, ctx: Context) -> None:
        """What needs the unquantized model, cached on disk: once for all quantizations. Default: nothing."""

    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        """The metrics of `model`, which is on ctx.device and in eval mode."""
        raise NotImplementedError

    def work(self, shape: Shape) -> Work:
        """What ``run`` does. Only ``qbench plan`` asks; without an answer it says that this is not counted."""
        return Work(unknown=(f"the measurement {self.name}",))


@dataclass(frozen=True)
class TextMeasure(Measure):
    """A measurement on disjoint windows of one text: ``source``, ``path`` and ``c4`` as in `qbench.data.corpus.Corpus`.

    ``window`` in tokens, ``limit``: only the first so many windows. Without them, windows of 2048 tokens as in the
    papers and all of the text; of nano 64 windows of 256 tokens, the length its models were trained on.
    """

    source: Source | None = None
    path: str | None = None
    window: Annotated[int, Range(2)] | None = None
    limit: Positive | None = None
    c4: Literal["head", "released"] = "head"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "source", self.corpus.source)
        defaults = {"window": 256, "limit": 64} if self.source == "nano" else {"window": 2048}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def corpus(self) -> Corpus:
        return Corpus(self.source, self.path, self.c4)

    def hub_files(self) -> list[HubFile]:
        return self.corpus.hub_files()

    def windows(self, ctx: Context) -> Tensor:
        """ids_BT of the text."""
        return windows(self.corpus.tokens(ctx.tokenizer, ctx.data_dir), self.window, self.limit)

    def settings(self) -> dict:
        found = super().settings()
        del found["path"]  # the tokens identify the text
        draw = found.pop("c4")
        return found | ({"draw": draw} if self.source == "c4" else {})

    def data(self, ctx: Context) -> dict:
        ids_BT = self.windows(ctx)
        found = {"windows": len(ids_BT), "data": sha256_of_tokens(ids_BT)}
        if ctx.data_dir is None and (files := self.hub_files()):
            found["data_sets"] = {file.repo: file.revision for file in files}
        return found

    def work(self, shape: Shape) -> Work:
        """One pass over all windows, and the head in float32 over what they predict."""
        if self.source not in TOKENS:
            return Work(unknown=(f"text {self.path}, whose size is not known",))
        count = TOKENS[self.source] // self.window
        count = min(count, self.limit or count)
        flops = head_flops(shape, count * (self.window - 1))
        return Work(model=forward_flops(shape, count, self.window), float32=flops)


@torch.inference_mode()
def hidden_states(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """What the output head reads, [B, T, D], from the model's own forward; logits are never all in memory."""
    return model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state


def mean_metric(samples: list[float], unit: str, higher_is_better: bool | None = None) -> Metric:
    """The mean of per-item outcomes and its standard error s / sqrt(n), where n > 1 and all are finite.

    Raises: ArithmeticError for an outcome that is nan. An infinite one is that of a model that diverged.
    """
    n = len(samples)
    if broken := sum(map(math.isnan, samples)):
        raise ArithmeticError(f"the model's outputs are nan for {broken} of {n} items")
    mean = sum(samples) / n
    stderr = None
    if n > 1 and math.isfinite(mean):
        stderr = math.sqrt(sum((x - mean) ** 2 for x in samples) / (n - 1) / n)
    return Metric(mean, unit, n, stderr, samples, higher_is_better)
