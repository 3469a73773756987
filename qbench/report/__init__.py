"""Records to tables and figures: a results folder in, its folders ``tables`` and ``figures`` out.

The same records give the same bytes, and whatever part of the records exists is shown: a cell that was not measured
is "–", one that failed says so, one that diverged keeps its inf or nan. The paper's four tables are always written,
with our numbers beside the printed ones as far as measured.
"""

import warnings
from pathlib import Path

import pandas as pd

from qbench.files import write_atomic
from qbench.printed.published import METRICS
from qbench.record import Failure, Measurement
from qbench.render.footnotes import Footnotes
from qbench.render.writers import to_text, write
from qbench.report.latency import write_latency
from qbench.report.page import can_write, write_page
from qbench.report.quality.comparison import comparison_sheet
from qbench.report.quality.frame import frame, layer_frame
from qbench.report.quality.packed_models import KERNEL_TABLES, kernel_sheet
from qbench.report.quality.table import SUMMARY, families, make_table
from qbench.report.quality.text import divergence_sheet, matrix_sheet, summary_sheet
from qbench.report.quality.variants import flaw
from qbench.report.reproduction import write_reproduction
from qbench.report.reproduction.compare import reproduce
from qbench.report.reproduction.sheet import sheet
from qbench.store import Store

__all__ = ["build", "frame", "layer_frame", "load", "main", "make_table", "paper_table", "summary"]


def load(results_dir: str | Path) -> tuple[list[Measurement], list[Failure]]:
    """(measurements, failures) of a results folder; what cannot be read or shown is left out with a warning."""
    store, shown = Store(results_dir), []
    for m in store.measurements():
        if why := flaw(m.science):
            warnings.warn(f"left out: record {m.id}, as {why}", stacklevel=2)
        else:
            shown.append(m)
    return shown, [f for f in store.failures() if not flaw(f["science"])]


def build(
    results_dir: str | Path,
    out: str | Path | None = None,
    *,
    figures: bool = True,
    paper: bool = True,
    page: bool = False,
) -> list[Path]:
    """Writes ``out``/tables and ``out``/figures (default: in ``results_dir``); the paths, sorted.

    With ``page`` also ``out``/index.html, a page with all records. Without ``paper``, or without any record, no tables
    of the paper. ValueError, after all else is written, where records contradict each other in a cell of those tables.
    """
    measurements, failures = load(results_dir)
    out, df, layers, written = Path(out or results_dir), frame(measurements, failures), layer_frame(measurements), []
    kernels, tables = frame(measurements, failures, kernels=True), out / "tables"
    for name, mine in families(df).items():
        shown = [make_table(mine), make_table(mine, delta=True)]
        shown += [make_table(mine, subjects=True)] * (name == "nano")
        written += [path for t in shown if t.rows and t.columns for path in write(matrix_sheet(t), tables)]
        pairs = comparison_sheet(compact := make_table(mine, compact=True), compact.choose(SUMMARY, 2))
        written += write(pairs, tables) if pairs.csv_rows else []
        if mine["metric"].str.contains("/kl_p").any():
            written += write(divergence_sheet(make_table(mine, tokens=True), kernels), tables)
        written.append(tables / f"{name}_summary.md")
        write_atomic(written[-1], f"```text\n{_summaries([mine])}```\n")
        if figures:
            from qbench.report.figures import draw  # matplotlib takes a second to import

            written += draw(shown[0].name, mine, layers[layers["model"].isin(mine["model"])], out / "figures")
    for s in (kernel_sheet(kernels, table) for table in KERNEL_TABLES):
        written += write(s, tables) if s.csv_rows else []
    written += write_latency(results_dir, out, figures=figures)
    if page and (len(df) or len(kernels)):
        written.append(write_page(measurements, failures, out / "index.html"))
    if paper and len(df):
        written += write_reproduction(measurements, failures, out, figures=figures)
    return sorted(written)


def paper_table(results_dir: str | Path, table: int, protocol: str | None = None, metric: str | None = None) -> str:
    """One of the paper's tables with our numbers beside the printed ones, as text; ValueError as in ``reproduce``."""
    measurements, failures = load(results_dir)
    return to_text(sheet(reproduce(measurements, table, protocol, (metric,) if metric else METRICS, failures)))


def summary(results_dir: str | Path) -> str:
    """The compact tables as text for a terminal, at most 100 columns wide; "" where there is no record."""
    parts = families(frame(*load(results_dir)))
    return _summaries(list(parts.values())) if parts else ""


def _summaries(parts: list[pd.DataFrame]) -> str:
    footnotes = Footnotes()
    return to_text(*(summary_sheet(make_table(part, compact=True), footnotes) for part in parts))


def main(
    results_dir: str | Path,
    out: str | Path | None = None,
    *,
    figures: bool = True,
    paper: bool = True,
    table: int | None = None,
    protocol: str | None = None,
    metric: str | None = None,
) -> int:
    """Builds everything, prints the compact table and where the files lie; 1 where there is no record.

    With ``table`` (1 to 4) it builds nothing and prints that table of the paper, under ``protocol`` and only
    ``metric`` if named. 2 where the request or the records contradict themselves.
    """
    if table is None and (protocol or metric):
        print("a protocol or a metric is chosen for one of the paper's tables: name it with table 1 to 4")
        return 2
    try:
        if table is not None:
            print(paper_table(results_dir, table, protocol, metric), end="")
            return 0
        paths = build(results_dir, out, figures=figures, paper=paper, page=figures and can_write())
    except ValueError as e:
        print(f"qbench report: {e}")
        return 2
    if not paths:
        where = Path(results_dir) / "measurements"
        print(f"no records in {where}; measure something first, e.g. qbench run model=nano-s")
        return 1
    print(summary(results_dir))
    for folder in dict.fromkeys(p.parent for p in paths):
        names = dict.fromkeys(p.stem for p in paths if p.parent == folder)
        print(f"{folder}: {', '.join(names)}")
    if figures and not can_write():
        print("no index.html, the page with all records: it needs the package vl-convert-python")
    return 0
