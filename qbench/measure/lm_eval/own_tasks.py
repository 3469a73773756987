"""The task groups that qbench adds to lm-eval's own: ``nano_world``, and ``mmlu_hendrycks``.

``mmlu_hendrycks`` is MMLU in the prompt of its authors' own code (Hendrycks et al., arXiv 2009.03300). Examples show
" A" after "Answer:", but the scored token is the letter without a space. Tokenizers such as Qwen's merge the colon with
a letter right behind it; qbench's model encodes the two apart, and plain ``HFLM`` stops there, as its rule leaves no
tokens to score. The authors read the questions with pandas, which turns the choice "None" (10 of them, in 4 subjects)
into "nan"; here it stays "None".

``nano_world`` asks about the embedded world: cloze questions with the four choices as continuations.

In both groups accuracy is the mean over all questions, not over subjects.
"""

from datasets import Dataset
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from qbench.nano import world

SHOTS = 5  # questions per nano subject that serve as examples
MMLU_SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()  # noqa: SIM905
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
    for group, tasks in (("mmlu_hendrycks", map(_mmlu, MMLU_SUBJECTS)), ("nano_world", map(_nano, world.SUBJECTS))):
        tasks = list(tasks)
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
