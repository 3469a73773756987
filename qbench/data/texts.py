"""Reads texts from the Hugging Face Hub at pinned revisions, or from local files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qbench.data.pins import C4, WIKITEXT, HubFile, files, pinned

HUB = {"c4": (C4, "en"), "wikitext2": (WIKITEXT, "wikitext-2-raw-v1")}


def rows(source: str, split: str, data_dir: str | None) -> Sequence[str]:
    """The texts of a split of c4 or wikitext2, in the data's own order."""
    from datasets import Dataset
    from pyarrow import concat_tables

    repo, name = HUB[source]
    found = files(repo, split, name, Path(data_dir) if data_dir else None)
    return Dataset(concat_tables(map(text_table, found)))["text"]  # decodes a text when it is read


def hub_file(source: str, split: str) -> HubFile:
    """The file of a split of c4 or wikitext2 on the Hub."""
    repo, name = HUB[source]
    return pinned(repo, split, name)


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
