"""An embedded world and three small Qwen3 models trained on it, so that the whole study runs offline.

``experiments/nano_training`` of the repository trained the models and gave them the outlier channels of large models.

    lexicon.py    the words and phrasings
    facts.py      people, towns and trades, drawn from a seed
    world.py      documents about them (train, calib, test) and four-choice questions
    models/       nano-s, nano-m, nano-l: bf16 checkpoints with tokenizer and training log
"""

from pathlib import Path

SIZES = ("s", "m", "l")


def model_path(size: str) -> Path:
    """Folder of a shipped model, a Hugging Face checkpoint; `size` is one of s, m, l."""
    if size not in SIZES:
        raise ValueError(f"unknown nano size {size!r}; use one of {', '.join(SIZES)}")
    return Path(__file__).parent / "models" / f"nano-{size}"
