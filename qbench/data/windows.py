"""Draws windows of token ids from documents, as the code of the papers does: ids_BT, B windows of T tokens."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qbench.nano import world

NANO_DOCUMENTS = 640


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that equals every tokenizer with the same content: a key for caches."""

    fingerprint: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Encoder":
        return cls(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), tokenizer)

    def ids(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def windows(ids_T: Tensor, length: int, limit: int | None = None) -> Tensor:
    """ids_BT: disjoint windows of ``length`` tokens, without the remainder, and at most the first ``limit``."""
    count = len(ids_T) // length
    if count < 1:
        raise ValueError(
            f"asked for windows of {length} tokens, but the text has only {len(ids_T)} tokens; use a longer text or a "
            "smaller window"
        )
    return ids_T[: count * length].view(count, length)[:limit]


def lines(documents: Iterable[str], encoder: Encoder, n: int, length: int) -> Tensor:
    """ids_BT: the first ``n`` documents of at most ``length`` tokens, stripped, joined and cut (llm-awq's draw)."""
    short = (ids_T for text in documents if len(ids_T := encoder.ids(text.strip())) <= length)
    drawn = [ids_T for ids_T in itertools.islice(short, n) if len(ids_T)]
    ids_T = torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)
    if len(drawn) < n or len(ids_T) < length:
        raise ValueError(
            f"asked for {n} calibration documents of at most {length} tokens, but there are "
            f"{len(drawn)} with {len(ids_T)} tokens together; lower calib.n, raise calib.length, or give more documents"
        )
    return windows(ids_T, length)


def long_windows(documents: Sequence[str], encoder: Encoder, n: int, length: int, rng: random.Random) -> Tensor:
    """ids_BT: one window at a random place per random document of more than ``length`` tokens (GPTQ's draw)."""
    drawn, seen = [], set()
    while len(drawn) < n:
        if len(seen) == len(documents):
            raise ValueError(
                f"asked for {n} calibration documents longer than {length} tokens, but this part of "
                f"C4 has {len(drawn)} among {len(documents)}; lower calib.n or calib.length, or give more"
            )
        i = rng.randint(0, len(documents) - 1)
        if i in seen:
            continue
        seen.add(i)
        ids_T = encoder.ids(documents[i])
        if len(ids_T) > length:
            start = rng.randint(0, len(ids_T) - length - 1)
            drawn.append(ids_T[start : start + length])
    return torch.stack(drawn)


def released_c4(documents: Sequence[str], encoder: Encoder) -> Tensor:
    """ids_T: the passages of the first C4 validation shard that the study evaluates on."""
    places = json.loads((Path(__file__).parent / "released_c4_windows.json").read_text())
    needed = max(places["document"]) + 1
    if len(documents) < needed:
        raise ValueError(
            f"eval.c4=released asks for document {needed - 1} of the first C4 validation shard, but this part of C4 "
            f"has {len(documents)} documents; give the whole shard, or use eval.c4=head"
        )
    ids = (encoder.ids(documents[d])[i : i + 2048] for d, i in zip(places["document"], places["offset"]))
    return torch.cat(list(ids))


def nano_ids(split: str, encoder: Encoder, seed: int, at_least: int = 0) -> Tensor:
    """ids_T: documents of the embedded world with at least ``at_least`` tokens."""
    documents = NANO_DOCUMENTS
    while len(ids_T := encoder.ids(world.text(split, documents, seed=seed))) < at_least:
        documents *= 2
    return ids_T
