"""``qbench plan``: what a sweep would do, what of it is done, and what the rest will cost, before it runs.

    qbench plan experiment=table3                       this machine
    qbench plan experiment=table3 --on H200             another one, by its published peaks

Arguments are those of ``qbench run``. Nothing is loaded, downloaded or measured. The numbers are estimates: operations
and bytes are counted, speeds are assumed (and printed), and corrected where records of the same device exist.
"""

import argparse
import sys

from omegaconf.errors import OmegaConfBaseException

from qbench.config import Config
from qbench.overrides import sweep_arguments
from qbench.plan import fits, overview
from qbench.plan.estimate import shape_of
from qbench.plan.machines import NAMES, machine
from qbench.plan.status import Records
from qbench.plan.sweep import configs


def main(args: list[str]) -> int:
    """Prints the plan; 2 for a command line that cannot be read, 1 if a run would be refused, or with --strict if it
    cannot fit, else 0."""
    parser = argparse.ArgumentParser(
        prog="qbench plan", description="What a sweep would cost; arguments as for `qbench run`, without -m."
    )
    parser.add_argument("--on", default="this", help=f"the machine to plan for: this (default), {NAMES}")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if something does not fit")
    options = sweep_arguments(parser, args)
    try:
        found, refused = configs(options.overrides, _check)
        text, problems = _plan(found, options.on) if found else ("", [])
    except (ValueError, OSError, OmegaConfBaseException) as e:
        print(f"qbench plan: {e}", file=sys.stderr)
        return 2
    if not (found or refused):
        text = "no cells: the table of the paper prints none of these"
    lines = [text] * bool(text) + [f"warning: {line}" for line in problems] + [f"  refused  {line}" for line in refused]
    print("\n".join(lines))
    return int(bool(refused) or (options.strict and bool(problems)))


def _plan(found: list[Config], on: str) -> tuple[str, list[str]]:
    """The plan, and what does not fit."""
    here, settings = on == "this", found[0].machine
    where = machine(on, settings.device)
    rows = overview.rows(found, Records(settings.results_dir), where)
    has = fits.Bytes(where.memory, fits.memory() if here else None, fits.free(settings.cache_dir) if here else None)
    lacking = [(row.model, what) for row in rows for what in fits.lacking(row.peak, has)]
    problems = [f"{model} does not fit: it needs about {what}" for model, what in lacking]
    return overview.text(rows, where, settings.results_dir), problems


def _check(config: Config) -> None:
    """What a run checks before it reads weights."""
    if (shape := shape_of(config.model)) is not None:
        config.method.check({name: (N, K) for K, names, _ in shape.stages for name, N in names.items()})
        config.check_lengths(shape.positions)
