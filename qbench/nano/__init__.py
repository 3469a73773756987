"""An embedded world and three small Qwen3 models trained on it, so that the whole study runs offline.

Real checkpoints need a hub, and random weights cannot be hurt by quantization. So the package carries a
world of its own: `world` writes its texts and asks its questions, `train` trains the models under `models/`,
and `outliers` gives them the outlier channels that large models grow and small ones do not.

    lexicon.py    the words and phrasings
    facts.py      people, towns and trades, drawn from a seed
    world.py      documents about them (train, calib, test) and four-choice questions
    tokenizer.py  a byte-level BPE of 1024 entries
    trainings.py  shape and schedule of each model
    train.py      `python -m qbench.nano.train --size l`
    quiz.py       `python -m qbench.nano.quiz --size l`: accuracy by subject
    outliers.py   a function-preserving rescale of a few channels
    models/       nano-s, nano-m, nano-l: bf16 checkpoints with tokenizer and training log
"""

from pathlib import Path

SIZES = ("s", "m", "l")


def model_path(size: str) -> Path:
    """Folder of a shipped model, a Hugging Face checkpoint; `size` is one of `s`, `m`, `l`."""
    if size not in SIZES:
        raise ValueError(f"unknown nano size {size!r}; use one of {', '.join(SIZES)}")
    return Path(__file__).parent / "models" / f"nano-{size}"
