"""The task groups that qbench adds to lm-eval's own; their accuracy is the mean over questions, not over subjects.

``nano_world`` asks about the embedded world: cloze questions with the four choices as continuations.

``mmlu_hendrycks`` is MMLU in the prompt of its authors' own code (Hendrycks et al., arXiv 2009.03300). Examples show
" A" after "Answer:", but the scored token is the letter without a space, which qbench's model encodes apart (``model``)
and plain ``HFLM`` cannot score where a tokenizer merges it with the colon, as Qwen's does. The authors read the
questions with pandas, which turns the choice "None" (10 of them, in 4 subjects) into "nan"; here it stays "None".
"""

from pathlib import Path

import lm_eval.tasks
from datasets import Dataset
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from qbench.nano import world

SHOTS = 5  # questions per nano subject that serve as examples
MMLU_YAMLS = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"  # lm-eval's own, one per subject
MMLU_QUESTION = "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
COMMON = {
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "dev",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


def register(manager: TaskManager) -> None:
    """Adds both groups and their tasks to the index of ``manager``."""
    subjects = sorted(path.stem.removeprefix("mmlu_") for path in MMLU_YAMLS.glob("mmlu_*.yaml"))
    groups = {"mmlu_hendrycks": [*map(_mmlu, subjects)], "nano_world": [*map(_nano, world.SUBJECTS)]}
    for group, tasks in groups.items():
        mean = {"metric": "acc", "weight_by_size": True}
        names = [task["task"] for task in tasks]
        config = {"group": group, "task": names, "aggregate_metric_list": [mean], "metadata": {"version": 1.0}}
        for entry in (*tasks, config):
            TaskIndex.process_cfg(entry, None, manager.task_index)


def _mmlu(subject: str) -> dict:
    about = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}."
    return COMMON | {
        "task": f"mmlu_hendrycks_{subject}",
        "dataset_path": "cais/mmlu",
        "dataset_name": subject,
        "description": f"{about}\n\n",
        "fewshot_config": {"sampler": "first_n", "target_delimiter": " "},
        "doc_to_text": MMLU_QUESTION,
        "doc_to_choice": list("ABCD"),
        "target_delimiter": "",
        "num_fewshot": 5,
    }


def _nano(subject: str) -> dict:
    return COMMON | {
        "task": f"nano_{subject}",
        "custom_dataset": nano_dataset,
        "dataset_kwargs": {"subject": subject},
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
    }


def nano_dataset(subject: str, **_) -> dict[str, Dataset]:
    """Splits ``dev`` (the first ``SHOTS`` questions, for few-shot prompts) and ``test`` (the others) of a subject.

    The examples are never scored, with or without shots, so that both score the same questions.
    """
    rows = world.questions()[subject]
    return {"dev": Dataset.from_list(rows[:SHOTS]), "test": Dataset.from_list(rows[SHOTS:])}
