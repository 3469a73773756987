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
from qbench.settings import check

NANO = Path(__file__).parent.parent / "nano" / "models"
PATTERNS = ["*.safetensors", "*.json", "*.txt"]  # the files of a model on the Hub that are downloaded
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A model: exactly one of ``repo`` (Hub id), ``path`` (local folder), ``nano`` (shipped) and ``gguf`` is set."""

    name: str
    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    nano: str | None = None
    gguf: GgufFile | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

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
    files.read_config(_download(repo, revision, ["config.json"]), ANATOMIES)  # refused before weights are downloaded
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
    """The files of one model. Opening reads headers only; weights are read when a method asks for them."""

    def __init__(self, folder: Path, model: Checkpoint, revision: str):
        self.folder, self.model, self.revision = folder, model, revision
        self.dtype = DTYPES[model.dtype]
        self.config = files.read_config(folder, ANATOMIES)
        self.anatomy = ANATOMIES[self.config.model_type](self.config)
        self.files = files.tensor_files(folder, self.skeleton, self.config.tie_word_embeddings)

    def science(self) -> dict:
        """This model's part of a record's identity."""
        return self.model.settings() | {"revision": self.revision}

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
        """Reads every parameter of ``module`` onto ``device``; its name in the checkpoint is ``prefix`` + its name."""
        state = {}
        for name, _ in module.named_parameters():
            key = prefix + name
            state[name] = files.read_tensor(self.folder / self.files[key], key, device).to(self.dtype)
            if not is_finite(state[name]):
                raise ValueError(
                    f"model {self.model.name}: NaN or inf in {key} as {self.model.dtype}; the checkpoint is broken, or "
                    "its numbers need model.dtype=float32"
                )
        module.load_state_dict(state, strict=False, assign=True)
        module.requires_grad_(False)

    def embedding(self, device: Device) -> nn.Module:
        """A model in which only the modules before the first block have numbers."""
        model = copy.deepcopy(self.skeleton)
        self.fill(model.model.embed_tokens, "model.embed_tokens.", device)
        model.model.rotary_emb = type(model.model.rotary_emb)(self.config).to(device)
        return model

    def block(self, index: int, device: Device) -> Block:
        """Decoder layer ``index`` in its own memory."""
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
