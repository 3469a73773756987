"""Which tables and figures exist. One more is one more ``TableSpec`` here."""

import re
from collections.abc import Iterable

from qbench.report.quality.table import TableSpec

ZERO_SHOT = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq")


def specs(sciences: Iterable[dict]) -> list[TableSpec]:
    """The tables that ``sciences`` give rise to: the nano study's, and one for each other family of models.

    A family is the model name up to its first "-": qwen3-0.6b and qwen3-8b-base are both in ``qwen3_matrix``.
    """
    families = sorted({family(s) for s in sciences}, key=lambda f: (f != "nano", f))
    return [spec for f in families for spec in (nano() if f == "nano" else [generic(f)])]


def family(science: dict) -> str:
    name = re.sub(r"\W+", "_", science["model"]["name"].split("-")[0].lower())
    return name[:64] or "unnamed"  # it is part of file names


def nano() -> list[TableSpec]:
    matrix = TableSpec(
        name="nano_matrix",
        caption="The study in small: five methods on the embedded models",
        keep=lambda s: family(s) == "nano",
        columns=("nano/ppl", "*/ppl", "nano/kl", "nano/top1", "nano_world/acc", "[!n]*/acc*"),
        summary=("nano/ppl", "nano_world/acc", "*/kl", "*/acc"),
        figures=("nano/ppl", "nano/kl", "nano_world/acc"),
    )
    subjects = TableSpec(
        name="nano_subjects",
        caption="Accuracy on the subjects of the nano tasks",
        keep=lambda s: family(s) == "nano",
        columns=("nano_*/acc",),
        delta=False,
    )
    return [matrix, subjects]


def generic(name: str) -> TableSpec:
    """Perplexities, divergences, zero-shot tasks in the paper's order, MMLU without subjects, any other."""
    zero_shot = tuple(f"{task}/acc*" for task in ZERO_SHOT)
    rest = ("mmlu/acc", "[!m]*/acc*", "m[!m]*/acc*")
    return TableSpec(
        name=f"{name}_matrix",
        caption=f"Post-training quantization of {name} models",
        keep=lambda s: family(s) == name,
        columns=("wikitext2/ppl*", "c4/ppl*", "*/ppl", "*perplexity", "*/kl", "*/top1", *zero_shot, *rest),
        summary=("wikitext2/ppl", "mmlu/acc", "*/acc", "*/ppl", "*/kl"),
        figures=("wikitext2/ppl", "*/kl", "mmlu/acc", "*/ppl", "*/acc"),
    )
