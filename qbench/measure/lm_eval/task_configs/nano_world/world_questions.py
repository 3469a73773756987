"""The nano world's questions as the data set of an lm-eval task, see _subject.yaml."""

from datasets import Dataset

from qbench.nano import world

SHOTS = 5


def dataset(subject: str, **_) -> dict[str, Dataset]:
    """Splits `dev` (the first five questions, for few-shot prompts) and `test` (the others) of a subject.

    The five are never scored, with or without shots, so that both score the same questions.
    """
    rows = world.questions()[subject]
    return {"dev": Dataset.from_list(rows[:SHOTS]), "test": Dataset.from_list(rows[SHOTS:])}
