"""Text to token ids: the data that models are calibrated and evaluated on.

``Calibration`` draws n windows of equal length; ``Corpus`` is one long text. Both are dataclasses whose fields identify
the data. The source of a text is one of

    nano        the embedded world (qbench.nano), no files needed
    c4          one pinned shard of allenai/c4, as in the papers
    wikitext2   Salesforce/wikitext, wikitext-2-raw-v1, pinned
    text        any local .txt, .jsonl or .parquet (the latter two with a ``text`` column)

c4 and wikitext2 come from the Hugging Face Hub, or from files below ``data_dir`` (machine.data_dir; the places are in
``qbench.data.pins``). Records identify data by ``sha256_of_tokens``, so the same text from another place is the same
data. No BOS or other special token is added.

Dimensions: T tokens of a text, B windows (as a suffix of a batch of windows, BT: B windows of T tokens).
"""

import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qbench.data.pins import HubFile
from qbench.data.texts import HUB, hub_file, read, rows, stamp
from qbench.data.windows import Encoder, lines, long_windows, nano_ids, released_c4
from qbench.settings import Positive, check

Source = Literal["nano", "c4", "wikitext2", "text"]
EVALUATED = {"c4": "validation", "wikitext2": "test"}  # the split of each text
C4_DOCUMENTS, C4_TOKENS = 1100, 256 * 2048
TOKENS = {"wikitext2": 299_078, "c4": C4_TOKENS, "nano": 30_785}  # of each text, by Qwen3's or the nanos' tokenizer
NANO_TOKENS = 2**22  # the world's text is endless; this much is written and tokenized within a minute


