"""lm-eval's tasks as qbench runs them: loaded and rendered once a process, scored for many models.

`lm_eval.simple_evaluate` renders every prompt anew for each model, and its index of 14,000 task files takes
seconds to build; a sweep of a hundred small models would spend its time there. A `Suite` keeps the rendered
requests, so that a second model costs its forward passes and little else. Tasks, prompts, tokenization and
metrics are lm-eval's own code, seeds are its defaults, no chat template is applied, and the tests compare the
results with `simple_evaluate`'s.
"""

import contextlib
import difflib
import hashlib
import io
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unittest import mock

import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.task import TaskConfig
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from qbench.data.windows import Encoder
from qbench.measure.lm_eval.local_files import reading, wanted
from qbench.measure.lm_eval.model import quiet

OUR_TASKS = Path(__file__).parent / "task_configs"
COMMON = ("arc", "c4", "hellaswag", "mmlu/default", "piqa", "super_glue/boolq", "wikitext", "winogrande")


@dataclass(frozen=True)
class Suite:
    """Loaded tasks with their requests: one a choice, in the order of documents and choices.

    `groups` maps a requested group or tag to its tasks' names; `versions` has lm-eval's version of every
    requested name; `data` is a hash of every prompt, choice and right answer as rendered; `data_sets` has the commit
    of every data set that came from the Hub.
    """

    tasks: dict[str, Task]
    groups: dict[str, list[str]]
    versions: dict[str, str]
    data: str
    data_sets: dict[str, str]

    def scores(self, lm: HFLM) -> dict[str, dict[str, list]]:
        """{task: {metric: one outcome a document, in data order}}, by lm-eval's `process_results`."""
        by_type = defaultdict(list)
        for task in self.tasks.values():
            for request in task.instances:
                request.resps, request.filtered_resps = [], {}
                by_type[request.request_type].append(request)
        for kind, requests in by_type.items():
            for request, response in zip(requests, getattr(lm, kind)(requests), strict=True):
                request.resps.append(response)
        return {name: _outcomes(task) for name, task in self.tasks.items()}


def _outcomes(task: Task) -> dict[str, list]:
    """lm-eval's outcome of each document; nan where the model's likelihoods are, which argmax would hide."""
    task.apply_filters()
    outcomes = defaultdict(list)
    for requests in _by_document(task).values():
        responses = [r.filtered_resps[task._filters[0].name] for r in requests]
        broken = any(math.isnan(r[0] if isinstance(r, tuple) else r) for r in responses)
        for metric, value in task.process_results(requests[0].doc, responses).items():
            outcomes[metric].append(math.nan if broken and not isinstance(value, tuple) else value)
    return dict(outcomes)


def _by_document(task: Task) -> dict[int, list[Instance]]:
    documents = defaultdict(list)
    for request in task.instances:
        documents[request.doc_id].append(request)
    return documents


@lru_cache(maxsize=4)
def suite(
    names: tuple[str, ...],
    num_fewshot: int,
    limit: int | None,
    data_dir: str | None,
    max_prompt: int | None = None,
    encoder: Encoder | None = None,
) -> Suite:
    """The tasks of `names`, ready to score; ValueError for an unknown name, with the names near to it.

    With `max_prompt`, examples are dropped while a prompt has more tokens than that by `encoder`.
    """
    manager = find(names)
    with quiet(), reading(data_dir, num_fewshot) as commits:
        loaded = manager.load(list(names))
    tasks, groups = loaded["tasks"], loaded["groups"]
    for name, task in tasks.items():
        _set_fewshot(name, task, num_fewshot)
        if num_fewshot and max_prompt is not None:
            _drop_examples(task, max_prompt, encoder)
        _render(task, limit)
    members = {}
    for name in names:
        if name in groups:
            members[name] = [task.task_name for task in groups[name].get_all_tasks()]
        elif name not in tasks:
            members[name] = sorted(manager.task_index[name].tags)
    versions = {name: _version(groups.get(name) or tasks.get(name)) for name in names}
    return Suite(tasks, members, versions, _hash(tasks), commits)


