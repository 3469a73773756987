"""Records to tables and figures: ``results/measurements`` in, ``results/tables`` and ``results/figures`` out.

The same records give the same bytes. Whatever part of the records exists is shown; a cell nobody measured is
"–", one that failed says so, one that diverged keeps its inf or nan. The paper's four tables are always there,
ours beside the printed numbers as far as measured, and ``results/audit`` says which printed ones cannot be right.
"""

import sys
import warnings
from pathlib import Path

from qbench.files import write_atomic
from qbench.printed.audit import write_audit
from qbench.printed.published import METRICS, TABLES
from qbench.printed.published import load as load_published
from qbench.protocol import PROTOCOLS, name_of
from qbench.render.footnotes import Footnotes
from qbench.render.writers import to_text, write
from qbench.report.latency import write_latency
from qbench.report.quality.frame import frame, layer_frame
from qbench.report.quality.packed_models import KERNEL_TABLES, kernel_sheet
from qbench.report.quality.table import TableSpec, make_table, specs
from qbench.report.quality.text import matrix_sheet, summary_sheet
from qbench.report.quality.variants import flaw
from qbench.report.reproduction.compare import reproduce
from qbench.report.reproduction.measured_cells import of_table
from qbench.report.reproduction.sheet import sheet as paper_sheet
from qbench.store import Store

__all__ = ["TableSpec", "build", "frame", "layer_frame", "load", "main", "make_table", "paper_table", "summary"]
__all__ += ["reproduce", "write_audit"]


def load(results_dir: str | Path) -> tuple[list, list[dict]]:
    """(measurements, failures) of a results folder; what cannot be read or shown is left out with a warning."""
    store = Store(results_dir)
    return _shown(store.measurements()), [f for f in store.failures() if not flaw(f["science"])]


def _shown(measurements: list) -> list:
    for m in measurements:
        if why := flaw(m.science):
            warnings.warn(f"left out: record {m.id}, as {why}", stacklevel=3)
    return [m for m in measurements if not flaw(m.science)]


def build(
    results_dir: str | Path, out: str | Path | None = None, *, figures: bool = True, paper: bool = True
) -> list[Path]:
    """Writes ``out``/tables, ``out``/figures and ``out``/audit (default: in ``results_dir``); the paths, sorted.

    Without ``paper``, or without any record, neither the paper's tables nor the audit. ValueError, after all else
    is written, where records contradict each other in a cell of the paper's tables.
    """
    measurements, failures = load(results_dir)
    out, df, written = Path(out or results_dir), frame(measurements, failures), []

    def put(name: str, text: str) -> None:
        path = out / "tables" / name
        write_atomic(path, text)
        written.append(path)

    for spec in specs(df["model"].unique()):
        table, tables = make_table(spec, df), out / "tables"
        for t in (table, make_table(spec, df, delta=True)) if spec.delta else (table,):
            written += write(matrix_sheet(t), tables) if t.rows and t.columns else []
        if spec.summary:
            name = spec.name.removesuffix("_matrix") + "_summary.md"
            put(name, f"```text\n{to_text(summary_sheet(table, Footnotes()))}```\n")
        if spec.figures and figures:
            from qbench.report.figures import draw  # matplotlib takes a second to import

            written += draw(table, df, layer_frame(measurements), out / "figures")
    kernels = frame(measurements, failures, kernels=True)
    for sheet in (kernel_sheet(kernels, table) for table in KERNEL_TABLES):
        written += write(sheet, out / "tables") if sheet.csv_rows else []
    written += write_latency(results_dir, measurements, out, figures=figures)
    if paper and len(df):
        written += write_audit(out / "audit", figures=figures)
        written += _paper_tables(measurements, failures, out, figures)
    return sorted(written)


def _paper_tables(measurements: list, failures: list[dict], out: Path, figures: bool) -> list[Path]:
    printed, refused, written = load_published(), [], []
    for protocol in PROTOCOLS:
        tables = []
        for k in TABLES:
            there = any(name_of(m.protocol) == protocol for m in of_table(measurements, k, printed))
            if protocol != "paper" and not there:
                continue
            try:
                t = reproduce(measurements, k, protocol, failures=failures)
            except ValueError as e:
                refused.append(f"table {k}, protocol {protocol}: {e}")
                continue
            tables.append(t)
            written += write(paper_sheet(t), out / "tables")
        if figures and any(line.measured for t in tables for line in t.lines):
            from qbench.report.reproduction.figure import draw

            written += draw(tables, out / "figures")
    if refused:
        raise ValueError("; ".join(refused))
    return written


def paper_table(results_dir: str | Path, table: int, protocol: str | None = None, metric: str | None = None) -> str:
    """One of the paper's tables with ours beside it, as text; ValueError as in ``reproduce``."""
    measurements, failures = load(results_dir)
    metrics = (metric,) if metric else METRICS
    return to_text(paper_sheet(reproduce(measurements, table, protocol, metrics, failures)))


def summary(results_dir: str | Path) -> str:
    """The compact tables as text for a terminal, at most 100 columns wide; "" where there is no record."""
    df, footnotes = frame(*load(results_dir)), Footnotes()
    tables = [make_table(spec, df) for spec in specs(df["model"].unique()) if spec.summary]
    return to_text(*(summary_sheet(t, footnotes) for t in tables)) if tables else ""


def main(
    results_dir: str | Path,
    out: str | Path | None = None,
    *,
    figures: bool = True,
    paper: bool = True,
    table: int | None = None,
    protocol: str | None = None,
    metric: str | None = None,
    stream=None,
) -> int:
    """Builds everything, prints the compact table and where the files lie; 1 where there is no record.

    With ``table`` (1 to 4) it builds nothing and prints that table of the paper, under ``protocol`` and only
    ``metric`` if named. 2 where the request or the records contradict themselves.
    """
    stream = stream or sys.stdout
    if table is None and (protocol or metric):
        print("a protocol or a metric is chosen for one of the paper's tables: name it with table 1 to 4", file=stream)
        return 2
    try:
        if table is not None:
            print(paper_table(results_dir, table, protocol, metric), file=stream, end="")
            return 0
        paths = build(results_dir, out, figures=figures, paper=paper)
    except ValueError as e:
        print(f"qbench report: {e}", file=stream)
        return 2
    if not paths:
        where = Path(results_dir) / "measurements"
        print(f"no records in {where}; measure something first, e.g. qbench run model=nano-s", file=stream)
        return 1
    print(summary(results_dir), file=stream)
    for folder in dict.fromkeys(p.parent for p in paths):
        names = dict.fromkeys(p.stem for p in paths if p.parent == folder)
        print(f"{folder}: {', '.join(names)}", file=stream)
    return 0