@dataclass(frozen=True)
class Calibration:
    """``n`` windows of ``length`` tokens, drawn with ``seed``; a ``path`` is read instead of the source.

    By default 128 x 2048 as in the papers, 64 x 256 for nano. c4: GPTQ's draw, one window at a random offset per random
    document of more than ``length`` tokens, with the same random numbers, except that no document is used twice.
    wikitext2: random windows of the training split joined by blank lines, also GPTQ's draw. text: disjoint windows in
    random order. nano: the first windows of the documents that ``seed`` gives.

    ``draw: lines`` is the draw of the study's AWQ: ``n`` documents of at most ``length`` tokens in random order,
    stripped, joined without a separator and cut into as many windows as that gives.

    Raises: ValueError where the source holds less than asked for.
    """

    source: Source
    n: Positive | None = None
    length: Positive | None = None
    seed: int = 0
    path: str | None = None
    draw: Literal["windows", "lines"] = "windows"

    def __post_init__(self):
        check(self, "calib")
        _set_source(self, "calib")
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

    def tokens(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> Tensor:
        """ids_BT, int64 [n, length]; the same tensor on a second call, which must not be written into."""
        return _calibration_ids(self, Encoder.of(tokenizer), data_dir and str(data_dir), stamp(self.path))

    def hub_files(self) -> list[HubFile]:
        """What is read from the Hub where there is no data_dir."""
        return [hub_file(self.source, "train")] if self.source in HUB else []

    def settings(self) -> dict:
        """The part of a record's identity that needs no data. A path is not in it: the tokens identify the text."""
        return dict(source=self.source, n=self.n, length=self.length, seed=self.seed, draw=self.draw)

    def science(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> dict:
        """What identifies this data in a record: the settings and the hash of the tokens."""
        return self.settings() | {"data": sha256_of_tokens(self.tokens(tokenizer, data_dir))}


@dataclass(frozen=True)
class Corpus:
    """One evaluation text; a ``path`` is read instead of the source, and without either the source is nano.

    nano: documents of the test split. wikitext2: the raw test rows joined by blank lines. c4: the first 256 * 2048
    tokens of the first 1,100 documents of the validation shard, joined by spaces ("c4-new"); with ``c4: released`` the
    study's 256 windows, joined: 2,048 tokens of a given document from a given token on, or fewer where the document
    ends. (The study drew these places with another tokenizer.)
    """

    source: Source | None = None
    path: str | None = None
    c4: Literal["head", "released"] = "head"

    def __post_init__(self):
        check(self, "eval")
        _set_source(self, "eval")

    def tokens(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> Tensor:
        """ids_T, int64; the same tensor on a second call, which must not be written into."""
        return _corpus_ids(self, Encoder.of(tokenizer), data_dir and str(data_dir), stamp(self.path))

    def hub_files(self) -> list[HubFile]:
        """What is read from the Hub where there is no data_dir."""
        return [hub_file(self.source, EVALUATED[self.source])] if self.source in HUB else []


def sha256_of_tokens(ids: Tensor) -> str:
    """16 hex digits of the SHA-256 of shape and int64 values."""
    ids = ids.to(torch.int64).cpu().contiguous()
    return hashlib.sha256(repr(tuple(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()[:16]


@lru_cache(maxsize=8)
def _calibration_ids(cal: Calibration, encoder: Encoder, data_dir: str | None, state: tuple | None) -> Tensor:
    rng = random.Random(cal.seed)
    if cal.draw == "lines":
        return lines(_shuffled(cal, data_dir, rng), encoder, cal.n, cal.length)
    if cal.source == "c4":
        return long_windows(_c4(cal, data_dir), encoder, cal.n, cal.length, rng)
    if cal.source == "nano":
        ids_T = nano_ids("calib", encoder, cal.seed, at_least=cal.n * cal.length)
    elif cal.source == "wikitext2":
        ids_T = encoder.ids("\n\n".join(rows("wikitext2", "train", data_dir)))
    else:
        ids_T = encoder.ids(read(cal.path))
    found = len(ids_T) // cal.length
    if found < cal.n:
        raise ValueError(
            f"asked for {cal.n} calibration windows of {cal.length} tokens, but {cal.path or cal.source} has "
            f"only {len(ids_T)} tokens, {found} windows; use a longer text, or lower calib.n or calib.length"
        )
    if cal.source == "wikitext2":
        starts = [rng.randint(0, len(ids_T) - cal.length - 1) for _ in range(cal.n)]
    elif cal.source == "text":
        starts = [i * cal.length for i in rng.sample(range(found), cal.n)]
    else:
        starts = range(0, cal.n * cal.length, cal.length)
    return torch.stack([ids_T[i : i + cal.length] for i in starts])


def _shuffled(cal: Calibration, data_dir: str | None, rng: random.Random) -> Iterable[str]:
    """Documents in random order; those of the embedded world are random by themselves, and more than enough."""
    if cal.source == "nano":
        from qbench.nano import world

        return itertools.islice(world.documents("calib", seed=cal.seed), 100 * cal.n)
    documents = list(_c4(cal, data_dir))
    rng.shuffle(documents)
    return documents


def _c4(cal: Calibration, data_dir: str | None) -> Sequence[str]:
    documents = rows("c4", "train", data_dir)
    if cal.n > len(documents):
        raise ValueError(
            f"asked for {cal.n} calibration documents, but this part of C4 has {len(documents)}; lower calib.n"
        )
    return documents


@lru_cache(maxsize=8)
def _corpus_ids(corpus: Corpus, encoder: Encoder, data_dir: str | None, state: tuple | None) -> Tensor:
    if corpus.source == "nano":
        return nano_ids("test", encoder, seed=0)
    if corpus.source in HUB:
        documents = rows(corpus.source, EVALUATED[corpus.source], data_dir)
    if corpus.source == "wikitext2":
        return encoder.ids("\n\n".join(documents))
    if corpus.source == "c4" and corpus.c4 == "released":
        return released_c4(documents, encoder)
    if corpus.source == "c4":
        return encoder.ids(" ".join(documents[:C4_DOCUMENTS]))[:C4_TOKENS]
    ids_T = encoder.ids(read(corpus.path))
    if not len(ids_T):
        raise ValueError(f"{corpus.path} holds no text; give a file with text in it")
    return ids_T


def _set_source(data: Calibration | Corpus, group: str) -> None:
    """Sets ``data.source``: text where a path is given, nano where neither is."""
    if data.source == "text" and data.path is None:
        raise ValueError(f"{group}.source=text needs {group}.path=<file>")
    object.__setattr__(data, "source", "text" if data.path else data.source or "nano")
