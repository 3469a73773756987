"""lm-eval's tasks as qbench runs them: loaded and rendered once per process, scored for many models.

``lm_eval.simple_evaluate`` renders every prompt anew for each model; a sweep of a hundred small models would spend its
time there. Tasks, prompts, tokenization and metrics are lm-eval's own code, seeds are its defaults, no chat template is
applied, and the tests compare the results with ``simple_evaluate``'s.
"""

import difflib
import hashlib
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from unittest import mock

import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.task import TaskConfig
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from qbench.data.sources import HubFile
from qbench.data.windows import Encoder
from qbench.measure.lm_eval import own_tasks
from qbench.measure.lm_eval.local_files import hub_files_of, pinned_data_sets
from qbench.measure.lm_eval.model import without_warnings

COMMON = ("arc", "c4", "hellaswag", "mmlu/default", "piqa", "super_glue/boolq", "wikitext", "winogrande")


@dataclass(frozen=True)
class Requests:
    """Loaded tasks with their requests: one per choice, in the order of documents and choices.

    ``groups`` maps a requested group or tag to its tasks; ``versions`` has lm-eval's version of every requested name;
    ``data`` is a hash of every prompt, choice and right answer as rendered; ``data_sets`` has the commits of the Hub.
    """

    tasks: dict[str, Task]
    groups: dict[str, list[str]]
    versions: dict[str, str]
    data: str
    data_sets: dict[str, str]

    def outcomes(self, lm: HFLM) -> dict[str, dict[str, list]]:
        """{task: {metric: one outcome per document, in data order}}, by lm-eval's ``process_results``."""
        by_type = defaultdict(list)
        for task in self.tasks.values():
            for request in task.instances:
                request.resps, request.filtered_resps = [], {}
                by_type[request.request_type].append(request)
        for kind, requests in by_type.items():
            responses = getattr(lm, kind)(requests, disable_tqdm=len(requests) < 10_000)
            for request, response in zip(requests, responses, strict=True):
                request.resps.append(response)
        return {name: _outcomes(task) for name, task in self.tasks.items()}

    def declared(self, metric: str, tasks: list[str]) -> dict:
        """How tables show ``metric``: whether more is better, as lm-eval says it, and what guessing gives."""
        found, chance = [self.tasks[name] for name in tasks], None
        if metric in ("acc", "acc_norm") and all(task.OUTPUT_TYPE == "multiple_choice" for task in found):
            shares = [1 / len(choices) for task in found for choices in _by_document(task)]
            chance = sum(shares) / len(shares)
        return {"higher_is_better": found[0].higher_is_better().get(metric), "chance": chance}


@lru_cache(maxsize=4)
def build_requests(
    names: tuple[str, ...],
    num_fewshot: int,
    limit: int | None,
    data_dir: str | None,
    max_prompt: int | None = None,
    encoder: Encoder | None = None,
) -> Requests:
    """The tasks ``names``, ready to score; examples are dropped while a prompt has more than ``max_prompt`` tokens.

    Raises: ValueError for an unknown name, with the names near to it, and for a task that cannot be run like this.
    """
    manager = task_manager(names)
    with without_warnings(), pinned_data_sets(data_dir, num_fewshot) as commits:
        loaded = manager.load(list(names))
    tasks, groups = loaded["tasks"], loaded["groups"]
    compiled = lru_cache(maxsize=None)(lm_eval.utils.env.from_string)  # lm-eval compiles it once per document
    for name, task in tasks.items():
        if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood", "loglikelihood_rolling"):
            raise ValueError(f"task {name} generates text; qbench scores likelihoods only, so choose another task")
        set_examples(task, num_fewshot)
        if num_fewshot and max_prompt is not None:
            drop_examples(task, max_prompt, encoder)
        with without_warnings(), mock.patch.object(lm_eval.utils.env, "from_string", compiled):
            task.build_all_requests(limit=limit)
    members, versions = {}, {}
    for name in names:
        found = groups.get(name) or tasks.get(name)  # neither for a tag, which has no version
        versions[name] = str(getattr(found, "version", None) or getattr(found, "VERSION", None) or "none")
        if name in groups:
            members[name] = [task.task_name for task in groups[name].get_all_tasks()]
        elif name not in tasks:
            members[name] = sorted(manager.task_index[name].tags)
    return Requests(tasks, members, versions, _hash(tasks), commits)


def set_examples(task: Task, shots: int) -> None:
    """Makes every prompt of ``task`` show ``shots`` examples."""
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


def hub_files(names: tuple[str, ...], num_fewshot: int) -> list[HubFile | tuple[str, str | None]]:
    """What the tasks ``names`` read from the Hub, without reading it."""
    configs = []

    def note(task, config=None, **_):  # replaces the constructor of a task, which reads its data
        task._config = TaskConfig(**config)
        configs.append(config)

    with without_warnings(), mock.patch.object(ConfigurableTask, "__init__", note):
        task_manager(names).load(list(names))
    return [file for config in configs for file in hub_files_of(config, num_fewshot)]


def task_manager(names: tuple[str, ...]) -> TaskManager:
    """The smallest index that knows all ``names``, since the whole of lm-eval's takes seconds to build."""
    for folders in ((), COMMON, None):
        manager = _index(folders)
        unknown = [name for name in names if name not in manager.task_index]
        if not unknown:
            return manager
    near = difflib.get_close_matches(unknown[0], manager.task_index, n=5, cutoff=0.5)
    raise ValueError(
        f"lm-eval {lm_eval.__version__} knows no task {unknown[0]!r}; "
        + (f"near names: {', '.join(near)}" if near else "`lm_eval ls tasks` lists all")
    )


@lru_cache(maxsize=3)
def _index(folders: tuple[str, ...] | None) -> TaskManager:
    """Our tasks and those in some of lm-eval's folders; with None, all of lm-eval's."""
    theirs = [Path(lm_eval.tasks.__file__).parent / folder for folder in folders or ()]
    with without_warnings():
        manager = TaskManager(include_path=theirs, include_defaults=folders is None)
    own_tasks.register(manager)
    return manager


def _outcomes(task: Task) -> dict[str, list]:
    """lm-eval's outcome per document; nan where a likelihood is nan, which argmax would hide."""
    task.apply_filters()
    outcomes = defaultdict(list)
    for requests in _by_document(task):
        responses = [r.filtered_resps[task._filters[0].name] for r in requests]
        broken = any(math.isnan(r[0] if isinstance(r, tuple) else r) for r in responses)
        for metric, value in task.process_results(requests[0].doc, responses).items():
            outcomes[metric].append(math.nan if broken and not isinstance(value, tuple) else value)
    return dict(outcomes)


def _by_document(task: Task) -> list[list[Instance]]:
    return [list(requests) for _, requests in groupby(task.instances, attrgetter("doc_id"))]


def _hash(tasks: dict[str, Task]) -> str:
    sha = hashlib.sha256()
    for name, task in tasks.items():
        for requests in _by_document(task):
            shown = [name, task.doc_to_target(requests[0].doc), [r.args for r in requests]]
            sha.update(json.dumps(shown).encode())
    return sha.hexdigest()[:16]
