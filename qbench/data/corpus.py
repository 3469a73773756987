"""Text to token ids: the data that models are calibrated and evaluated on.

``Calibration`` draws n windows of equal length; ``Corpus`` is one long text. The source of a text is one of

    nano        the embedded world (qbench.nano), no files needed
    c4          one pinned shard of allenai/c4, as in the papers
    wikitext2   Salesforce/wikitext, wikitext-2-raw-v1, pinned
    text        any local .txt, .jsonl or .parquet (the latter two with a ``text`` column)

c4 and wikitext2 come from the Hugging Face Hub, or from files below ``data_dir`` (machine.data_dir; the places are in
``qbench.data.sources``). Records identify data by ``sha256_of_tokens``, so the same text from another place is the same
data. No BOS or other special token is added.

Dimensions: T tokens of a text, B windows of T tokens.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qbench.data.sources import C4, WIKITEXT, HubFile, files, pinned, read_text, text_table
from qbench.data.windows import Encoder, lines, long_windows, nano_ids, released_c4
from qbench.nano import world
from qbench.settings import Positive, check

Source = Literal["nano", "c4", "wikitext2", "text"]
HUB = {"c4": (C4, "en"), "wikitext2": (WIKITEXT, "wikitext-2-raw-v1")}  # repository and configuration
C4_DOCUMENTS, C4_TOKENS = 1100, 256 * 2048
TOKENS = {"wikitext2": 299_078, "c4": C4_TOKENS, "nano": 30_785}  # of each text, by Qwen3's or the nanos' tokenizer
NANO_TOKENS = 2**22  # the world's text is endless; this much is written and tokenized within a minute


class Text:
    """What ``Calibration`` and ``Corpus`` share; ``splits``: which split of the texts on the Hub they read."""

    splits: ClassVar[dict[str, str]]
    source: Source | None
    path: str | None

    def set_source(self, group: str) -> None:
        """Text where a path is given, nano where neither is; ValueError for source=text without a path."""
        if self.source == "text" and self.path is None:
            raise ValueError(f"{group}.source=text needs {group}.path=<file>")
        object.__setattr__(self, "source", "text" if self.path else self.source or "nano")

    def tokens(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> Tensor:
        """Token ids, int64; the same tensor on a second call, which must not be written into."""
        stat = Path(self.path).stat() if self.path and Path(self.path).is_file() else None
        edited = stat and (stat.st_mtime_ns, stat.st_size)  # an edited file is read again
        return _tokens(self, Encoder.of(tokenizer), data_dir and str(data_dir), edited)

    def hub_files(self) -> list[HubFile]:
        """What is read from the Hub where there is no data_dir."""
        if self.source not in HUB:
            return []
        repo, name = HUB[self.source]
        return [pinned(repo, self.splits[self.source], name)]

    def documents(self, data_dir: str | None) -> Sequence[str]:
        """The texts of c4 or wikitext2 in the data's own order."""
        from datasets import Dataset
        from pyarrow import concat_tables

        repo, name = HUB[self.source]
        found = files(repo, self.splits[self.source], name, Path(data_dir) if data_dir else None)
        return Dataset(concat_tables(map(text_table, found)))["text"]  # decodes a text when it is read


@lru_cache(maxsize=16)
def _tokens(text: "Calibration | Corpus", encoder: Encoder, data_dir: str | None, edited: tuple | None) -> Tensor:
    return text.draw_tokens(encoder, data_dir)


