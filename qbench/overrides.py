"""Overrides of the command line, such as ``grid.bits=3``, are read before Hydra composes, and misspelt ones refused."""

import re
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterable
from functools import cache

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from qbench.files import packaged
from qbench.settings import near

NOT_MEASURED = ("machine", "wandb", "hydra", "retry_failed", "fail_fast")  # they change no number


def groups() -> set[str]:
    """The groups of conf/."""
    return {p.relative_to(packaged("conf")).as_posix() for p in packaged("conf").rglob("*") if p.is_dir()}


def prepared(words: Iterable[str]) -> list[str]:
    """``words`` in the form that Hydra is given.

    Fields get a ``++``, with which Hydra takes an unknown field too: ``Config.of`` refuses it, where all settings are
    checked. A field that the experiment sweeps over gets none, since Hydra replaces the experiment's values only under
    the same key. ValueError for words that cannot be read and for unknown groups.
    """
    words, known = list(words), groups()
    heads = {"home", "hydra", *known, *OmegaConf.load(packaged("conf") / "config.yaml")} - {"defaults"}
    swept = {key for word in words for key in swept_by(word)}
    ready = []
    for word in words:
        override = parsed(word)
        key = override.key_or_group
        if (head := re.split(r"[./]", key)[0]) not in heads:
            raise ValueError(f"{word}: {head} is unknown; {near(head, {h for h in heads if '/' not in h})}")
        if key in known and override.value() is None and not override.is_delete():
            choices = sorted(p.stem for p in (packaged("conf") / key).glob("*.yaml"))
            raise ValueError(f"{word}: {key} is one of {', '.join(choices)}")
        is_field = override.type is OverrideType.CHANGE and key not in known | swept and head != "hydra"
        ready.append(f"++{word}" if is_field else word)
    return ready


def swept_by(word: str) -> dict[str, str]:
    """{key: values} that the experiment sweeps over which ``word`` chooses; empty for other words."""
    group, _, name = word.partition("=")
    path = packaged("conf") / "experiment" / f"{name}.yaml"
    is_one = group == "experiment" and path.is_file()
    return dict(OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}) if is_one else {}


def of_this_job() -> list[str] | None:
    """The overrides of the job that Hydra runs, without those of the machine; None where Hydra runs no job.

    FILE and FOLDER stand for the user's own paths, which no record holds.
    """
    if not HydraConfig.initialized():
        return None
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    words = [word for word in words if re.split(r"[./=]", word)[0] not in NOT_MEASURED]
    words = [re.sub(r"^model\.path=.*", "model.path=FOLDER", word) for word in words]
    return [re.sub(r"^(calib|eval.*)\.path=.*", r"\1.path=FILE", word) for word in words]


def sweep_arguments(parser: ArgumentParser, args: list[str]) -> Namespace:
    """The overrides of a sweep beside the options of ``parser``, for commands that take them as ``qbench run`` does."""
    parser.add_argument("overrides", nargs="*", help="GROUP=CHOICE or GROUP.FIELD=VALUE, commas for several")
    parser.add_argument("-m", "--multirun", action="store_true", help=SUPPRESS)
    options, more = parser.parse_known_args(args)
    if wrong := [word for word in more if word.startswith("--") or "=" not in word]:
        parser.error(f"unknown argument {wrong[0]}")
    options.overrides += more
    return options


@cache
def parsed(word: str) -> Override:
    """What Hydra reads in ``word``; ValueError where it cannot read it."""
    key, equals, value = word.partition("=")
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as e:
        quoted = f"a value with spaces, signs or letters beyond ASCII needs two pairs of quotes: '{key}=\"{value}\"'"
        what = quoted if equals else "write GROUP=CHOICE or GROUP.FIELD=VALUE"
        raise ValueError(f"{word} cannot be read ({str(e).splitlines()[0]}); {what}") from e
