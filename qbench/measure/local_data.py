"""The data sets of lm-eval's tasks from local parquet files instead of the Hub.

lm-eval reads every data set through `datasets.load_dataset(path, name)`. While tasks load, `from_folder`
answers that call from machine.data_dir. Prompts, choices and scoring stay lm-eval's own; only the file is
another. The rows must have the columns of the data set on the Hub.
"""

import contextlib
from functools import lru_cache
from pathlib import Path
from unittest import mock

from datasets import Dataset
from pyarrow import compute, parquet

FILES = {
    ("cais/mmlu", None): "mmlu/{split}*.parquet",
    ("baber/piqa", None): "zeroshot/piqa_{split}*.parquet",
    ("aps/super_glue", "boolq"): "zeroshot/boolq_{split}*.parquet",
    ("allenai/winogrande", "winogrande_xl"): "zeroshot/winogrande_xl_{split}*.parquet",
    ("allenai/ai2_arc", "ARC-Easy"): "zeroshot/arc_easy_{split}*.parquet",
    ("allenai/ai2_arc", "ARC-Challenge"): "zeroshot/arc_challenge_{split}*.parquet",
    ("Rowan/hellaswag", None): "zeroshot/hellaswag_{split}*.parquet",
    ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"): "wikitext2/raw_{split}*.parquet",
    ("allenai/c4", "en"): "c4/*{split}*.parquet",
}


@contextlib.contextmanager
def from_folder(data_dir: str | Path | None):
    """Inside, `datasets.load_dataset` reads from `data_dir`; with None, from the Hub as ever."""
    if data_dir is None:
        yield
        return
    with mock.patch("datasets.load_dataset", lambda path, name=None, **_: Splits(Path(data_dir), path, name)):
        yield


class Splits(dict):
    """The splits of one data set, each read when first asked for.

    A `train` split that is not there is empty: tasks hold it ready for few-shot prompts even if they need
    none.
    """

    def __init__(self, data_dir: Path, path: str, name: str | None):
        super().__init__()
        self.data_dir, self.path, self.name = data_dir, path, name
        self.pattern = FILES.get((path, name)) or FILES.get((path, None))
        if self.pattern is None:
            known = ", ".join(sorted({path for path, _ in FILES}))
            raise ValueError(
                f"a task reads {path} ({name}), for which machine.data_dir has no place; "
                f"unset machine.data_dir to read it from the Hub, or use tasks on {known}"
            )

    def __missing__(self, split: str) -> Dataset:
        pattern = self.pattern.format(split=split)
        files = sorted(self.data_dir.glob(pattern))
        if files:
            self[split] = Dataset.from_dict(self._columns(files))
        elif split == "train":
            self[split] = Dataset.from_dict({column: [] for column in self._any_split().column_names})
        else:
            raise FileNotFoundError(
                f"{self.path} ({split}) was asked for, but machine.data_dir={self.data_dir} has no "
                f"{pattern}; put the file there, or unset machine.data_dir to use the Hub"
            )
        return self[split]

    def _columns(self, files: list[Path]) -> dict[str, list]:
        if self.path == "EleutherAI/wikitext_document_level":
            return {"page": pages([line for f in files for line in _table(f)["text"].to_pylist()])}
        if self.path == "cais/mmlu":
            tables = [_table(f).filter(compute.equal(_table(f)["subject"], self.name)) for f in files]
            if not sum(map(len, tables)):
                raise ValueError(f"{files[0]} has no rows of the MMLU subject {self.name}")
        else:
            tables = [_table(f) for f in files]
        names = tables[0].column_names
        return {name: [x for table in tables for x in table[name].to_pylist()] for name in names}

    def _any_split(self) -> Dataset:
        tested = any(self.data_dir.glob(self.pattern.format(split="test")))
        return self["test" if tested else "validation"]


def pages(lines: list[str]) -> list[str]:
    """The articles of WikiText-2 from its lines, cut as EleutherAI/wikitext_document_level cuts them.

    An article begins at a level-one heading, ` = Title = `. Blank lines, "" on the Hub, are " " in the file
    that data set was made from.
    """
    articles, current = [], []
    for line in "".join(line or " \n" for line in lines).split("\n"):
        text = line.replace("= = =", "===").replace("= =", "==").strip()
        if text.startswith("= ") and text.endswith(" ="):
            articles.append("\n".join(current))
            current = []
        current.append(line)
    return [article for article in articles if article.strip()] + ["\n".join(current)]


@lru_cache(maxsize=8)
def _table(file: Path):
    return parquet.read_table(file)
