"""Where texts and data sets come from: the Hugging Face Hub at pinned commits, or local files.

With a machine.data_dir the Hub is not used: ``LOCAL`` names the files there. Otherwise qbench takes whole files from
the Hub's cache and reads them itself. The loader of ``datasets`` has its own cache, which offline gives the version
used last, whatever revision is asked for, and does not find C4.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever huggingface_hub uses

from qbench.hub import hub_error

C4, WIKITEXT = "allenai/c4", "Salesforce/wikitext"
PINS = {  # repository: its commit, and the file of a split
    C4: ("1588ec454efa1a09f29cd18ddd04fe05fc8653a2", "en/c4-{split}.00000-of-{shards}.json.gz"),
    WIKITEXT: ("b08601e04326c79dfdd32d625aee71d232d685c3", "{name}/{split}-00000-of-00001.parquet"),
    "EleutherAI/wikitext_document_level": ("647234772b9554e208af6c826f23b99e3cac88c8", "{name}/{name}-{split}.parquet"),
    "cais/mmlu": ("c30699e8356da336a370243923dbaf21066bb9fe", "{name}/{split}-00000-of-00001.parquet"),
    "baber/piqa": ("142f6d7367fd9877f0fb3b5734ea6a545f54cdd1", "piqa_{split}.parquet"),
    "allenai/ai2_arc": ("210d026faf9955653af8916fad021475a3f00453", "{name}/{split}-00000-of-00001.parquet"),
    "Rowan/hellaswag": ("218ec52e09a7e7462a5400043bb9a69a41d06b76", "data/{split}-00000-of-00001.parquet"),
    "allenai/winogrande": ("01e74176c63542e6b0bcb004dcdea22d94fb67b5", "{name}/{split}-00000-of-00001.parquet"),
    "aps/super_glue": ("3de24cf8022e94f4ee4b9d55a6f539891524d646", "{name}/{split}-00000-of-00001.parquet"),
}
LOCAL = {  # (repository, configuration or any): its files below machine.data_dir, C4 also as its own shard
    (C4, "en"): "c4/*{split}*.parquet or c4/c4-{split}.00000-of-*.json.gz or c4/en/c4-{split}.00000-of-*.json.gz",
    (WIKITEXT, "wikitext-2-raw-v1"): "wikitext2/raw_{split}*.parquet",
    ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"): "wikitext2/raw_{split}*.parquet",
    ("cais/mmlu", None): "mmlu/{split}*.parquet",
    ("baber/piqa", None): "zeroshot/piqa_{split}*.parquet",
    ("allenai/ai2_arc", "ARC-Easy"): "zeroshot/arc_easy_{split}*.parquet",
    ("allenai/ai2_arc", "ARC-Challenge"): "zeroshot/arc_challenge_{split}*.parquet",
    ("Rowan/hellaswag", None): "zeroshot/hellaswag_{split}*.parquet",
    ("allenai/winogrande", "winogrande_xl"): "zeroshot/winogrande_xl_{split}*.parquet",
    ("aps/super_glue", "boolq"): "zeroshot/boolq_{split}*.parquet",
}
OWN_TEXT = "without any data set, calib=nano eval=nano take the package's own text, for any model"
INSTEAD = f"set machine.data_dir to a folder that has it, or run `qbench fetch` where there is one; {OWN_TEXT}"
C4_SHARDS = {"train": "01024", "validation": "00008"}


class HubFile(NamedTuple):
    """One file of a data set on the Hub."""

    repo: str
    revision: str
    path: str

    def cached(self) -> Path | None:
        """The file in the Hub's cache; None if it is not there. Does not use the network."""
        found = try_to_load_from_cache(self.repo, self.path, revision=self.revision, repo_type="dataset")
        return Path(found) if isinstance(found, str) else None

    def get(self) -> Path:
        """The file in the cache, downloaded if it is not there; raises the errors of ``qbench.hub.hub_error``."""
        if found := self.cached():
            return found
        try:
            connect(self.repo)
            return Path(hf_hub_download(self.repo, self.path, revision=self.revision, repo_type="dataset"))
        except Exception as e:
            raise hub_error(e, self.repo, self.revision, kind="dataset", instead=INSTEAD) from e


def pinned(repo: str, split: str, name: str | None = None) -> HubFile:
    """The file of a split of a data set in ``PINS``; ``name``: which configuration of it."""
    revision, file = PINS[repo]
    return HubFile(repo, revision, file.format(split=split, name=name, shards=C4_SHARDS.get(split)))


def place(repo: str, name: str | None) -> str | None:
    """Where ``LOCAL`` puts a data set; None for one that is not pinned."""
    return LOCAL.get((repo, name)) or LOCAL.get((repo, None))


def files(repo: str, split: str, name: str | None, data_dir: Path | None) -> list[Path]:
    """The files of a split below ``data_dir``, FileNotFoundError where it has none; with None the one on the Hub."""
    if data_dir is None:
        return [pinned(repo, split, name).get()]
    where = place(repo, name).format(split=split)
    found = next(filter(None, (sorted(data_dir.glob(pattern)) for pattern in where.split(" or "))), [])
    if not found:
        raise FileNotFoundError(
            f"{repo} ({split}) is asked for, but machine.data_dir={data_dir} has no {where}; add it there, unset "
            f"machine.data_dir to use the Hub, or leave it out (another calib, ~eval.NAME); {OWN_TEXT}"
        )
    return found


@lru_cache
def connect(repo: str) -> None:
    """Raises at once where the Hub cannot be reached; its own client would retry for half a minute."""
    try:
        get_hf_file_metadata(hf_hub_url(repo, "README.md", repo_type="dataset"))
    except HTTPError as e:
        if type(e).__name__ in ("ConnectError", "ConnectTimeout"):
            raise


def text_table(file: Path) -> Any:
    """The `text` column of a .parquet, .jsonl or .json.gz file, as an Arrow table."""
    import pyarrow as pa
    from pyarrow import json as lines
    from pyarrow import parquet

    kind = "parquet" if file.suffix == ".parquet" else "JSON lines"
    try:
        if kind == "parquet":
            table = parquet.read_table(file, columns=["text"])
        else:
            parsing = lines.ParseOptions(pa.schema({"text": pa.string()}), unexpected_field_behavior="ignore")
            with pa.input_stream(file) as stream:  # no document is larger than a block
                table = lines.read_json(stream, lines.ReadOptions(block_size=2**26), parsing)
        if table["text"].null_count:
            raise KeyError("text")
        return table
    except (OSError, KeyError, pa.ArrowInvalid) as e:
        raise ValueError(f"{file} is not a {kind} file with a `text` column, or it is damaged ({e})") from e


def read_text(path: str) -> str:
    """The text of a local file; documents of .jsonl and .parquet are joined by blank lines."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such text file: {path}")
    if file.suffix in (".parquet", ".jsonl"):
        return "\n\n".join(text_table(file)["text"].to_pylist())
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text ({e}); give a .txt, .jsonl or .parquet file") from e
