"""The command line that measures a record again, found from what the record says was measured."""

import json
import shlex
from typing import Any

import hydra
from omegaconf import OmegaConf

from qbench import settings
from qbench.config import Config
from qbench.overrides import prepared
from qbench.shipped import conf_dir


def overrides(science: dict, protocol: str = "paper") -> tuple[list[str], list[str]]:
    """Words for ``qbench run``, and what they do not restore, such as an earlier version of a method.

    A file or folder of the user's own is not in a record: FILE and FOLDER stand for it.
    """
    science = science | {"eval": _task_names(science["eval"])}
    words = [f"protocol={protocol}"] if protocol == "released" else []
    for group in ("model", "method", "eval"):
        words.append(f"{group}={_choice(group, science[group])}")
    words += ["model.path=FOLDER"] if science["model"]["repo"] == "local" else []
    for section, key, value in _differences(science, words):
        if key == "source" and value == "text":
            words.append(f"{section}.path=FILE")
        elif key not in ("version", "lm_eval"):
            field = "c4" if (section, key) == ("eval", "draw") else key
            words.append(f"{section}.{field}={_text(value)}")
    if science["model"]["repo"] != "local" and not science["model"]["repo"].startswith("qbench/"):
        words.append(f"model.revision={science['model']['revision']}")
    left = [f"{section}.{key}={_text(value)}" for section, key, value in _differences(science, words)]
    return words, left


def command(words: list[str]) -> str:
    """The command as a shell takes it."""
    return shlex.join(["qbench", "run", *words])


def _choice(group: str, wanted: dict) -> str:
    """The yaml of conf/``group`` that says most of ``wanted`` and contradicts it least."""
    scores = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path))
        node = loaded.get(group, loaded)
        if "_target_" not in node or (group != "model" and _name(node, group) != wanted["name"]):
            continue
        if group == "model" and ("path" in node) != (wanted["repo"] == "local"):
            continue
        fixed = {k: v for k, v in node.items() if k in wanted and v is not None and "${" not in str(v)}
        scores[path.stem] = sum(1 if _plain(v) == wanted[k] else -1 for k, v in fixed.items())
    if not scores:
        raise ValueError(f"no choice in conf/{group} gives {wanted['name']}")
    return max(scores, key=lambda choice: scores[choice])


def _differences(science: dict, words: list[str]) -> list[tuple[str, str, object]]:
    """(section, field, the record's value) where the settings that ``words`` make differ from the record's."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="redo"):
        config = Config.of(hydra.compose("config", overrides=prepared(words)))
    (measure,) = config.eval.values()
    now = json.loads(json.dumps(config.settings() | {"eval": measure.settings()}))
    found = []
    for section, fields in now.items():
        for key, value in (fields or {}).items():
            if key in (science[section] or {}) and science[section][key] != value:
                found.append((section, key, science[section][key]))
    return found


def _name(node: dict, group: str) -> str:
    """What records call the class of a method or an evaluation."""
    return getattr(settings.target(node, group), "name", "")


def _plain(value):
    return {k: v for k, v in value.items() if k != "_target_"} if isinstance(value, dict) else value


def _task_names(eval: dict) -> dict:
    """An evaluation whose tasks are a list of names; in a record they have versions."""
    return eval | ({"tasks": list(eval["tasks"])} if "tasks" in eval else {})


def _text(value) -> str:
    """A value as Hydra reads it."""
    return json.dumps(value).replace('"', "").replace(" ", "") if not isinstance(value, str) else value
