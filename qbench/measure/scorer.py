"""A model as lm-eval sees it."""

import contextlib
import logging
from functools import lru_cache

import datasets
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn

from qbench.data import Encoder
from qbench.measure.base import Context


class Scorer(HFLM):
    """A model as lm-eval sees it, with log-probabilities in float32.

    Requests that differ in the last token only (A, B, C, D) share one forward pass, which is lm-eval's
    default. Ours is that the output head is applied to the continuations alone, not to every token of a
    long prompt.
    """

    def __init__(self, model: nn.Module, ctx: Context, max_length: int | None):
        settings = dict(max_length=max_length, add_bos_token=False, softmax_dtype="float32")
        with quiet():
            super().__init__(pretrained=model, tokenizer=ctx.tokenizer, batch_size=ctx.batch_size, **settings)
        self._pairs = _pairs(Encoder.of(ctx.tokenizer))
        self._longest = 0

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        key = context, continuation
        if (pair := self._pairs.get(key)) is None:
            pair = super()._encode_pair(context, continuation)
            if len(self._pairs) < 10_000:
                self._pairs[key] = pair
        return pair

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=_few(requests))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=_few(requests))

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        self._longest = max(len(continuation) for _, _, continuation in requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=_few(requests), **kwargs)

    def _model_call(self, inps: Tensor, attn_mask=None, labels=None) -> Tensor:
        """Logits of the last positions only, as many as hold every continuation of the batch.

        Rows are padded with zeros on the right, so a continuation begins at most (trailing zeros + its
        length) before the end. lm-eval counts positions from the end when it gets fewer than it put in.
        """
        padding = (inps.flip(1).ne(0).cumsum(1) == 0).sum(1).max().item()
        with torch.inference_mode():
            return self.model(inps, use_cache=False, logits_to_keep=padding + self._longest).logits


def _few(requests: list) -> bool:
    """Too few to show a progress bar for."""
    return len(requests) < 10_000


@lru_cache(maxsize=2)
def _pairs(encoder: Encoder) -> dict:
    """The token ids of requests already seen by a tokenizer."""
    return {}


@contextlib.contextmanager
def quiet():
    """Keeps lm-eval from warning about what is meant to be so (a model object, a custom data set)."""
    log, bars = logging.getLogger("lm_eval"), not datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
