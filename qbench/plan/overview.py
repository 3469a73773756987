"""A plan as a table: one line per model, totals, and the assumptions behind them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from qbench.config import Config
from qbench.outcomes import columns
from qbench.plan import fits
from qbench.plan.estimate import Estimate, corrections, estimate, shape_of, shares_statistics
from qbench.plan.machines import GIB, Machine
from qbench.plan.status import Records

HEAD = ("model", "cells", "done", "failed", "missing", "hours", "GPU GiB", "CPU GiB", "disk GiB")


@dataclass
class Row:
    """One model: how many of its cells are measured, and what each of the missing ones costs."""

    model: str
    correction: tuple[float, int] | None = None
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
    def peak(self) -> fits.Bytes:
        gpu, cpu, disk = (max((getattr(c, kind) for c in self.costs), default=0) for kind in ("gpu", "cpu", "disk"))
        return fits.Bytes(gpu, cpu, disk + sum(cost.left for cost in self.costs))

    def words(self) -> tuple[str, ...]:
        """The cells of its line, under HEAD."""
        hours = f"{self.seconds.total() / 3600:.2f}" if self.missing else "-"
        sizes = [f"{x / GIB:.1f}" if x else "-" for x in (self.peak.gpu, self.peak.ram, self.peak.disk)]
        counts = (self.counts.total(), self.counts["done"], self.counts["failed"], self.missing)
        return (self.model, *map(str, counts), hours, *sizes)


def rows(configs: list[Config], records: Records, machine: Machine) -> list[Row]:
    """One row per model, in the sweep's order. A cell is done if all its evaluations are, failed if one has failed."""
    corrected, found, known = corrections(configs, records, machine), {}, set()
    for config in configs:
        name, shape, status = config.model.name, shape_of(config.model), records.status(config)
        row = found.setdefault(name, Row(name, corrected.get(name)))
        todo = [part for part, how in status.items() if how == "missing"]
        partly = "part" if len(todo) < len(status) else "missing"
        row.counts["failed" if "failed" in status.values() else partly if todo else "done"] += 1
        if "failed" in status.values() or not todo:
            continue
        if shape is None:
            row.costs.append(Estimate({}, 0, 0, 0, 0, ("what a model of unknown shape needs",)))
            continue
        data = (config.model, config.calib)
        cost = estimate(config, shape, machine, todo, data in known)
        cost.seconds["evaluate"] *= row.correction[0] if row.correction else 1
        row.costs.append(cost)
        known |= {data} if shares_statistics(config, shape) else set()
    return list(found.values())


def text(rows: list[Row], machine: Machine, results_dir: Path) -> str:
    """The table, the hours of each phase, and the assumptions."""
    costs = [cost for row in rows for cost in row.costs]
    total = Row("all", counts=sum((row.counts for row in rows), Counter()), costs=costs)
    table = [HEAD, *(row.words() for row in ([*rows, total] if len(rows) > 1 else rows))]
    lines = ["  ".join(row) for row in columns(table, left=1)]
    if total.missing:
        phases = ", ".join(f"{name} {s / 3600:.2f}" for name, s in total.seconds.items() if s > 0)
        lines += ["", f"Hours by phase: {phases}.", f"An estimate for {machine.name}: {machine.basis}."]
        lines += [
            f"Corrected for {r.model}: evaluation x {r.correction[0]:.2g}, by {r.correction[1]} records of its device."
            for r in rows
            if r.correction and r.missing
        ]
        lines += sorted({f"Not in it: {what}." for cost in costs for what in cost.unknown})
    lines.append(f"Records in {results_dir}: {total.counts['done']} of {total.counts.total()} cells are done.")
    if total.counts["failed"]:
        lines.append(f"{total.counts['failed']} failed before and are not tried again unless retry_failed=true.")
    if total.counts["part"]:
        lines.append(f"Of the missing, {total.counts['part']} lack only some of their evaluations.")
    return "\n".join(lines)
