"""Records to tables and figures: ``results/measurements`` in, ``results/tables`` and ``results/figures`` out.

The same records give the same bytes. Whatever part of the records exists is shown; a cell nobody measured is
"–", one that failed says so, one that diverged keeps its inf or nan.
"""

import json
import sys
from pathlib import Path

from qbench.record import Store, write_atomic
from qbench.report.frame import frame, layer_frame
from qbench.report.specs import specs
from qbench.report.summary import summarize
from qbench.report.table import TableSpec, make_table
from qbench.report.write import to_csv, to_latex, to_markdown

__all__ = ["TableSpec", "build", "frame", "layer_frame", "load", "main", "make_table", "summary"]


def load(results_dir: str | Path) -> tuple[list, list[dict]]:
    """(measurements, failures) of a results folder; files that cannot be read are left out."""
    failures = []
    for path in sorted((Path(results_dir) / "failures").glob("*.json")):
        try:
            failure = json.loads(path.read_text())
            if {"id", "science", "error"} <= set(failure):
                failures.append(failure)
        except ValueError:
            continue
    return Store(results_dir).measurements(), failures


def build(results_dir: str | Path, out: str | Path | None = None, *, figures: bool = True) -> list[Path]:
    """Writes ``out``/tables and ``out``/figures (default: in ``results_dir``); the paths, sorted."""
    measurements, failures = load(results_dir)
    out, df, written = Path(out or results_dir), frame(measurements, failures), []

    def put(name: str, text: str) -> None:
        path = out / "tables" / name
        write_atomic(path, text)
        written.append(path)

    for spec in specs(df["science"]):
        table = make_table(spec, df)
        deltas = [("_delta", make_table(spec, df, delta=True))] if spec.delta else []
        for suffix, t in [("", table), *deltas]:
            if t.rows and t.columns:
                for extension, write in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
                    put(f"{spec.name}{suffix}.{extension}", write(t))
        if spec.summary:
            name = spec.name.removesuffix("_matrix") + "_summary.md"
            put(name, f"```text\n{summarize(table)}```\n")
        if spec.figures and figures:
            from qbench.report.figures import draw  # matplotlib takes a second to import

            written += draw(table, layer_frame(measurements), out / "figures")
    return sorted(written)


def summary(results_dir: str | Path) -> str:
    """The compact tables as text for a terminal, at most 100 columns wide; "" where there is no record."""
    df = frame(*load(results_dir))
    return "\n".join(summarize(make_table(spec, df)) for spec in specs(df["science"]) if spec.summary)


def main(results_dir: str | Path, out: str | Path | None = None, *, figures: bool = True, stream=None) -> int:
    """Builds everything, prints the compact table and where the files lie; 1 where there is no record."""
    stream = stream or sys.stdout
    paths = build(results_dir, out, figures=figures)
    if not paths:
        where = Path(results_dir) / "measurements"
        print(f"no records in {where}; measure something first, e.g. qbench run model=nano-s", file=stream)
        return 1
    print(summary(results_dir), file=stream)
    for folder in dict.fromkeys(p.parent for p in paths):
        names = dict.fromkeys(p.stem for p in paths if p.parent == folder)
        print(f"{folder}: {', '.join(names)}", file=stream)
    return 0
