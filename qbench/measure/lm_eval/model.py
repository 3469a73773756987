"""The model as lm-eval calls it; it forwards the tokens that requests share only once.

``PrefixTreeLM`` answers the requests of any likelihood task with lm-eval's own tokenization, truncation and arithmetic
(log-softmax in float32), so that its answers are ``HFLM``'s up to rounding. The requests form a tree of tokens
(``prefix_tree``), each stretch of which is forwarded once, and the output head is applied to scored positions alone.
All of MMLU, 5-shot, takes about a seventh of the tokens.

HFLM cannot score one kind of request: where a tokenizer merges the end of the context with the whole continuation
(Qwen's makes ":A" of "Answer:" and "A"), no tokens are left for it. Here the two are then encoded apart, as in the
original MMLU.

Dimensions: Q tokens of a forward pass, D model width, V vocabulary, n scored positions.
"""

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import DynamicCache

from qbench.measure.base import Context
from qbench.measure.lm_eval.prefix_tree import Pack, Step, Tree
from qbench.progress import Progress

PACK = {"cpu": 256, "cuda": 2048}  # tokens per forward pass
HEAD_FLOATS = 2**25  # logits held at a time


class PrefixTreeLM(HFLM):
    """A causal model for lm-eval; ``tokens`` counts what it has forwarded.

    ``max_length``: the longest input in tokens, longer ones are cut from the left; None: the model's own. A forward
    pass takes PACK tokens, or one longer sequence. Every layer's attention must reach all earlier tokens.
    """

    def __init__(self, model: nn.Module, ctx: Context, max_length: int | None):
        settings = dict(max_length=max_length, add_bos_token=False, softmax_dtype="float32")
        with without_warnings():
            super().__init__(pretrained=model, tokenizer=ctx.tokenizer, batch_size=1, **settings)
        self.tokens = 0
        self.tok_encode = lru_cache(maxsize=2)(super().tok_encode)  # the choices of a question share their context

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if continuation and not continuation_ids:
            continuation_ids = self.tok_encode(context[len(context.rstrip()) :] + continuation)
        return context_ids, continuation_ids

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each (strings, context, continuation)."""
        if not requests:
            return []
        longest = self.max_length
        tree = Tree([_input(what, context, continuation, longest) for what, context, continuation in requests])
        asked = defaultdict(list)
        for i, row in enumerate(tree.row):
            asked[row].append(i)
        likelihood, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
        cache = DynamicCache()
        progress = Progress(total=len(requests), desc="tasks", unit="requests")
        for step in tree.plan(PACK.get(self.device.type, PACK["cuda"])):
            pack = tree.pack(step)
            of, places, targets = _scored(tree, step, pack, asked, requests)
            if len(pack.ids_Q):
                cache = cache if step.start else DynamicCache()
                cache.crop(step.start - cache.get_seq_length())
                hidden_QD = self._hidden(pack, step, cache)
                for some, logp, best in self._predictions(hidden_QD, places, targets):
                    np.add.at(likelihood, of[some], logp)
                    np.logical_and.at(greedy, of[some], best)
            if step.stop is None:
                progress.update(sum(len(asked[row]) for row in range(step.first, step.last)))
        progress.close()
        return list(zip(likelihood.tolist(), greedy.tolist()))

    def _hidden(self, pack: Pack, step: Step, cache: DynamicCache) -> Tensor:
        """hidden_QD of a pack's tokens, which follow those in the cache and are added to it."""
        self.tokens += len(pack.ids_Q)
        inputs = dict(input_ids=torch.from_numpy(pack.ids_Q)[None].to(self.device))
        if pack.sees_QQ is not None:
            sees = F.pad(torch.from_numpy(pack.sees_QQ), (step.start, 0), value=True).to(self.device)
            mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=self.device)
            inputs["attention_mask"] = mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)[None, None]
            inputs["position_ids"] = torch.from_numpy(pack.depth_Q)[None].to(self.device)
        cached = step.start > 0 or step.stop is not None
        inputs |= dict(past_key_values=cache if cached else None, use_cache=cached)
        return self.model.base_model(**inputs).last_hidden_state[0]

    def _predictions(self, hidden_QD: Tensor, places: np.ndarray, targets: np.ndarray):
        """Yields, for a bounded number of scored positions at a time: their indices, the log-probabilities of their
        targets, and whether these are the most likely tokens."""
        head = self.model.get_output_embeddings()
        unique, which = np.unique(places, return_inverse=True)
        at_once = max(1, HEAD_FLOATS // self.model.config.vocab_size)
        for a in range(0, len(unique), at_once):
            logits_nV = head(hidden_QD[torch.from_numpy(unique[a : a + at_once]).to(self.device)])
            logp_nV = F.log_softmax(logits_nV, dim=-1, dtype=self.softmax_dtype)
            some = np.flatnonzero((which >= a) & (which < a + at_once))
            position = torch.from_numpy(which[some] - a).to(self.device)
            target = torch.from_numpy(targets[some]).to(self.device)
            best = logp_nV.argmax(-1)[position] == target
            yield some, logp_nV[position, target].double().cpu().numpy(), best.cpu().numpy()


def _input(strings, context: list[int], continuation: list[int], longest: int) -> list[int]:
    """What the model reads: all tokens but the last, at most ``longest`` of them, cut from the left."""
    if not context or not 0 < len(continuation) <= longest:
        raise ValueError(
            f"a request has {len(context)} tokens of context and {len(continuation)} of continuation, but needs at "
            f"least 1 of context and 1 to {longest} of continuation: {str(strings)[-200:]}"
        )
    return (context + continuation)[-(longest + 1) :][:-1]


def _scored(tree: Tree, step: Step, pack: Pack, asked: dict[int, list[int]], requests: list):
    """(request, place in Q, target token) of each position that this step scores, as three arrays."""
    of, places, targets = [], [], []
    for row, path in zip(range(step.first, step.last), pack.paths, strict=True):
        for i in asked[row]:
            continuation = requests[i][2]
            begin = int(tree.length[row]) - len(continuation)
            a, b = max(begin, step.start), step.start + len(path)
            if a < b:
                of += [i] * (b - a)
                places += path[a - step.start :].tolist()
                targets += continuation[a - begin : b - begin]
    return np.array(of, dtype=int), np.array(places, dtype=int), np.array(targets, dtype=int)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps lm-eval from warning about what is intended (a model object, a custom data set), and it and ``datasets``
    from showing progress bars."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
