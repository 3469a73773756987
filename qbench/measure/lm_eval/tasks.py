"""Multiple-choice accuracy and document perplexity by lm-eval, the harness the papers use.

``nano_world`` and ``mmlu_hendrycks`` are qbench's (``own_tasks``). Every other task that scores likelihoods, mmlu, piqa
or wikitext, has lm-eval's own definition. No chat template and no BOS token is added.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import numpy as np
from torch import nn

from qbench.costs import Work, head_flops, pair_flops
from qbench.data.windows import Encoder
from qbench.measure.base import Context, Measure, mean_metric
from qbench.measure.perplexity import perplexity
from qbench.record import Metric
from qbench.settings import Positive, Range
from qbench.shape import Shape

if TYPE_CHECKING:
    from qbench.measure.lm_eval.requests import Requests

SIZES = {  # questions, tokens forwarded, (query, key) pairs of attention, and positions at which logits are taken:
    # counted with Qwen3's tokenizer (nano_world: its own), shared stretches forwarded once, 2,048 tokens per pass
    "piqa": (1838, 80_315, 141_011_716, 83_560),
    "arc_easy": (2376, 82_814, 148_363_997, 42_762),
    "arc_challenge": (1172, 51_987, 90_145_454, 28_482),
    "hellaswag": (10_042, 1_224_000, 2_103_407_000, 931_000),  # from 1,916 of its questions, multiplied
    "winogrande": (1267, 27_332, 50_944_226, 14_206),
    "boolq": (3270, 410_188, 734_291_348, 6540),
    "mmlu": (14_042, 1_336_681, 3_297_311_649, 56_168),
    "mmlu_hendrycks": (14_042, 1_336_681, 3_297_311_649, 56_168),  # mmlu's questions with other spaces
    "nano_world": (737, 4497, 921_155, 2948),
}


@dataclass(frozen=True)
class Tasks(Measure):
    """``{task}/{metric}`` for every task, ``{group}/{metric}`` for every group asked for.

    A group's value is the micro average: the mean over all its questions, not over its tasks. Its samples are the
    questions' 0 or 1, task after task in the group's order; the tasks of a group carry no samples of their own. The
    samples of lm-eval's perplexities are log-perplexities (of bits_per_byte bits).

    ``num_fewshot``: examples per prompt. ``limit``: only the first documents of every task, this many. ``max_length``:
    the longest input in tokens, by default the model's own; it cuts long few-shot prompts from the left, and sets the
    window of wikitext and c4. ``max_prompt``: while a prompt has more tokens than this, its last example is dropped, as
    the Qwen3 study does with 2048; by default all examples stay.
    """

    name = "tasks"

    tasks: tuple[str, ...] = ()
    num_fewshot: Annotated[int, Range(0)] = 0
    limit: Positive | None = None
    max_length: Positive | None = None
    max_prompt: Positive | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.tasks:
            raise ValueError("eval.tasks is empty; name at least one lm-eval task")

    def requests(self, ctx: Context) -> "Requests":
        """The tasks with their requests; prompts depend on the tokenizer only where max_prompt is set."""
        from qbench.measure.lm_eval.requests import build_requests  # importing lm-eval takes seconds; a plan needs none

        encoder = None if self.max_prompt is None else Encoder.of(ctx.tokenizer)
        data_dir = ctx.data_dir and str(ctx.data_dir)
        return build_requests(self.tasks, self.num_fewshot, self.limit, data_dir, self.max_prompt, encoder)

    def hub_files(self) -> list:
        from qbench.measure.lm_eval.requests import hub_files

        return hub_files(self.tasks, self.num_fewshot)

    def settings(self) -> dict:
        return super().settings() | {"lm_eval": ".".join(version("lm_eval").split(".")[:2])}

    def data(self, ctx: Context) -> dict:
        """``tasks`` with their versions, the hash of all requests, and the commits of what came from the Hub."""
        found = self.requests(ctx)
        sets = {"data_sets": found.data_sets} if found.data_sets else {}
        return {"tasks": found.versions, "data": found.data} | sets

    def work(self, shape: Shape) -> Work:
        total = Work()
        for task in self.tasks:
            if task not in SIZES:
                total += Work(unknown=(f"task {task}, whose size is not known",))
                continue
            questions, tokens, pairs, scored = SIZES[task]
            asked = self.limit * (57 if "mmlu" in task else 1) if self.limit else questions  # a limit is per subject
            share = min(1.0, asked / questions)
            flops = 2 * shape.linear_parameters * tokens + pair_flops(shape, pairs)
            total += Work(model=(flops + head_flops(shape, scored)) * share)
        return total

    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        from qbench.measure.lm_eval.model import PrefixTreeLM

        found = self.requests(ctx)
        outcomes = found.outcomes(PrefixTreeLM(model, ctx, self.max_length))
        grouped = {task for members in found.groups.values() for task in members}
        metrics = {}
        for group, members in found.groups.items():
            for metric in outcomes[members[0]]:
                values = [outcomes[task].get(metric) for task in members]
                if None not in values and _scalar(values[0]):
                    mean = mean_metric([x for v in values for x in v], "fraction")
                    metrics[f"{group}/{metric}"] = replace(mean, **found.declared(metric, members))
        for task, by_metric in outcomes.items():
            for metric, values in by_metric.items():
                result = summary(metric, values, found.tasks[task].aggregation()[metric])
                samples = None if task in grouped else result.samples
                metrics[f"{task}/{metric}"] = replace(result, samples=samples, **found.declared(metric, [task]))
        return metrics


def summary(metric: str, values: list, aggregate: Callable) -> Metric:
    """One task's metric: a mean of numbers, a perplexity of (log-likelihood, length) pairs, or lm-eval's."""
    if _scalar(values):
        return mean_metric([float(v) for v in values], "fraction")
    if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        return _perplexity(metric, values)
    return Metric(value=float(aggregate(values)), unit=metric, n=len(values))


def _perplexity(metric: str, values: list[tuple[float, int]]) -> Metric:
    """exp of the ratio sum(NLL) / sum(length). Its samples are linear in both sums, so that their mean is the ratio and
    their standard error that of the ratio (delta method)."""
    loglikelihood, length = np.array(values, dtype=np.float64).T
    nll = -loglikelihood / (math.log(2) if metric == "bits_per_byte" else 1)
    ratio = nll.sum() / length.sum()
    samples = (ratio + (nll - ratio * length) / length.mean()).tolist()
    return mean_metric(samples, "bits/byte") if metric == "bits_per_byte" else perplexity(samples)


def _scalar(values: list) -> bool:
    return isinstance(values[0], (int, float, np.number))
