"""``qbench fetch``: downloads the models and data of a sweep into the caches, for machines without a network.

qbench fetch experiment=table4                 prints what is missing and its size, then downloads it
HF_HUB_OFFLINE=1 qbench run -m experiment=table4
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.utils import filter_repo_objects
from omegaconf.errors import OmegaConfBaseException

from qbench.data.sources import HubFile
from qbench.hub import hub_error
from qbench.measure.lm_eval.local_files import load_whole
from qbench.models.checkpoint import PATTERNS, Checkpoint
from qbench.models.gguf_file import GgufFile
from qbench.overrides import sweep_arguments
from qbench.plan import footprint
from qbench.plan.sweep import configs

ELSEWHERE = "fetch it where there is one, and copy the cache"


def main(args: list[str]) -> int:
    """Prints what is missing and downloads it; 2 for bad input or what the Hub refuses, else 0."""
    parser = argparse.ArgumentParser(
        prog="qbench fetch", description="Downloads models and data; arguments as for `qbench run`."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what and how much")
    options = sweep_arguments(parser, args)
    try:
        models, files, whole = wanted(options.overrides)
        for model in (model for model in models if model.gguf):  # first, because they do not need the Hub
            print(package(model.gguf), flush=True)
            if not options.dry_run:
                model.open()
        found = [model for model in models if model.repo], files, whole
        lines, missing = overview(*found)
        print("\n".join(lines), flush=True)
        if (free := footprint.free(constants.HF_HUB_CACHE)) < missing:
            raise ValueError(f"{_words(missing)} are to be downloaded, but {_words(free)} are free there; set HF_HOME")
        if not options.dry_run:
            download(*found)
            print("All of it is there. With HF_HUB_OFFLINE=1 `qbench run` needs no network.")
    except (ValueError, OSError, OmegaConfBaseException) as e:
        print(f"qbench fetch: {e}", file=sys.stderr)
        return 2
    return 0


def wanted(overrides: list[str]) -> tuple[list[Checkpoint], list[HubFile], list[tuple[str, str | None]]]:
    """What a sweep downloads: models, files of data sets, and data sets that `datasets` loads whole.

    Raises: ValueError for a cell that cannot run.
    """
    cells, refused = configs(overrides)
    if refused:
        raise ValueError(refused[0])
    found = {config.model for config in cells}
    found |= {c.model.unquantized() for c in cells if c.model.base and any(m.compares for m in c.eval.values())}
    models = sorted((model for model in found if model.repo or model.gguf), key=str)
    items = {item for reader in {x for config in cells for x in config.readers} for item in reader.hub_files()}
    files = sorted(item for item in items if isinstance(item, HubFile))
    return models, files, sorted((item for item in items if not isinstance(item, HubFile)), key=str)


def package(file: GgufFile) -> str:
    """The line of a model in a wheel: what it is, where it goes, and whether it is there."""
    left = "is there" if file.folder.is_dir() else f"{_words(file.size)} to download"
    return f"{'wheel':<9}{file.package:<36}{file.version:<9}{left}, as {file.folder}"


def overview(models: list[Checkpoint], files: list[HubFile], whole: list) -> tuple[list[str], int]:
    """One line per repository, with sizes from the Hub, and the bytes of all files that are not in the cache."""
    by_repo: dict[tuple[str, str, str], list[str] | None]
    by_repo = {("model", str(model.repo), model.revision or "main"): None for model in models}
    for file in files:
        by_repo.setdefault(("dataset", file.repo, file.revision), []).append(file.path)
    lines, total = [], 0
    for (kind, repo, revision), paths in by_repo.items():
        sizes = _sizes(kind, repo, revision, paths)
        there = [try_to_load_from_cache(repo, path, revision=revision, repo_type=kind) for path, _ in sizes]
        missing = sum(size for (_, size), at in zip(sizes, there) if not isinstance(at, str))
        total += missing
        size = sum(size for _, size in sizes)
        left = f"{_words(missing)} to download" if missing else "all in the cache"
        lines.append(f"{kind:<9}{repo:<36}{revision[:8]:<9}{len(sizes):>4} files{_words(size):>11}, {left}")
    lines += [f"{'dataset':<9}{repo:<36}{name or ''}: size not known" for repo, name in whole]
    lines.append(f"To download: {_words(total)} into {constants.HF_HUB_CACHE}")
    return lines, total


def _words(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _sizes(kind: str, repo: str, revision: str, paths: list[str] | None) -> list[tuple[str, int]]:
    """(path, bytes) of ``paths``, or where there are none of the files that a model needs, as the Hub lists them."""
    try:
        if paths is not None:
            entries = HfApi().get_paths_info(repo, paths, revision=revision, repo_type=kind)
        else:
            tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
            entries = filter_repo_objects(tree, allow_patterns=PATTERNS, key=lambda entry: entry.path)
        sizes = {entry.path: entry.size for entry in entries if hasattr(entry, "size")}
    except Exception as e:
        raise hub_error(e, repo, revision, kind=kind, instead=ELSEWHERE) from e
    if lost := sorted(set(paths or ()) - set(sizes)):
        raise FileNotFoundError(f"{kind} {repo} has no {lost[0]} at revision {revision}")
    return sorted(sizes.items())


def download(models: list[Checkpoint], files: list[HubFile], whole: list) -> None:
    """Downloads what the cache lacks and checks that each model is whole."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(HubFile.get, files))
    for repo, name in whole:
        load_whole(repo, name)
    for model in models:
        model.open()
