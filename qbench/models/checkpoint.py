"""A checkpoint on disk: ``Checkpoint`` names a model, and ``OpenCheckpoint`` reads its files, one part at a time."""

import copy
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from torch import nn
from torch.types import Device
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from qbench.hub import hub_error
from qbench.models import files
from qbench.models.anatomies import ANATOMIES
from qbench.models.block import Block
from qbench.models.gguf_file import GgufFile
from qbench.models.placement import Placement
from qbench.models.prequantized import Prequantized
from qbench.settings import check

NANO = Path(__file__).parent.parent / "nano" / "models"
PATTERNS = ["*.safetensors", "*.json", "*.txt"]  # the files of a model on the Hub that are downloaded
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A model: exactly one of ``repo`` (Hub id), ``path`` (local folder), ``nano`` (shipped) and ``gguf`` is set.

    ``base``: the unquantized model, as a Hub id or a folder, of one that was quantized by others.
    """

    name: str
    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    nano: str | None = None
    gguf: GgufFile | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    base: str | None = None

    def __post_init__(self):
        check(self, "model")
        if len(self.name) > 100:
            raise ValueError(f"model.name has {len(self.name)} characters; tables have room for 100")
        given = {name: value for name in ("repo", "path", "nano", "gguf") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            got = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            raise ValueError(
                f"model {self.name}: set one of repo, path, nano and gguf, got {got}; a checkpoint of your own is "
                "model=local model.path=FOLDER"
            )

    def settings(self) -> dict:
        """The part of a record's identity that is known before the files are; ``revision`` where one is asked for."""
        found = {"name": self.name, "repo": self.repo or (f"qbench/{self.nano}" if self.nano else "local")}
        is_fixed = self.repo is not None and self.revision is not None
        found |= self.gguf.settings() if self.gguf else {}
        return found | {"dtype": self.dtype} | ({"revision": self.revision} if is_fixed else {})

    def unquantized(self) -> "Checkpoint":
        """The model that ``base`` names; ValueError where it names none."""
        if self.base is None:
            raise ValueError(
                f"model {self.name} is quantized already; to compare it with the unquantized model, name that one: "
                "model.base=REPOSITORY or FOLDER"
            )
        if (folder := Path(self.base).expanduser()).is_dir():
            return Checkpoint(folder.name, path=str(folder), dtype=self.dtype)
        return Checkpoint(self.base.rpartition("/")[2].lower(), repo=self.base, dtype=self.dtype)

    def open(self) -> "OpenCheckpoint":
        """Raises ValueError or OSError where the model is missing, may not be read, or has damaged files."""
        if self.repo is not None:
            folder = _snapshot(self.repo, self.revision)
            return _opened(folder, self, folder.name)
        if self.gguf is not None:
            return _opened(self.gguf.fetch(), self, self.gguf.settings()["revision"])
        folder = NANO / self.nano if self.nano else Path(self.path).expanduser()
        if not folder.is_dir():
            hub = f"; if it is on the Hub: model=qwen3-0.6b model.name=NAME model.repo={self.path}"
            is_repo = self.path and re.fullmatch(r"[\w.-]+/[\w.-]+", self.path)
            raise FileNotFoundError(f"model {self.name}: there is no folder {folder}{hub if is_repo else ''}")
        return _opened(folder, self, files.content_hash(folder))


@lru_cache
def _snapshot(repo: str, revision: str | None) -> Path:
    folder = _download(repo, revision, ["config.json"])
    files.read_config(folder, ANATOMIES)  # what is not supported is refused before weights are downloaded
    if told := files.read_quantization(folder):
        Prequantized.of(folder, told, {}, {})
    return _download(repo, revision, PATTERNS)


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as e:
        instead = "use a folder: model=local model.path=FOLDER, or try model=nano-s, which is shipped"
        raise hub_error(e, repo, revision, instead=instead) from e


def is_finite(x: torch.Tensor) -> bool:
    """Whether all numbers are finite, without a mask of the same size."""
    return bool(torch.isfinite(torch.stack(x.aminmax())).all())


