"""An embedded world and three small Qwen3 models trained on it, so that the whole study runs offline.

Real checkpoints need a hub, and random weights cannot be hurt by quantization. So the package carries a
world of its own: `world` writes its texts and asks its questions, `train` trains the models under `models/`,
and `outliers` gives them the outlier channels that large models grow and small ones do not.

    lexicon.py    the words and phrasings
    world.py      facts, documents (train, calib, test), four-choice questions
    tokenizer.py  a byte-level BPE of 1024 entries
    train.py      `python -m qbench.nano.train --size l`
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
