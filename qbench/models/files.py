"""The files of a checkpoint: which are read, and what is refused before any weight is, since another model would be
measured: weights in another type or shape than expected, a tensor without a place in the model, a missing tokenizer."""

import hashlib
import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.types import Device
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from qbench.files import written_whole

INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F32", "F16", "BF16")  # the types of weights that are read, as safetensors calls them
Header = tuple[str, str, tuple[int, ...]]  # of a tensor: its file, type and shape
Expected = dict[str, tuple[Collection[str], tuple[int, ...]]]  # the types that a tensor may have, and its shape


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

    Raises: FileNotFoundError without a config.json, ValueError for one that is damaged or of another type.
    """
    told = _config(folder)
    if (kind := told.get("model_type")) not in known:
        raise ValueError(f"the model in {folder} is a {kind}; supported: {', '.join(known)}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # transformers and huggingface_hub raise many kinds of errors for a field of a wrong type
        raise ValueError(
            f"{folder / 'config.json'} is not the configuration of a {kind}: {' '.join(str(e).split())}"
        ) from e
    vars(config).pop("quantization_config", None)  # its shape is that of the unquantized model
    return config


def read_quantization(folder: Path) -> dict | None:
    """How config.json says that the weights are quantized; None where it says nothing."""
    told = _config(folder).get("quantization_config")
    if told is not None and not isinstance(told, dict):
        raise ValueError(f"quantization_config in {folder / 'config.json'} is {told!r}, not a JSON object")
    return told or None


def _config(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}; is it a Hugging Face checkpoint?")
    return _json(path)


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


def read_headers(folder: Path) -> dict[str, Header]:
    """The headers of all tensors. Raises: FileNotFoundError for a missing file, ValueError for a damaged one."""
    found: dict[str, Header] = {}
    for name in weight_files(folder):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is missing from {folder}; download it again")
        try:
            with safe_open(folder / name, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118
                    stored = f.get_slice(key)
                    found[key] = name, stored.get_dtype(), tuple(stored.get_shape())
        except SafetensorError as e:
            raise ValueError(f"{folder / name} is truncated or damaged ({e}); download it again") from e
    return found


def check_tensors(folder: Path, headers: dict[str, Header], expected: Expected, tied: bool) -> None:
    """ValueError unless all tensors of ``expected`` are there, in the right shape and type, and no others. A model with
    ``tied`` embeddings may also store its lm_head, if that is the same."""
    for key, (name, kind, shape) in headers.items():
        place = EMBEDDING if tied and key == HEAD else key
        if place not in expected:
            raise ValueError(
                f"{folder / name} holds {key}, which this model has no place for; without it another model would be "
                "measured; use a plain checkpoint, with adapters merged and without quantization that config.json "
                "does not tell of"
            )
        kinds, wanted = expected[place]
        if kind not in kinds:
            raise ValueError(f"{folder / name}: {key} is stored as {kind}, not as {', '.join(kinds)}")
        if shape != wanted:
            raise ValueError(f"{folder / name}: {key} has shape {shape}, config.json says {wanted}")
    if missing := expected.keys() - headers.keys():
        raise ValueError(f"the tensor {min(missing)} is in no file of {folder}; is the checkpoint whole?")
    if HEAD in headers.keys() - expected.keys():
        head, embedding = (read_tensor(folder / headers[key][0], key) for key in (HEAD, EMBEDDING))
        if not torch.equal(head, embedding):
            raise ValueError(
                f"config.json in {folder} ties {HEAD} to {EMBEDDING}, but both are stored and differ; "
                "set tie_word_embeddings to false there if the head is one of its own"
            )


def read_tensor(path: Path, key: str, device: Device = "cpu") -> Tensor:
    """One tensor of a safetensors file."""
    with safe_open(path, framework="pt", device=str(device)) as f:
        return f.get_tensor(key)


def _json(path: Path) -> dict:
    try:
        if isinstance(found := json.loads(path.read_text(encoding="utf-8")), dict):
            return found
        why = f"a {type(found).__name__}"
    except (ValueError, RecursionError) as e:
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