class OpenCheckpoint:
    """The files of one model. Opening reads headers only; weights are read when a method asks for them.

    ``prequantized``: how its linears are stored where someone else has quantized them; ``outlines``: these weights.
    """

    def __init__(self, folder: Path, model: Checkpoint, revision: str):
        self.folder, self.model, self.revision = folder, model, revision
        self.dtype = DTYPES[model.dtype]
        self.config = files.read_config(folder, ANATOMIES)
        self.anatomy = ANATOMIES[self.config.model_type](self.config)
        headers, told = files.read_headers(folder), files.read_quantization(folder)
        self.prequantized = Prequantized.of(folder, told, self.linears, headers) if told else None
        self.outlines = self.prequantized.stored.outlines if self.prequantized else {}
        params = {key: p for key, p in self.skeleton.named_parameters() if not self._is_quantized(key)}
        expected: files.Expected = {key: (files.FLOATS, tuple(p.shape)) for key, p in params.items()}
        expected |= self.prequantized.expected() if self.prequantized else {}
        files.check_tensors(folder, headers, expected, self.config.tie_word_embeddings)
        self.files = {key: header[0] for key, header in headers.items()}

    def _is_quantized(self, parameter: str) -> bool:
        return parameter.endswith(".weight") and parameter.removesuffix(".weight") in self.outlines

    def science(self) -> dict:
        """This model's part of a record's identity."""
        found = self.model.settings() | {"revision": self.revision}
        return found | ({"quantized": self.prequantized.science()} if self.prequantized else {})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return files.read_tokenizer(self.folder, self.config.vocab_size)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape (N, K) of every linear that is quantized, by full name."""
        names = [name for stage in self.anatomy.stages for name in stage.linears]
        layers = range(self.config.num_hidden_layers)
        full = (f"model.layers.{i}.{name}" for i in layers for name in names)
        return {name: tuple(self.skeleton.get_submodule(name).weight.shape) for name in full}

    def parameters(self) -> int:
        """The number of parameters, tied ones counted once."""
        return sum(p.numel() for p in self.skeleton.parameters())

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device: shapes without numbers. Copy it before you change it."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype).eval().requires_grad_(False)
            model.tie_weights()
        return model

    def fill(self, module: nn.Module, prefix: str, device: Device) -> None:
        """Reads every parameter of ``module`` onto ``device``; its name in the checkpoint is ``prefix`` + its name.
        Weights that are stored quantized are left out."""
        state = {}
        for name, _ in module.named_parameters():
            if self._is_quantized(key := prefix + name):
                continue
            state[name] = self.tensor(key, device).to(self.dtype)
            if not is_finite(state[name]):
                raise ValueError(
                    f"model {self.model.name}: NaN or inf in {key} as {self.model.dtype}; the checkpoint is broken, or "
                    "its numbers need model.dtype=float32"
                )
        module.load_state_dict(state, strict=False, assign=True)
        module.requires_grad_(False)

    def tensor(self, key: str, device: Device) -> torch.Tensor:
        """One tensor as it is stored."""
        return files.read_tensor(self.folder / self.files[key], key, device)

    def head(self, device: Device) -> torch.Tensor:
        """The output head's weight [V, D]."""
        key = files.EMBEDDING if self.config.tie_word_embeddings else files.HEAD
        return self.tensor(key, device).to(self.dtype)

    def embedding(self, device: Device) -> nn.Module:
        """A model in which only the modules before the first block have numbers."""
        model = copy.deepcopy(self.skeleton)
        self.fill(model.model.embed_tokens, "model.embed_tokens.", device)
        model.model.rotary_emb = type(model.model.rotary_emb)(self.config).to(device)
        return model

    def block(self, index: int, device: Device) -> Block:
        """Decoder layer ``index`` in its own memory. ValueError where it is quantized already."""
        if self.prequantized:
            raise ValueError(f"model {self.model.name} is quantized already; it takes no other method than none")
        block = self.empty_block(index)
        self.fill(block.module, f"model.layers.{index}.", device)
        return block

    def empty_block(self, index: int) -> Block:
        """Decoder layer ``index`` on the meta device."""
        return Block(copy.deepcopy(self.skeleton.model.layers[index]), self.anatomy, index)

    def load(self, device: Device, block=None, placement: Placement | None = None) -> nn.Module:
        """The whole model. ``block(index, device) -> Block`` gives the decoder layers; None: those on disk."""
        model = self.embedding(device)
        block, placement = block or self.block, placement or Placement(str(device))
        count = self.config.num_hidden_layers
        layer = sum(p.numel() for p in self.skeleton.model.layers[0].parameters()) * self.dtype.itemsize
        places = placement.layers(layer, count, self.parameters() * self.dtype.itemsize - count * layer)
        for index, place in enumerate(places):
            module = block(index, "cpu" if place == "disk" else place).module
            model.model.layers[index] = placement.settle(module, place, index)
        self.fill(model.model.norm, "model.norm.", device)
        if self.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        else:
            self.fill(model.lm_head, "lm_head.", device)
        return model.eval()


_opened = lru_cache(maxsize=4)(OpenCheckpoint)
