"""A plan as a table: one line per model, totals, and the assumptions behind them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from qbench.config import Config
from qbench.plan import fits
from qbench.plan.downloads import model_bytes
from qbench.plan.estimate import Estimate, corrections, estimate, shape_of, shares_statistics
from qbench.plan.machines import GIB, Machine
from qbench.plan.status import Records

HEAD = ("model", "cells", "done", "failed", "missing", "hours", "GPU GiB", "CPU GiB", "disk GiB", "Hub GiB")
RECORD = 2 << 20  # bytes of all records of a cell with their samples


@dataclass
class Row:
    """One model: how many of its cells are measured, and what the missing ones need."""

    model: str
    hub: int
    counts: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    gpu: int = 0
    cpu: int = 0
    disk: int = 0
    left: int = 0
    correction: tuple[float, int] | None = None
    unknown: set = field(default_factory=set)

    @property
    def missing(self) -> int:
        return self.counts["missing"] + self.counts["part"]

    @property
    def peak(self) -> fits.Bytes:
        return fits.Bytes(self.gpu, self.cpu, self.disk + self.left)

    def add(self, cost: Estimate, keeps: bool) -> None:
        factor = self.correction[0] if self.correction else 1.0
        self.seconds.update({phase: s * (factor if phase == "evaluate" else 1.0) for phase, s in cost.seconds.items()})
        self.gpu, self.cpu, self.disk = max(self.gpu, cost.gpu), max(self.cpu, cost.cpu), max(self.disk, cost.disk)
        self.left += cost.left + (cost.disk if keeps else 0)
        self.unknown |= set(cost.unknown)


def rows(configs: list[Config], records: Records, machine: Machine) -> list[Row]:
    """One row per model, in the sweep's order. A cell is done if all its evaluations are, failed if one has failed."""
    corrected, found, known = corrections(configs, records, machine), {}, set()
    for config in configs:
        name, shape = config.model.name, shape_of(config.model)
        if name not in found:
            found[name] = Row(name, model_bytes(config.model, shape), correction=corrected.get(name))
        row, status = found[name], records.status(config)
        todo = [part for part, how in status.items() if how == "missing"]
        partly = "part" if len(todo) < len(status) else "missing"
        row.counts["failed" if "failed" in status.values() else partly if todo else "done"] += 1
        if "failed" in status.values() or not todo:
            continue
        if shape is None:
            row.unknown.add("what a model of unknown shape needs")
        else:
            data = (config.model, config.calib)
            row.add(estimate(config, shape, machine, todo, data in known), config.machine.keep_weights)
            known |= {data} if shares_statistics(config, shape) else set()
    return list(found.values())


def text(rows: list[Row], machine: Machine, results_dir: Path) -> str:
    """The table, the hours of each phase, and the assumptions."""
    body = [_words(row) for row in rows]
    total = Row("all", sum(row.hub for row in rows))
    for row in rows:
        total.counts.update(row.counts)
        total.seconds.update(row.seconds)
        total.left += row.left
    for key in ("gpu", "cpu", "disk"):
        setattr(total, key, max(getattr(row, key) for row in rows))
    table = [HEAD, *body, *([_words(total)] if len(rows) > 1 else [])]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join(w.ljust(n) if i == 0 else w.rjust(n) for i, (w, n) in enumerate(zip(r, widths))) for r in table]
    if total.missing:
        phases = ", ".join(f"{name} {s / 3600:.2f}" for name, s in total.seconds.items() if s > 0)
        lines += ["", f"Hours by phase: {phases}.", f"An estimate for {machine.name}: {machine.basis}."]
        lines += [
            f"Corrected for {r.model}: evaluation x {r.correction[0]:.2g}, by {r.correction[1]} records of its device."
            for r in rows
            if r.correction and r.missing
        ]
        lines += sorted({f"Not in it: {what}." for row in rows for what in row.unknown})
    lines.append(f"Records in {results_dir}: {total.counts['done']} of {sum(total.counts.values())} cells are done.")
    if total.counts["failed"]:
        lines.append(f"{total.counts['failed']} failed before and are not tried again unless retry_failed=true.")
    if total.counts["part"]:
        lines.append(f"Of the missing, {total.counts['part']} lack only some of their evaluations.")
    return "\n".join(lines)


def _words(row: Row) -> tuple[str, ...]:
    size = [f"{x / GIB:.1f}" if x else "-" for x in (row.gpu, row.cpu, row.disk + row.left, row.hub)]
    hours = f"{sum(row.seconds.values()) / 3600:.2f}" if row.missing else "-"
    counts = [row.counts["done"], row.counts["failed"], row.missing]
    return (row.model, str(sum(row.counts.values())), *map(str, counts), hours, *size)


def folder_problem(results_dir: Path, rows: list[Row]) -> str | None:
    """A warning if the disk of the results folder has no room for the missing records."""
    there, wanted = fits.free(results_dir), RECORD * sum(row.missing for row in rows)
    if there >= wanted:
        return None
    what = f"records need about {wanted / GIB:.1f} GiB in {results_dir}, but {there / GIB:.1f} are free"
    return f"{what}; set machine.results_dir to a larger disk"
