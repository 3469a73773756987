"""What a sweep takes from the Hub that its cache on this machine lacks, by known sizes: nothing is asked of the Hub."""

from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from qbench.data.corpus import EVALUATED
from qbench.data.pins import BYTES, HubFile
from qbench.data.texts import HUB, hub_file
from qbench.plan.machines import GIB
from qbench.plan.status import evaluations
from qbench.plan.sweep import method_of
from qbench.shape import Shape


def model_bytes(cell: dict, shape: Shape | None) -> int:
    """Of a cell's model; what lies in the cache of its repository is taken to be of the same revision."""
    repo = cell["model"].get("repo")
    if not repo or shape is None:
        return 0
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    there = sum(path.stat().st_size for path in blobs.glob("*")) if blobs.is_dir() else 0
    return max(0, shape.weight_bytes("bfloat16") - there)


def line(cells: list[dict], models: int) -> str:
    """One line: bytes of models and texts, and whether data sets of tasks come on top; "" where all is there."""
    files, tasks = set(), set()
    for cell in cells:
        if cell["machine"]["data_dir"] is not None:
            continue
        if method_of(cell)[0] != "none":
            files |= _files(cell["calib"], "train")
        for part in evaluations(cell).values():
            files |= _files(part, EVALUATED.get(part.get("source")))
            tasks |= {task for task in part.get("tasks", ()) if not task.startswith("nano_")}
    texts = sum(BYTES[file.repo, split] for file, split in files if file.cached() is None)
    if not models and not texts and not tasks:
        return ""
    beside = ", and the data sets of the tasks, some MiB" if tasks else ""
    what = f"{models / GIB:.2f} GiB of models, {texts / GIB:.2f} GiB of texts{beside}"
    return f"To download from the Hub: {what}; `qbench fetch` with these arguments does it ahead."


def _files(part: dict, split: str | None) -> set[tuple[HubFile, str]]:
    source = None if part.get("path") else part.get("source")
    return {(hub_file(source, split), split)} if source in HUB else set()
