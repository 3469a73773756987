"""Records to tables and figures: a results folder in, its folders ``tables`` and ``figures`` out.

The same records give the same bytes, and whatever part of the records exists is shown: a cell that was not measured
is "–", one that failed says so, one that diverged keeps its inf or nan. The paper's four tables are always written,
with our numbers beside the printed ones as far as measured.
"""

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from qbench.files import write_atomic
from qbench.record import Failure, Measurement
from qbench.render.sheet import Sheet
from qbench.render.writers import to_text, write
from qbench.report.latency.speeds import load as load_speeds
from qbench.report.latency.tables import sheets as latency_sheets
from qbench.report.page import can_write, write_page
from qbench.report.quality.comparison import comparison_sheet
from qbench.report.quality.frame import frame, layer_frame
from qbench.report.quality.packed_models import KERNEL_TABLES, kernel_sheet
from qbench.report.quality.table import SUMMARY, families, make_table
from qbench.report.quality.text import divergence_sheet, matrix_sheet, summary_sheet
from qbench.report.quality.variants import flaw
from qbench.report.reproduction.compare import reproduce_all
from qbench.report.reproduction.sheet import sheet as printed_sheet
from qbench.store import Store

__all__ = ["Report", "frame", "layer_frame", "load", "main", "make_table"]


def load(results_dir: str | Path) -> tuple[list[Measurement], list[Failure]]:
    """(measurements, failures) of a results folder; what cannot be read or shown is left out with a warning."""
    store, shown = Store(results_dir), []
    for m in store.measurements():
        if why := flaw(m.science):
            warnings.warn(f"left out: record {m.id}, as {why}", stacklevel=2)
        else:
            shown.append(m)
    return shown, [f for f in store.failures() if not flaw(f["science"])]


class Report:
    """The records of a results folder, read once."""

    def __init__(self, results_dir: str | Path):
        self.folder = Path(results_dir)
        self.records = load(results_dir)
        self.speeds = load_speeds(results_dir)
        self.kernels = frame(*self.records, kernels=True)
        self.families = families(frame(*self.records))
        self.compact = {name: make_table(part, compact=True) for name, part in self.families.items()}

    def summary(self) -> str:
        """The compact tables as text for a terminal, at most 100 columns wide; "" where there is no record."""
        return "\n".join(to_text(summary_sheet(t)) for t in self.compact.values())

    def write(self, out: str | Path | None = None, *, figures: bool = True) -> list[Path]:
        """Writes ``out``/tables, ``out``/figures and ``out``/index.html, a page with all records; the paths, sorted.

        ``out`` is by default the results folder. Without ``figures`` there are only tables. Without any record of
        quality there are no tables of the paper. ValueError, after all else is written, where records contradict each
        other in a cell of those.
        """
        out, written = Path(out or self.folder), []
        printed, refused = reproduce_all(*self.records) if self.families else ([], [])
        for s in [*self._sheets(), *map(printed_sheet, printed)]:
            if any(rows for _, rows in s.blocks):
                written += write(s, out / "tables")
        for name, t in self.compact.items():
            written.append(out / "tables" / f"{name}_summary.md")
            write_atomic(written[-1], f"```text\n{to_text(summary_sheet(t))}```\n")
        if figures:
            written += self._draw(out / "figures")
            if can_write() and (self.families or len(self.kernels)):
                written.append(write_page(*self.records, out / "index.html"))
        if refused:
            raise ValueError("; ".join(refused))
        return sorted(written)

    def _sheets(self) -> Iterator[Sheet]:
        """All tables but the paper's; one without rows has nothing to show."""
        for name, part in self.families.items():
            for options in ({}, {"delta": True}, {"subjects": True}):
                yield matrix_sheet(make_table(part, **options))
            yield comparison_sheet(self.compact[name], self.compact[name].choose(SUMMARY, 2))
            if part["metric"].str.contains("/kl_p").any():
                yield divergence_sheet(make_table(part, tokens=True), self.kernels)
        yield from (kernel_sheet(self.kernels, table) for table in KERNEL_TABLES)
        yield from (sheet for speeds in self.speeds for sheet in latency_sheets(speeds))

    def _draw(self, folder: Path) -> list[Path]:
        """Writes all figures that have something to show; the paths."""
        from qbench.report import figures  # matplotlib takes a second to import

        layers, written = layer_frame(self.records[0]), []
        for name, part in self.families.items():
            mine = layers[layers["model"].isin(part["model"])]
            written += figures.draw(f"{name}_matrix", part, mine, folder)
        return written


def main(args: list[str]) -> int:
    """Writes everything, prints the compact tables and where the files lie; 1 where there is no record, 2 where records
    contradict each other."""
    parser = argparse.ArgumentParser(prog="qbench report", description="Tables and figures from the records.")
    default = os.environ.get("QBENCH_RESULTS", "runs")
    parser.add_argument("results_dir", nargs="?", default=default, help="folder with records (default: %(default)s)")
    report = Report(parser.parse_args(args).results_dir)
    try:
        paths = report.write()
    except ValueError as e:
        print(f"qbench report: {e}")
        return 2
    if not paths:
        print(f"no records in {report.folder / 'measurements'}; measure something first, e.g. qbench run model=nano-s")
        return 1
    print(report.summary())
    for folder in dict.fromkeys(p.parent for p in paths):
        names = dict.fromkeys(p.stem for p in paths if p.parent == folder)
        print(f"{folder}: {', '.join(names)}")
    if not can_write():
        print("no index.html, the page with all records: it needs the package vl-convert-python")
    return 0
