"""The examples in a prompt: how many, and fewer where the prompt would be too long."""

from unittest import mock

from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED

from qbench.data.windows import Encoder


def set_examples(task: Task, shots: int) -> None:
    """Makes every prompt of ``task`` show ``shots`` examples; ValueError for a task that cannot."""
    if shots and task.get_config("num_fewshot") == 0:
        raise ValueError(f"task {task.task_name} is zero-shot by definition, but eval.num_fewshot={shots}; set it to 0")
    if shots > len(task.sampler.df):
        raise ValueError(
            f"task {task.task_name} was asked for {shots} examples per prompt, but its few-shot split has "
            f"{len(task.sampler.df)}; lower eval.num_fewshot, or give machine.data_dir the file of that split"
        )
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def drop_examples(task: Task, max_prompt: int, encoder: Encoder) -> None:
    """Makes ``task`` leave out the last examples of a prompt, one by one, while it exceeds ``max_prompt`` tokens."""
    whole, sampler = task.fewshot_context, task.sampler

    def context(doc: dict, num_fewshot: int, **settings) -> str | list[str]:
        with mock.patch.object(task, "sampler", SampledOnce(sampler)):
            for shots in range(num_fewshot, -1, -1):
                prompt = whole(doc, num_fewshot=shots, **settings)
                each = [prompt] if isinstance(prompt, str) else prompt
                if max(len(encoder.ids(text)) for text in each) <= max_prompt:
                    break
        return prompt

    task.fewshot_context = context


class SampledOnce:
    """Samples examples at the first call; later calls get the first ``n`` of these."""

    def __init__(self, sampler: ContextSampler):
        self.sampler = sampler
        self.examples: list[dict] | None = None

    def sample(self, n: int, **settings) -> list[dict]:
        if self.examples is None:
            self.examples = self.sampler.sample(n=n, **settings)
        return self.examples[:n]
