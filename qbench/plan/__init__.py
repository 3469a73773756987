"""``qbench plan``: what a sweep would do, what of it is done, and what the rest will cost, before it runs.

    qbench plan experiment=table3                       this machine
    qbench plan experiment=table3 --on H200             another one, by its published peaks
    qbench plan experiment=table3 model=qwen3-8b-base --strict

Arguments are those of ``qbench run``. Nothing is loaded, downloaded or measured. The numbers are estimates: operations
and bytes are counted, speeds are assumed (and printed), and corrected where records of the same device exist.
"""

import argparse
import sys

from omegaconf.errors import OmegaConfBaseException

from qbench.config import Config
from qbench.overrides import sweep_arguments
from qbench.plan import downloads, fits, overview
from qbench.plan.estimate import shape_of
from qbench.plan.machines import NAMED, machine
from qbench.plan.status import Records
from qbench.plan.sweep import configs

NAMES = ", ".join(m.name for m in NAMED.values())


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
        lines, problems, refused = _plan(options.overrides, options.on)
    except (ValueError, OSError, OmegaConfBaseException) as e:
        print(f"qbench plan: {e}", file=sys.stderr)
        return 2
    print("\n".join([*lines, *(f"warning: {line}" for line in problems), *(f"  refused  {line}" for line in refused)]))
    return int(bool(refused) or (options.strict and bool(problems)))


def _plan(overrides: list[str], on: str) -> tuple[list[str], list[str], list[str]]:
    """The plan, what does not fit, and which cells ``qbench run`` would refuse."""
    found, refused = configs(overrides, _check)
    if not found:
        return [] if refused else ["no cells: the table of the paper prints none of these"], [], refused
    here, settings = on == "this", found[0].machine
    where = machine(on, settings.device)
    rows = overview.rows(found, Records(settings.results_dir), where)
    has = fits.Bytes(where.memory, fits.memory() if here else None, fits.free(settings.cache_dir) if here else None)
    problems = [
        f"{row.model} does not fit: it needs about {what}" for row in rows for what in fits.lacking(row.peak, has)
    ]
    if here and (problem := overview.folder_problem(settings.results_dir, rows)):
        problems.append(problem)
    ahead = downloads.line(found, sum(row.hub for row in rows))
    return [overview.text(rows, where, settings.results_dir), *([ahead] if ahead else [])], problems, refused


def _check(config: Config) -> None:
    """What a run checks before it reads weights."""
    if (shape := shape_of(config.model)) is not None:
        config.method.check({name: (N, K) for K, names, _ in shape.stages for name, N in names.items()})
        config.check_lengths(shape.positions)
