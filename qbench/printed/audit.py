"""The audit of the printed tables: which numbers cannot be right, found by rules, and what we do about each.

No rule knows an answer: each computes it from the numbers, so the same rules would find the same kinds of slip
in another printing of the tables. Nothing is corrected. What is doubted carries a mark in ``results/tables``.
"""

from collections.abc import Sequence
from pathlib import Path

from qbench.files import write_atomic
from qbench.printed.finding import KINDS, NAMES, Book, Cell, Finding, cells, mean, short
from qbench.printed.published import Printed, load
from qbench.printed.rules_cells import above_16_bit, below_16_bit, impossible, means, misprints, nans
from qbench.printed.rules_rows import base_rows, exchanged, group_order, larger_worse, near_equal, repeated_rows
from qbench.printed.rules_text import drops, orders, scope
from qbench.render.escape import tex

RULES = (group_order, exchanged, repeated_rows, misprints, impossible, above_16_bit, below_16_bit, means)
RULES += (base_rows, nans, near_equal, larger_worse, drops, orders, scope)


def findings(rows: list[Printed]) -> list[Finding]:
    """All findings in ``rows`` (as ``qbench.printed.published.load`` gives them), in the order of ``KINDS``."""
    book = Book(rows)
    found = [finding for rule in RULES for finding in rule(book)]
    return sorted(found, key=lambda f: list(KINDS).index(f.kind))


def doubted(found: Sequence[Finding]) -> dict[Cell, list[str]]:
    """The kinds of finding that doubt each cell; cells nobody doubts are not in it."""
    out: dict[Cell, list[str]] = {}
    for f in found:
        for cell in f.cells if KINDS[f.kind].doubted else ():
            if f.kind not in out.setdefault(cell, []):
                out[cell].append(f.kind)
    return out


def write_audit(out_dir: str | Path, *, figures: bool = True) -> list[Path]:
    """audit.md, audit.tex and, with ``figures``, audit.png and audit.pdf in ``out_dir``; their paths."""
    rows, folder = load(), Path(out_dir)
    found = findings(rows)
    written = [folder / "audit.md", folder / "audit.tex"]
    write_atomic(written[0], to_markdown(rows, found))
    write_atomic(written[1], to_latex(rows, found))
    if figures:
        from qbench.printed.audit_figure import draw  # matplotlib takes a second to import

        written += draw(rows, folder)
    return written


def to_markdown(rows: list[Printed], found: list[Finding]) -> str:
    """The page: a summary, each finding with its evidence, then the means that are not."""
    cells_, doubt = len(rows) * 10, len(doubted(found))
    lines = [
        "# The printed tables, audited",
        "",
        f"The four result tables of arXiv 2505.02214v1 print {cells_:,} numbers. Rules that know no answer compare "
        f"each with its neighbours. They make {len(found)} findings and put {doubt} cells in doubt, most of them "
        "because AWQ's two group sizes look swapped. Nothing is corrected: our tables mark these cells.",
        "",
        "| What | Findings | Tables | Methods | Inference | What we do |",
        "|---|---:|---|---|---|---|",
    ]
    for kind, group in _by_kind(found):
        sure = {f.inference for f in group}
        said = "partly" if len(sure) > 1 else "yes" if sure == {True} else "no"
        link = kind.replace("_", "-")
        lines.append(
            f"| [{KINDS[kind].title}](#{link}) | {len(group)} | {_tables(group)} | {_methods(group)} | {said} | "
            f"{KINDS[kind].action} |"
        )
    lines += ["", "Inference: likely by the numbers, but only the authors can say. Otherwise it is plain arithmetic."]
    lines += ["", "![AWQ's group sizes, and the printed means](audit.png)"]
    for kind, group in _by_kind(found):
        lines += ["", f'<a id="{kind.replace("_", "-")}"></a>', f"## {KINDS[kind].title}", ""]
        if kind == "not_mean":
            lines += _means(rows, group)
        else:
            lines += [f"- {f.evidence}{' *(inference)*' if f.inference else ''}" for f in group]
        lines += ["", f"What we do: {KINDS[kind].action}"]
    return "\n".join(lines) + "\n"


def to_latex(rows: list[Printed], found: list[Finding]) -> str:
    """A booktabs table, one line a kind of finding."""
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}\centering\small",
        rf"\caption{{The printed tables, audited: {len(found)} findings, {len(doubted(found))} of {len(rows) * 10} "
        r"cells in doubt. $^{i}$ an inference.}\label{tab:audit}",
        r"\begin{tabular}{lrll}",
        r"\toprule",
        r"What & Findings & Tables & Methods \\",
        r"\midrule",
    ]
    for kind, group in _by_kind(found):
        mark = "$^{i}$" if all(f.inference for f in group) else ""
        lines.append(f"{tex(KINDS[kind].title)}{mark} & {len(group)} & {_tables(group)} & {tex(_methods(group))} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _by_kind(found: list[Finding]) -> list[tuple[str, list[Finding]]]:
    groups = {kind: [f for f in found if f.kind == kind] for kind in KINDS}
    return [(kind, group) for kind, group in groups.items() if group]


def _tables(group: list[Finding]) -> str:
    return ", ".join(map(str, sorted({k for f in group for k in f.tables})))


def _methods(group: list[Finding]) -> str:
    found = {m for f in group for m in f.methods}
    return ", ".join("16 bit" if m == "none" else name for m, name in NAMES.items() if m in found)


def _means(rows: list[Printed], group: list[Finding]) -> list[str]:
    """The rows whose printed mean is off, largest first."""
    bad = {f.cells[0] for f in group}
    off = [r for r in rows if cells(r, ["zeroshot_mean"])[0] in bad]
    off.sort(key=lambda r: -abs(r.values["zeroshot_mean"] - mean(r)))
    lines = ["| Table | Model | Method | #W | #A | Printed | Mean of the six | Difference |"]
    lines.append("|---:|---|---|---:|---:|---:|---:|---:|")
    for r in off:
        gap = r.values["zeroshot_mean"] - mean(r)
        name = f"{short(r.model)} | {NAMES[r.method]} | {r.w_bits:g} | {r.a_bits}"
        lines.append(f"| {r.table} | {name} | {r.text['zeroshot_mean']} | {mean(r):.2f} | {gap:+.2f} |")
    return lines
