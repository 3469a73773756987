"""Text to token ids: what models are calibrated on and evaluated on.

Two dataclasses name the data by their fields: `Calibration` draws n windows of equal length, `Corpus` is one
long text. Each text comes from one of

    nano        the embedded world (qbench.nano), no files needed
    c4          one pinned shard of allenai/c4, as in the papers
    wikitext2   Salesforce/wikitext, wikitext-2-raw-v1, pinned
    text        any local .txt, .jsonl or .parquet (the latter two with a `text` column)

c4 and wikitext2 come from the Hugging Face Hub, or from `data_dir` (machine.data_dir) where one is given:
parquet files with a `text` column at the places that `qbench.texts` names. The tokens are identified by
`sha256_of_tokens`, so the same text from another place is the same data. No BOS or other special token is
ever added.

Dimensions: T tokens of a text, B windows (or, in the suffix of a window batch, BT: B windows of T tokens).
"""

import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qbench.texts import read, rows, stamp

SOURCES = ("nano", "c4", "wikitext2", "text")
C4_DOCUMENTS, C4_TOKENS = 1100, 256 * 2048
NANO_DOCUMENTS = 640


@dataclass(frozen=True)
class Calibration:
    """`n` windows of `length` tokens, drawn with `seed`; a `path` is read instead of the source.

    Without `n` and `length`: 128 x 2048 as in the papers, 64 x 256 for nano. c4: GPTQ's draw (random
    documents of the shard longer than `length` tokens, of each one window at a random offset), with the
    same random numbers, except that no document is used twice. wikitext2: random windows of the training
    split joined by blank lines, GPTQ's draw too. text: disjoint windows in random order. nano: the first
    windows of the seed's own stream of documents.

    `draw: lines` is how the study's AWQ calibrates: `n` documents of at most `length` tokens in random order, stripped,
    joined without anything between them and cut into as many windows as that gives.

    Raises ValueError where the source holds fewer than asked.
    """

    source: str
    n: int | None = None
    length: int | None = None
    seed: int = 0
    path: str | None = None
    draw: Literal["windows", "lines"] = "windows"

    def __post_init__(self):
        _set_source(self, "calib", self.source)
        if self.draw not in ("windows", "lines"):
            raise ValueError(f"calib.draw must be windows or lines, got {self.draw!r}")
        if self.draw == "lines" and self.source not in ("c4", "nano"):
            raise ValueError(f"calib.draw=lines needs documents: calib.source c4 or nano, not {self.source}")
        n, length = (64, 256) if self.source == "nano" else (128, 2048)
        for name, default in (("n", n), ("length", length)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
            if getattr(self, name) < 1:
                raise ValueError(f"calib.{name} must be at least 1, got {getattr(self, name)}")

    def tokens(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> Tensor:
        """ids_BT, int64 [n, length]; the same tensor on a second call, so do not write into it."""
        return _calibration_ids(self, Encoder.of(tokenizer), data_dir and str(data_dir), stamp(self.path))

    def science(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> dict:
        """What identifies this data in a record; a path does not, the tokens do."""
        data = sha256_of_tokens(self.tokens(tokenizer, data_dir))
        return dict(source=self.source, n=self.n, length=self.length, seed=self.seed, draw=self.draw, data=data)


@dataclass(frozen=True)
class Corpus:
    """One evaluation text; a `path` is read instead of the source, and without either it is nano.

    nano: documents of the test split. wikitext2: the raw test rows joined by blank lines. c4: the first 1,100
    documents of the validation shard joined by spaces, of those the first 256 * 2048 tokens ("c4-new"); with
    `c4: released` the study's 256 windows: 2,048 tokens of a given document from a given token on, or fewer where
    the document ends, one after another. (Its places were drawn with another tokenizer.)
    """

    source: str | None = None
    path: str | None = None
    c4: Literal["head", "released"] = "head"

    def __post_init__(self):
        _set_source(self, "eval", self.source or "nano")
        if self.c4 not in ("head", "released"):
            raise ValueError(f"eval.c4 must be head or released, got {self.c4!r}")

    def tokens(self, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path | None = None) -> Tensor:
        """ids_T, int64; the same tensor on a second call, so do not write into it."""
        return _corpus_ids(self, Encoder.of(tokenizer), data_dir and str(data_dir), stamp(self.path))


def windows(ids_T: Tensor, length: int, limit: int | None = None) -> Tensor:
    """ids_BT: the disjoint windows of `length` tokens, the remainder dropped, at most the first `limit`."""
    count = len(ids_T) // length
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 window, got {limit}")
    if count < 1:
        raise ValueError(
            f"asked for windows of {length} tokens, but the text has only {len(ids_T)} tokens; "
            f"use a longer text or a smaller window"
        )
    return ids_T[: count * length].view(count, length)[:limit]


def sha256_of_tokens(ids: Tensor) -> str:
    """16 hex digits of the SHA-256 of shape and int64 values."""
    ids = ids.to(torch.int64).cpu().contiguous()
    return hashlib.sha256(repr(tuple(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that equals another of the same content, so that caches outlive the tokenizer object."""

    fingerprint: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Encoder":
        return cls(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), tokenizer)

    def ids(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


@lru_cache(maxsize=8)
def _calibration_ids(cal: Calibration, encoder: Encoder, data_dir: str | None, state) -> Tensor:
    rng = random.Random(cal.seed)
    if cal.draw == "lines":
        return _lines(cal, encoder, data_dir, rng)
    if cal.source == "c4":
        return _c4_windows(rows("c4", "train", data_dir), encoder, cal, rng)
    if cal.source == "nano":
        ids_T = _nano_ids("calib", encoder, cal.seed, at_least=cal.n * cal.length)
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


def _lines(cal: Calibration, encoder: Encoder, data_dir: str | None, rng: random.Random) -> Tensor:
    if cal.source == "c4":
        documents = list(rows("c4", "train", data_dir))
        rng.shuffle(documents)
    else:
        from qbench.nano import world

        documents = itertools.islice(world.documents("calib", seed=cal.seed), 100 * cal.n)
    short = (ids_T for text in documents if len(ids_T := encoder.ids(text.strip())) <= cal.length)
    drawn = [ids_T for ids_T in itertools.islice(short, cal.n) if len(ids_T)]
    ids_T = torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)
    if len(drawn) < cal.n or len(ids_T) < cal.length:
        raise ValueError(
            f"asked for {cal.n} calibration documents of at most {cal.length} tokens, but {cal.source} has "
            f"{len(drawn)} with {len(ids_T)} tokens together; lower calib.n, raise calib.length, or give more documents"
        )
    return windows(ids_T, cal.length)


def _c4_windows(documents: Sequence[str], encoder: Encoder, cal: Calibration, rng: random.Random) -> Tensor:
    drawn, seen = [], set()
    while len(drawn) < cal.n:
        if len(seen) == len(documents):
            raise ValueError(
                f"asked for {cal.n} calibration documents longer than {cal.length} tokens, but this part of "
                f"C4 has {len(drawn)} among {len(documents)}; lower calib.n or calib.length, or give more"
            )
        i = rng.randint(0, len(documents) - 1)
        if i in seen:
            continue
        seen.add(i)
        ids_T = encoder.ids(documents[i])
        if len(ids_T) > cal.length:
            start = rng.randint(0, len(ids_T) - cal.length - 1)
            drawn.append(ids_T[start : start + cal.length])
    return torch.stack(drawn)


@lru_cache(maxsize=8)
def _corpus_ids(corpus: Corpus, encoder: Encoder, data_dir: str | None, state) -> Tensor:
    if corpus.source == "nano":
        return _nano_ids("test", encoder, seed=0)
    if corpus.source == "wikitext2":
        return encoder.ids("\n\n".join(rows("wikitext2", "test", data_dir)))
    if corpus.source == "c4" and corpus.c4 == "released":
        return _released_c4(rows("c4", "validation", data_dir), encoder)
    if corpus.source == "c4":
        return encoder.ids(" ".join(rows("c4", "validation", data_dir)[:C4_DOCUMENTS]))[:C4_TOKENS]
    ids_T = encoder.ids(read(corpus.path))
    if not len(ids_T):
        raise ValueError(f"{corpus.path} holds no text; give a file with text in it")
    return ids_T


def _released_c4(documents: Sequence[str], encoder: Encoder) -> Tensor:
    places = json.loads((Path(__file__).parent / "released_c4_windows.json").read_text())
    needed = max(places["document"]) + 1
    if len(documents) < needed:
        raise ValueError(
            f"eval.c4=released asks for document {needed - 1} of the first C4 validation shard, but this part of C4 "
            f"has {len(documents)} documents; give the whole shard, or use eval.c4=head"
        )
    ids = (encoder.ids(documents[d])[i : i + 2048] for d, i in zip(places["document"], places["offset"]))
    return torch.cat(list(ids))


def _nano_ids(split: str, encoder: Encoder, seed: int, at_least: int = 0) -> Tensor:
    from qbench.nano import world

    documents = NANO_DOCUMENTS
    while len(ids_T := encoder.ids(world.text(split, documents, seed=seed))) < at_least:
        documents *= 2
    return ids_T


def _set_source(data: Calibration | Corpus, group: str, source: str) -> None:
    """Sets data.source: `text` where there is a path."""
    if source not in SOURCES:
        raise ValueError(f"{group}.source={source!r} is unknown; use one of {', '.join(SOURCES)}")
    if source == "text" and data.path is None:
        raise ValueError(f"{group}.source=text needs {group}.path=<file>")
    object.__setattr__(data, "source", "text" if data.path else source)
