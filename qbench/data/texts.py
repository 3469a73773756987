"""Reads texts from the Hugging Face Hub at pinned revisions, or from local files.

With a ``data_dir`` (machine.data_dir) the Hub is not used: texts come from the parquet files with a ``text`` column
that ``LOCAL`` names, or from C4's own shard, ``c4/c4-train.00000-of-01024.json.gz`` or the same below ``c4/en``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qbench.data.pins import C4, WIKITEXT, HubFile, pinned

HUB = {"c4": (C4, "en"), "wikitext2": (WIKITEXT, "wikitext-2-raw-v1")}
LOCAL = {
    ("c4", "train"): "c4/*train*.parquet",
    ("c4", "validation"): "c4/*validation*.parquet",
    ("wikitext2", "train"): "wikitext2/raw_train*.parquet",
    ("wikitext2", "test"): "wikitext2/raw_test*.parquet",
}


def rows(source: str, split: str, data_dir: str | None) -> Sequence[str]:
    """The texts of a split of c4 or wikitext2, in the data's own order."""
    from datasets import Dataset
    from pyarrow import concat_tables

    files = local_files(source, split, Path(data_dir)) if data_dir else [hub_file(source, split).get()]
    return Dataset(concat_tables(map(text_table, files)))["text"]  # decodes a text when it is read


def hub_file(source: str, split: str) -> HubFile:
    """The file of a split of c4 or wikitext2 on the Hub."""
    repo, name = HUB[source]
    return pinned(repo, split, name)


def local_files(source: str, split: str, data_dir: Path) -> list[Path]:
    """The files of a split below ``data_dir``; FileNotFoundError, naming the place, where there are none."""
    files = sorted(data_dir.glob(place := LOCAL[source, split]))
    if not files and source == "c4":
        shard = Path(hub_file(source, split).path).name
        place += f", nor c4/en/{shard}"
        files = [file for folder in ("c4", "c4/en") if (file := data_dir / folder / shard).is_file()][:1]
    if not files:
        raise FileNotFoundError(
            f"{source} ({split}) is asked for, but machine.data_dir={data_dir} has no {place};"
            " add it (parquet with a `text` column), unset machine.data_dir to use the Hub, or choose another text"
        )
    return files


def read(path: str) -> str:
    """The text of a local file; documents of .jsonl and .parquet are joined by blank lines."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such text file: {path}")
    if file.suffix == ".parquet":
        return "\n\n".join(text_table(file)["text"].to_pylist())
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


def text_table(file: Path) -> Any:
    """The `text` column of a .parquet or .json.gz file, as an Arrow table."""
    import pyarrow as pa
    from pyarrow import json as lines
    from pyarrow import parquet

    kind = "parquet" if file.suffix == ".parquet" else ".json.gz"
    try:
        if kind == "parquet":
            return parquet.read_table(file, columns=["text"])
        parsing = lines.ParseOptions(pa.schema({"text": pa.string()}), unexpected_field_behavior="ignore")
        with pa.input_stream(file, compression="gzip") as stream:
            table = lines.read_json(stream, lines.ReadOptions(block_size=2**24), parsing)  # no document is larger
        if table["text"].null_count:
            raise KeyError("text")
        return table
    except (OSError, KeyError, pa.ArrowInvalid) as e:
        raise ValueError(f"{file} is not a {kind} file with a `text` column, or it is damaged ({e})") from e


def stamp(path: str | None) -> tuple | None:
    """A value that changes when the file changes, so that an edited text is read again."""
    if path is None or not Path(path).is_file():
        return None
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_size
