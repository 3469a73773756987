"""Writes what paper/paper.tex reads beside results/: python -m experiments.paper [--results DIR] [--out DIR]

These are the numbers of the text (numbers.tex), the two tables that only the paper has, and lists of all further
tables, figures and records, so that a new one is in the next PDF without an edit. Needs no TeX.
"""

import argparse
import os
import sys
from pathlib import Path

from experiments.paper import other_records
from experiments.paper.numbers import differs_singly, numbers
from experiments.paper.tables import ablations, compact
from qbench.files import write_atomic
from qbench.render.escape import tex
from qbench.report import load

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "paper"
OWN_PLACE = ("nano_matrix", "nano_matrix_delta", "nano_subjects", "table1", "table2", "table3", "table4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=PAPER / "generated")
    options = parser.parse_args()
    try:
        files = generate(options.results)
    except ValueError as e:
        print(f"paper: {e}", file=sys.stderr)
        return 1
    for name, text in files.items():
        write_atomic(options.out / name, text)
    print(f"{options.out}: {', '.join(files)}")
    return 0


def generate(results: Path) -> dict[str, str]:
    """File name to text; ValueError where ``results`` has no record of the nano study."""
    measurements = load(results)[0]
    all_of_them = load(results / "nano_ablations")[0]
    singly = [m for m in all_of_them if differs_singly(m)]
    values = numbers(results, measurements, singly, ROOT / "qbench" / "nano" / "models")
    reach = os.path.relpath(results, PAPER)
    files = {
        "numbers.tex": "".join(f"\\setresult{{{key}}}{{{text}}}\n" for key, text in values.items()),
        "results.tex": f"\\newcommand{{\\results}}{{{reach}}}\n",
        "nano.tex": compact(measurements),
        "ablations.tex": ablations(singly) if singly else "",
        "further.tex": further(results, reach),
    }
    for name in other_records.FOLDERS:
        files[f"{name}.tex"] = other_records.inputs(results / name, f"{reach}/{name}")
    return files | {"records.tex": "".join(other_records.tables(results / name) for name in other_records.FOLDERS)}


def further(results: Path, reach: str) -> str:
    """Tables and figures of results/ that the text does not name, such as those of released models."""
    tables = [p for p in sorted((results / "tables").glob("*.tex")) if p.stem not in OWN_PLACE]
    figures = [p for p in sorted((results / "figures").glob("*.pdf")) if not p.stem.startswith("nano_matrix_")]
    lines = [rf"\begingroup\let\scriptsize\tiny\input{{{reach}/tables/{p.name}}}\endgroup" for p in tables]
    lines += [rf"\whole{{{reach}/figures/{p.name}}}{{Drawn from the records: {tex(p.stem)}}}" for p in figures]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