def hub_files(names: tuple[str, ...], num_fewshot: int) -> list:
    """What the tasks of ``names`` read from the Hub, as ``task_data.wanted`` says, without reading it."""
    configs = []

    def note(task, config=None, **_):  # instead of a task's constructor, which reads its data
        task._config = TaskConfig(**config)
        configs.append(config)

    with quiet(), mock.patch.object(ConfigurableTask, "__init__", note):
        find(names).load(list(names))
    return [file for config in configs for file in wanted(config, num_fewshot)]


def find(names: tuple[str, ...]) -> TaskManager:
    """The smallest index that knows all `names`, since the whole of lm-eval's takes seconds to build."""
    for folders in ((), COMMON, None):
        manager = _index(folders)
        unknown = [name for name in names if name not in manager.task_index]
        if not unknown:
            return manager
    near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=5, cutoff=0.5)
    raise ValueError(
        f"lm-eval {lm_eval.__version__} knows no task {unknown[0]!r}; "
        + (f"near names: {', '.join(near)}" if near else "`lm_eval ls tasks` lists all")
    )


@lru_cache(maxsize=3)
def _index(folders: tuple[str, ...] | None) -> TaskManager:
    """Our tasks and those of some of lm-eval's folders; all of lm-eval's with None."""
    theirs = [Path(lm_eval.tasks.__file__).parent / folder for folder in folders or ()]
    with quiet():
        return TaskManager(include_path=[OUR_TASKS, *theirs], include_defaults=folders is None)


def _set_fewshot(name: str, task: Task, shots: int) -> None:
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood", "loglikelihood_rolling"):
        raise ValueError(f"task {name} generates text; qbench scores likelihoods only, so choose another task")
    if shots and task.get_config("num_fewshot") == 0:
        raise ValueError(f"task {name} is zero-shot by definition, but eval.num_fewshot={shots}; set it to 0")
    if shots > len(task.sampler.df):
        raise ValueError(
            f"task {name} was asked for {shots} examples a prompt, but its few-shot split has "
            f"{len(task.sampler.df)}; lower eval.num_fewshot, or give machine.data_dir the file of that split"
        )
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def _drop_examples(task: Task, max_prompt: int, encoder: Encoder) -> None:
    """Makes the task leave out its prompts' last examples, one by one, while they exceed `max_prompt` tokens."""
    whole, sampler = task.fewshot_context, task.sampler

    def context(doc: dict, num_fewshot: int, **settings) -> str | list[str]:
        with mock.patch.object(task, "sampler", _DrawnOnce(sampler)):
            for shots in range(num_fewshot, -1, -1):
                prompt = whole(doc, num_fewshot=shots, **settings)
                each = [prompt] if isinstance(prompt, str) else prompt
                if max(len(encoder.ids(text)) for text in each) <= max_prompt:
                    break
        return prompt

    task.fewshot_context = context


class _DrawnOnce:
    """Examples drawn once; asked again, it gives the first so many of these."""

    def __init__(self, sampler: ContextSampler):
        self.sampler, self.drawn = sampler, None

    def sample(self, n: int, **settings) -> list[dict]:
        if self.drawn is None:
            self.drawn = self.sampler.sample(n=n, **settings)
        return self.drawn[:n]


def _render(task: Task, limit: int | None) -> None:
    """Builds the task's requests, compiling each template once, where lm-eval does so for each document."""
    compiled = lru_cache(maxsize=None)(lm_eval.utils.env.from_string)
    with (
        mock.patch.object(lm_eval.utils.env, "from_string", compiled),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        task.build_all_requests(limit=limit)


def _version(item) -> str:
    """lm-eval's version of a Group or Task; a tag has none."""
    return str(getattr(item, "version", None) or getattr(item, "VERSION", None) or "none")


def _hash(tasks: dict[str, Task]) -> str:
    sha = hashlib.sha256()
    for name, task in tasks.items():
        for requests in _by_document(task).values():
            shown = [name, task.doc_to_target(requests[0].doc), [r.args for r in requests]]
            sha.update(json.dumps(shown).encode())
    return sha.hexdigest()[:16]
