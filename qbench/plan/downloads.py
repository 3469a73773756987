"""What a sweep takes from the Hub that the cache of this machine lacks, by known sizes: the Hub is not asked."""

from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from qbench.config import Config
from qbench.data.sources import HubFile
from qbench.models.checkpoint import Checkpoint
from qbench.plan.machines import GIB
from qbench.shape import Shape


def model_bytes(model: Checkpoint, shape: Shape | None) -> int:
    """Bytes of a model that are not in the cache; what lies there is taken to be of the same revision."""
    if not model.repo or shape is None:
        return 0
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model.repo, repo_type="model") / "blobs"
    there = sum(path.stat().st_size for path in blobs.glob("*")) if blobs.is_dir() else 0
    return max(0, shape.weight_bytes("bfloat16") - there)


def line(configs: list[Config], models: int) -> str:
    """One line: bytes of models and texts, and whether data sets of tasks come on top; "" where all is there."""
    readers = {reader for config in configs for reader in config.readers}
    tasks = {task for reader in readers for task in getattr(reader, "tasks", ()) if not task.startswith("nano_")}
    files = {file for reader in readers if not hasattr(reader, "tasks") for file in reader.hub_files()}
    texts = sum(file.size for file in files if isinstance(file, HubFile) and file.cached() is None)
    if not models and not texts and not tasks:
        return ""
    beside = ", and the data sets of the tasks, some MiB" if tasks else ""
    what = f"{models / GIB:.2f} GiB of models, {texts / GIB:.2f} GiB of texts{beside}"
    return f"To download from the Hub: {what}; `qbench fetch` with these arguments does it ahead."
