"""The files of a checkpoint: which are read, and what is refused before any weight is, since another model would be
measured: weights in a format that is not decoded here, a tensor without a place in the model, a missing tokenizer."""

import hashlib
import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.types import Device
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from qbench.files import written_whole

INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F32", "F16", "BF16")  # the types of weights that are read, as safetensors calls them


def weight_files(folder: Path) -> list[str]:
    """The files that hold the weights, relative to ``folder``; chosen as transformers does.

    Raises: ValueError for an index that is damaged or names a file outside ``folder``.
    """
    index = folder / INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    where = _json(index).get("weight_map")
    if not where or not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files; download it again")
    for name in where.values():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{index} names {name}, which is outside its folder; put the weights inside")
    return sorted(set(where.values()))


def content_hash(folder: Path) -> str:
    """40 hex digits of a SHA-256 over the files that are read: the revision of a model without a commit on the Hub.

    Files of chat templates do not count, because no measurement applies one."""
    tokenizer = sorted({p.name for pattern in TOKENIZER for p in folder.glob(pattern)})
    paths = {name: folder / name for name in ("config.json", *weight_files(folder), *tokenizer)}
    stats = ((name, path.stat()) for name, path in paths.items() if path.is_file())
    return _hash(folder.resolve(), tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats))


@lru_cache
def _hash(folder: Path, stamps: tuple) -> str:
    total = hashlib.sha256()
    for name, _, _ in stamps:
        with (folder / name).open("rb") as f:
            total.update(f"{name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:40]


def read_config(folder: Path, known: Collection[str]) -> PretrainedConfig:
    """The configuration of a model whose type is in ``known``; no code of the checkpoint runs.

    Raises: FileNotFoundError without a config.json, ValueError for one that is damaged, of another type, or quantized.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}; is it a Hugging Face checkpoint?")
    told = _json(path)
    if (kind := told.get("model_type")) not in known:
        raise ValueError(f"the model in {folder} is a {kind}; supported: {', '.join(known)}")
    if quantized := told.get("quantization_config"):
        how = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise ValueError(f"{path} has a quantization_config ({how}): use the unquantized checkpoint")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # transformers and huggingface_hub raise many kinds of errors for a field of a wrong type
        raise ValueError(f"{path} is not the configuration of a {kind}: {' '.join(str(e).split())}") from e


def read_tokenizer(folder: Path, vocab: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a model with ``vocab`` embeddings.

    Raises: FileNotFoundError without its files, of which transformers may make an empty tokenizer; ValueError.
    """
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise FileNotFoundError(f"no tokenizer in {folder}: it needs a tokenizer.json, or vocab.json and merges.txt")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # a damaged file is a bare Exception of the tokenizers library
        raise ValueError(
            f"cannot read the tokenizer in {folder} ({type(e).__name__}: {' '.join(str(e).split())}); download it again"
        ) from e
    if len(tokenizer) > vocab:
        raise ValueError(f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model embeddings for {vocab}")
    return tokenizer


def tensor_files(folder: Path, skeleton: nn.Module, tied: bool) -> dict[str, str]:
    """{tensor: file}, after every header was checked: all tensors of ``skeleton`` are there in its shapes and a known
    type, and no others. A model with ``tied`` embeddings may also store its lm_head, if that is the same.

    Raises: FileNotFoundError for a missing file, ValueError for anything that would be left out or read wrongly.
    """
    expected = {key: tuple(p.shape) for key, p in skeleton.named_parameters()}
    files: dict[str, str] = {}
    for name in weight_files(folder):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is missing from {folder}; download it again")
        try:
            with safe_open(folder / name, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118
                    _check_tensor(folder / name, key, f.get_slice(key), expected, tied)
                    files[key] = name
        except SafetensorError as e:
            raise ValueError(f"{folder / name} is truncated or damaged ({e}); download it again") from e
    if missing := expected.keys() - files.keys():
        raise ValueError(f"the tensor {min(missing)} is in no file of {folder}; is the checkpoint whole?")
    if HEAD in files.keys() - expected.keys():
        head, embedding = (read_tensor(folder / files[key], key) for key in (HEAD, EMBEDDING))
        if not torch.equal(head, embedding):
            raise ValueError(
                f"config.json in {folder} ties {HEAD} to {EMBEDDING}, but both are stored and differ; "
                "set tie_word_embeddings to false there if the head is one of its own"
            )
    return files


def read_tensor(path: Path, key: str, device: Device = "cpu") -> Tensor:
    """One tensor of a safetensors file."""
    with safe_open(path, framework="pt", device=str(device)) as f:
        return f.get_tensor(key)


def _check_tensor(path: Path, key: str, stored, expected: dict[str, tuple[int, ...]], tied: bool) -> None:
    if tied and key == HEAD:
        key = EMBEDDING
    if (kind := stored.get_dtype()) not in FLOATS:
        raise ValueError(f"{path}: {key} is stored as {kind}, not as {', '.join(FLOATS)}; use the unquantized one")
    if key not in expected:
        raise ValueError(
            f"{path} holds {key}, which this model has no place for; without it another model would be measured; "
            "use a plain checkpoint, with adapters merged and without quantization"
        )
    if (shape := tuple(stored.get_shape())) != expected[key]:
        raise ValueError(f"{path}: {key} has shape {shape}, config.json says {expected[key]}")


def _json(path: Path) -> dict:
    try:
        if isinstance(found := json.loads(path.read_text(encoding="utf-8")), dict):
            return found
        why = f"a {type(found).__name__}"
    except ValueError as e:
        why = str(e)
    raise ValueError(f"{path} is not a JSON object ({why}); download it again")


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file. ``path`` holds either all of it or what it held before."""
    with written_whole(path) as temporary:
        save_file({k: t.detach().to("cpu", copy=False).contiguous() for k, t in tensors.items()}, temporary, metadata)


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; {} where it has none."""
    with safe_open(path, framework="pt") as f:
        return f.metadata() or {}
