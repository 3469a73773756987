"""Where texts come from: the Hugging Face Hub, at pinned revisions, or files of one's own.

With a `data_dir` (machine.data_dir) nothing is asked of the Hub: parquet files with a `text` column are read at the
places in `LOCAL`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

HUB = {
    "c4": dict(path="allenai/c4", revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2"),
    "wikitext2": dict(
        path="Salesforce/wikitext",
        name="wikitext-2-raw-v1",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    ),
}
C4_SHARDS = {
    "train": "en/c4-train.00000-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}
LOCAL = {
    ("c4", "train"): "c4/*train*.parquet",
    ("c4", "validation"): "c4/*validation*.parquet",
    ("wikitext2", "train"): "wikitext2/raw_train*.parquet",
    ("wikitext2", "test"): "wikitext2/raw_test*.parquet",
}


def rows(source: str, split: str, data_dir: str | None) -> Sequence[str]:
    """The texts of a split of c4 or wikitext2, in the data's own order."""
    if data_dir is not None:
        return _from_folder(source, split, Path(data_dir))
    from datasets import load_dataset

    files = {"data_files": {split: C4_SHARDS[split]}} if source == "c4" else {}
    try:
        return load_dataset(**HUB[source], **files, split=split)["text"]
    except Exception as e:
        raise ConnectionError(
            f"cannot load {source} ({split}) from the Hugging Face Hub ({type(e).__name__}: {e}); without "
            "it, set machine.data_dir to a folder that has it as parquet, or use the embedded data (nano)"
        ) from e


def _from_folder(source: str, split: str, data_dir: Path) -> list[str]:
    files = sorted(data_dir.glob(LOCAL[source, split]))
    if not files:
        raise FileNotFoundError(
            f"{source} ({split}) is asked for, but machine.data_dir={data_dir} has no {LOCAL[source, split]};"
            " add it (parquet, a `text` column), unset machine.data_dir to use the Hub, or take another text"
        )
    return [text for f in files for text in _parquet_texts(f)]


def read(path: str) -> str:
    """The text of a local file; documents of .jsonl and .parquet are joined by blank lines."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such text file: {path}")
    if file.suffix == ".parquet":
        return "\n\n".join(_parquet_texts(file))
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text ({e}); give a .txt, .jsonl or .parquet file") from e
    if file.suffix != ".jsonl":
        return text
    try:
        return "\n\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: every line must be a JSON object with a `text` field ({e!r})") from e


def _parquet_texts(file: Path) -> list[str]:
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.read_table(file, columns=["text"])["text"].to_pylist()
    except (ArrowInvalid, KeyError) as e:
        raise ValueError(f"{file} is not a parquet file with a `text` column ({e})") from e


def stamp(path: str | None) -> tuple | None:
    """Changes when the file does, so that an edited text is read again."""
    if path is None or not Path(path).is_file():
        return None
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_size
