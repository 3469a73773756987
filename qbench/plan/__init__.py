"""``qbench plan``: what a sweep would do, what of it is done, and what the rest will cost, before it runs.

    qbench plan experiment=table3                       this machine
    qbench plan experiment=table3 --on H200             another one, by its published peaks

Arguments are those of ``qbench run``. Nothing is loaded, downloaded or measured. The numbers are estimates: operations
and bytes are counted, speeds are assumed (and printed).
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from qbench.config import Config
from qbench.outcomes import columns
from qbench.overrides import sweep_arguments
from qbench.plan import footprint
from qbench.plan.estimate import Estimate, cell_cost, shape_of, shares_statistics
from qbench.plan.footprint import GIB
from qbench.plan.machines import NAMES, Machine, machine
from qbench.plan.status import Records
from qbench.plan.sweep import configs

HEAD = ("model", "cells", "done", "failed", "missing", "hours", "GPU GiB", "CPU GiB", "disk GiB")


@dataclass
class Row:
    """One model: how many of its cells are measured, and what each of the missing ones costs."""

    model: str
    counts: Counter = field(default_factory=Counter)
    costs: list[Estimate] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.counts["missing"] + self.counts["part"]

    @property
    def seconds(self) -> Counter:
        total: Counter = Counter()
        for cost in self.costs:
            total.update(cost.seconds)
        return total

    @property
    def peak(self) -> footprint.Bytes:
        gpu, cpu, disk = (max((getattr(c, kind) for c in self.costs), default=0) for kind in ("gpu", "cpu", "disk"))
        return footprint.Bytes(gpu, cpu, disk + sum(cost.left for cost in self.costs))

    def words(self) -> tuple[str, ...]:
        """The cells of its line, under HEAD."""
        hours = f"{self.seconds.total() / 3600:.2f}" if self.missing else "-"
        sizes = [f"{x / GIB:.1f}" if x else "-" for x in (self.peak.gpu, self.peak.ram, self.peak.disk)]
        counts = (self.counts.total(), self.counts["done"], self.counts["failed"], self.missing)
        return (self.model, *map(str, counts), hours, *sizes)


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
    settings = found[0].machine
    where = machine(on, settings.device)
    rows, has = _rows(found, Records(settings.results_dir), where), footprint.Bytes(where.memory)
    if on == "this":
        has = footprint.Bytes(where.memory, footprint.memory(), footprint.free(settings.cache_dir))
    lacking = [(row.model, what) for row in rows for what in footprint.lacking(row.peak, has)]
    problems = [f"{model} does not fit: it needs about {what}" for model, what in lacking]
    return _text(rows, where, settings.results_dir), problems


def _check(config: Config) -> None:
    """What a run checks before it reads weights."""
    if (shape := shape_of(config.model)) is not None:
        config.method.check({name: (N, K) for K, names, _ in shape.stages for name, N in names.items()})
        config.check_lengths(shape.positions)


def _rows(configs: list[Config], records: Records, machine: Machine) -> list[Row]:
    """One row per model, in the sweep's order. A cell is done if all its evaluations are, failed if one has failed."""
    found, known = {}, set()
    for config in configs:
        name, shape, status = config.model.name, shape_of(config.model), records.status(config)
        row = found.setdefault(name, Row(name))
        todo = [part for part, how in status.items() if how == "missing"]
        partly = "part" if len(todo) < len(status) else "missing"
        row.counts["failed" if "failed" in status.values() else partly if todo else "done"] += 1
        if "failed" in status.values() or not todo:
            continue
        if shape is None:
            row.costs.append(Estimate({}, 0, 0, 0, 0, ("what a model of unknown shape needs",)))
            continue
        data = (config.model, config.calib)
        cost = cell_cost(config, shape, machine, todo, data in known)
        row.costs.append(cost)
        known |= {data} if shares_statistics(config, shape) else set()
    return list(found.values())


def _text(rows: list[Row], machine: Machine, results_dir: Path) -> str:
    """The table, the hours of each phase, and the assumptions."""
    costs = [cost for row in rows for cost in row.costs]
    total = Row("all", counts=sum((row.counts for row in rows), Counter()), costs=costs)
    table = [HEAD, *(row.words() for row in ([*rows, total] if len(rows) > 1 else rows))]
    lines = ["  ".join(row) for row in columns(table, left=1)]
    if total.missing:
        phases = ", ".join(f"{name} {s / 3600:.2f}" for name, s in total.seconds.items() if s > 0)
        lines += ["", f"Hours by phase: {phases}.", f"An estimate for {machine.name}: {machine.basis}."]
        lines += sorted({f"Not in it: {what}." for cost in costs for what in cost.unknown})
    lines.append(f"Records in {results_dir}: {total.counts['done']} of {total.counts.total()} cells are done.")
    if total.counts["failed"]:
        lines.append(f"{total.counts['failed']} failed before and are not tried again unless retry_failed=true.")
    if total.counts["part"]:
        lines.append(f"Of the missing, {total.counts['part']} lack only some of their evaluations.")
    return "\n".join(lines)