@dataclass(frozen=True)
class Calibration(Text):
    """ids_BT, ``n`` windows of ``length`` tokens, drawn with ``seed``; a ``path`` is read instead of the source.

    By default 128 x 2048 as in the papers, 64 x 256 for nano. c4: GPTQ's draw, one window at a random offset per random
    document of more than ``length`` tokens, with the same random numbers, except that no document is used twice.
    wikitext2: random windows of the training split joined by blank lines, also GPTQ's draw. text: disjoint windows in
    random order. nano: the first windows of the documents that ``seed`` gives.

    ``draw: lines`` is the draw of the study's AWQ: ``n`` documents of at most ``length`` tokens in random order,
    stripped, joined without a separator and cut into as many windows as that gives.

    Raises: ValueError where the source holds less than asked for.
    """

    splits: ClassVar = {"c4": "train", "wikitext2": "train"}

    source: Source
    n: Positive | None = None
    length: Positive | None = None
    seed: int = 0
    path: str | None = None
    draw: Literal["windows", "lines"] = "windows"

    def __post_init__(self):
        check(self, "calib")
        self.set_source("calib")
        if self.draw == "lines" and self.source not in ("c4", "nano"):
            raise ValueError(f"calib.draw=lines needs documents: calib.source c4 or nano, not {self.source}")
        n, length = (64, 256) if self.source == "nano" else (128, 2048)
        for name, default in (("n", n), ("length", length)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.source == "nano" and self.n * self.length > NANO_TOKENS:
            raise ValueError(
                f"calib.n={self.n} windows of calib.length={self.length} are more than the embedded world gives, "
                f"{NANO_TOKENS} tokens; lower either"
            )

    def settings(self) -> dict:
        """The part of a record's identity that needs no data. A path is not in it: the tokens identify the text."""
        return dict(source=self.source, n=self.n, length=self.length, seed=self.seed, draw=self.draw)

    def science(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> dict:
        """What identifies this data in a record: the settings and the hash of the tokens."""
        return self.settings() | {"data": sha256_of_tokens(self.tokens(tokenizer, data_dir))}

    def draw_tokens(self, encoder: Encoder, data_dir: str | None) -> Tensor:
        rng = random.Random(self.seed)
        if self.draw == "lines":
            if self.source == "nano":  # random by themselves, and more than enough
                documents = islice(world.documents("calib", seed=self.seed), 100 * self.n)
            else:
                rng.shuffle(documents := list(self.documents(data_dir)))
            return lines(documents, encoder, self.n, self.length)
        if self.source == "c4":
            return long_windows(self.documents(data_dir), encoder, self.n, self.length, rng)
        if self.source == "nano":
            ids_T = nano_ids("calib", encoder, self.seed, at_least=self.n * self.length)
        else:
            text = read_text(self.path) if self.source == "text" else "\n\n".join(self.documents(data_dir))
            ids_T = encoder.ids(text)
        found = len(ids_T) // self.length
        if found < self.n:
            raise ValueError(
                f"asked for {self.n} calibration windows of {self.length} tokens, but {self.path or self.source} has "
                f"only {len(ids_T)} tokens, {found} windows; use a longer text, or lower calib.n or calib.length"
            )
        if self.source == "wikitext2":
            starts = [rng.randint(0, len(ids_T) - self.length - 1) for _ in range(self.n)]
        elif self.source == "text":
            starts = [i * self.length for i in rng.sample(range(found), self.n)]
        else:
            starts = range(0, self.n * self.length, self.length)
        return torch.stack([ids_T[i : i + self.length] for i in starts])


@dataclass(frozen=True)
class Corpus(Text):
    """ids_T of one evaluation text; a ``path`` is read instead of the source, and without either the source is nano.

    nano: documents of the test split. wikitext2: the raw test rows joined by blank lines. c4: the first 256 * 2048
    tokens of the first 1,100 documents of the validation shard, joined by spaces ("c4-new"); with ``c4: released`` the
    study's 256 windows, joined: 2,048 tokens of a given document from a given token on, or fewer where the document
    ends. (The study drew these places with another tokenizer.)
    """

    splits: ClassVar = {"c4": "validation", "wikitext2": "test"}

    source: Source | None = None
    path: str | None = None
    c4: Literal["head", "released"] = "head"

    def __post_init__(self):
        check(self, "eval")
        self.set_source("eval")

    def draw_tokens(self, encoder: Encoder, data_dir: str | None) -> Tensor:
        if self.source == "nano":
            return nano_ids("test", encoder, seed=0)
        if self.source == "wikitext2":
            return encoder.ids("\n\n".join(self.documents(data_dir)))
        if self.source == "c4" and self.c4 == "released":
            return released_c4(self.documents(data_dir), encoder)
        if self.source == "c4":
            return encoder.ids(" ".join(self.documents(data_dir)[:C4_DOCUMENTS]))[:C4_TOKENS]
        if not len(ids_T := encoder.ids(read_text(self.path))):
            raise ValueError(f"{self.path} holds no text; give a file with text in it")
        return ids_T


def sha256_of_tokens(ids: Tensor) -> str:
    """16 hex digits of the SHA-256 of shape and int64 values."""
    ids = ids.to(torch.int64).cpu().contiguous()
    return hashlib.sha256(repr(tuple(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()[:16]
