"""The data sets of lm-eval's tasks, read from files: from machine.data_dir, or from the Hub at pinned revisions.

lm-eval reads every data set through ``datasets.load_dataset(path, name)``. While tasks load, ``pinned_data_sets``
answers that call with rows that have the columns of the data set on the Hub; everything else stays lm-eval's own. A
data set that ``qbench.data.sources`` does not list is read from the Hub by ``datasets``, and its commit is noted.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from unittest import mock

import datasets
import pyarrow as pa
from datasets import Dataset
from huggingface_hub import is_offline_mode
from pyarrow import compute, parquet

from qbench.data import sources
from qbench.hub import hub_error

LOAD = datasets.load_dataset  # lm-eval's calls are answered in its place


@contextlib.contextmanager
def pinned_data_sets(data_dir: str | Path | None, shots: int = 0) -> Iterator[dict[str, str]]:
    """While entered, ``datasets.load_dataset`` reads from ``data_dir``, or from the Hub with None.

    Yields {repository: commit} of what came from the Hub. ``shots``: the examples per prompt; with 0, training splits
    stay unread.
    """
    commits: dict[str, str] = {}

    def answer(path, name=None, **settings):
        if data_dir is not None:
            return Splits(Path(data_dir), path, name, shots)
        if sources.place(path, name):
            commits[path] = sources.PINS[path][0]
            return Splits(None, path, name, shots)
        found = load_whole(path, name, **settings)
        folders = {Path(file["filename"]).parent.name for split in found.values() for file in split.cache_files}
        commits.update((path, folder) for folder in folders if re.fullmatch("[0-9a-f]{40}", folder))  # named after it
        return found

    with mock.patch("datasets.load_dataset", answer):
        yield commits


def hub_files_of(config: dict, shots: int) -> list[sources.HubFile | tuple[str, str | None]]:
    """What the task with this configuration reads from the Hub: files, or a whole data set (path, configuration)."""
    path, name = config.get("dataset_path"), config.get("dataset_name")
    if path is None or config.get("custom_dataset") or "/" not in path:  # json and the like read files of their own
        return []
    if not sources.place(path, name):
        return [(path, name)]
    tested, train = (config.get(f"{split}_split") for split in ("test", "training"))
    splits = {tested or config["validation_split"], config.get("fewshot_split") or (train if shots else None)} - {None}
    return [sources.pinned(path, split, name) for split in sorted(splits)]


def load_whole(path: str, name: str | None, **settings) -> datasets.DatasetDict:
    """A data set as ``datasets`` loads it, at its pinned commit if it has one."""
    revision = sources.PINS[path][0] if path in sources.PINS else None
    try:
        if "/" in path and not is_offline_mode():  # offline the cache answers
            sources.connect(path)
        return LOAD(path, name, revision=revision, **settings)
    except Exception as e:
        raise hub_error(e, path, revision, kind="dataset", instead=sources.INSTEAD) from e


class Splits(dict):
    """The splits of one data set, each read when first asked for.

    A ``train`` split is empty without ``shots``, or where ``data_dir`` has none: tasks open it even if they need none.
    """

    def __init__(self, data_dir: Path | None, path: str, name: str | None, shots: int = 0):
        super().__init__()
        self.data_dir, self.path, self.name, self.shots = data_dir, path, name, shots
        if sources.place(path, name) is None:
            raise ValueError(
                f"a task reads {path} ({name}), for which machine.data_dir has no place; unset machine.data_dir to "
                f"read it from the Hub, or use tasks on {', '.join(sorted(sources.PINS))}"
            )

    def __missing__(self, split: str) -> Dataset:
        files = []
        if split != "train" or self.shots:
            try:
                files = sources.files(self.path, split, self.name, self.data_dir)
            except FileNotFoundError:
                if split != "train" or self.data_dir is None:
                    raise
        self[split] = Dataset(self._rows(files)) if files else Dataset.from_dict({})
        return self[split]

    def _rows(self, files: list[Path]) -> pa.Table:
        table = pa.concat_tables([sources.text_table(f) if self.path == sources.C4 else _table(f) for f in files])
        if self.data_dir and self.path == "EleutherAI/wikitext_document_level":
            return pa.table({"page": pages(table["text"].to_pylist())})
        if self.data_dir and self.path == "cais/mmlu":
            table = table.filter(compute.equal(table["subject"], self.name))
            if not len(table):
                raise ValueError(f"{files[0]} has no rows of the MMLU subject {self.name}")
        return table


def pages(lines: list[str]) -> list[str]:
    """The articles of WikiText-2 from its lines, as in EleutherAI/wikitext_document_level: each begins at a level-one
    heading, ` = Title = `. Blank lines, "" on the Hub, are " " in the file that data set was made from."""
    text = "".join(line or " \n" for line in lines)
    return [page for page in re.split(r"\n(?= *= (?!=).*(?<!=) = *$)", text, flags=re.MULTILINE) if page.strip()]


@lru_cache(maxsize=8)
def _table(file: Path) -> pa.Table:
    return parquet.read_table(file).replace_schema_metadata()
