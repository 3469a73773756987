"""The examples in a prompt: how many, and fewer where the prompt would be too long."""

from unittest import mock

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
    """Makes ``task`` leave out the last examples of a prompt, one by one, while it exceeds ``max_prompt`` tokens.

    A prompt's examples are drawn once: fewer are the first of these.
    """
    whole, draw = task.fewshot_context, task.sampler.sample

    def context(doc: dict, num_fewshot: int, **settings) -> str | list[str]:
        drawn: list[dict] = []

        def sample(n: int, **settings) -> list[dict]:
            drawn[:] = drawn or draw(n=n, **settings)
            return drawn[:n]

        with mock.patch.object(task.sampler, "sample", sample):
            for shots in range(num_fewshot, -1, -1):
                prompt = whole(doc, num_fewshot=shots, **settings)
                each = [prompt] if isinstance(prompt, str) else prompt
                if max(len(encoder.ids(text)) for text in each) <= max_prompt:
                    break
        return prompt

    task.fewshot_context = context
