"""A sheet as csv, Markdown, LaTeX and text for a terminal. The same sheet gives the same bytes."""

import csv
import io
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qbench.files import write_atomic
from qbench.render.escape import md, tex
from qbench.render.sheet import Cell, Sheet

LANDSCAPE = 14  # a LaTeX table with more columns is laid across the page
WIDTH, NAME = 100, 24  # columns of a terminal, and of a row's name where the numbers leave it less
_RAISED = str.maketrans("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")


def write(s: Sheet, folder: Path) -> list[Path]:
    """Writes ``folder``/name.csv, .md and .tex; their paths."""
    paths = [folder / f"{s.name}.{extension}" for extension in ("csv", "md", "tex")]
    for path, text in zip(paths, (to_csv(s), to_markdown(s), to_latex(s))):
        write_atomic(path, text)
    return paths


def to_csv(s: Sheet) -> str:
    """The long form: numbers with six digits, a missing one empty."""
    out = io.StringIO()
    w = csv.writer(out, lineterminator="\n")
    w.writerow(s.csv_head)
    w.writerows([_csv(x) for x in row] for row in s.csv_rows)
    return out.getvalue()


def to_markdown(s: Sheet) -> str:
    """Caption, tables, the lines that hold for all rows, footnotes."""
    feet = [*s.lines, *(f"<sup>{mark}</sup> {text}" for mark, text in s.footnotes.texts().items())]
    return "\n".join([f"**{s.caption}**", "", *pipes(s), "", *(f"- {md(line)}" for line in feet)]) + "\n"


def pipes(s: Sheet) -> list[str]:
    """The lines of the Markdown tables alone; a block with a title begins a new one."""

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    head = [row(map(md, s.head)), "|" + "".join({"l": "---|", "r": "---:|"}[a] for a in s.align)]
    lines: list[str] = []
    for title, rows in s.blocks:
        if title or not lines:
            lines += [*[""] * bool(lines), *([f"*{md(title)}*", ""] if title else []), *head]
        lines += [row(map(_md, cells)) for cells in rows]
    return lines


def to_latex(s: Sheet) -> str:
    """A longtable that breaks over pages; needs booktabs and longtable, and pdflscape if it is wide."""
    wide = len(s.head) > LANDSCAPE
    feet = [*map(tex, s.lines), *(rf"$^{{{mark}}}$ {tex(text)}" for mark, text in s.footnotes.texts().items())]
    lines = [
        r"% \usepackage{booktabs,longtable" + ",pdflscape" * wide + "}",
        *[r"\begin{landscape}"] * wide,
        rf"\begingroup\scriptsize\setlength{{\tabcolsep}}{{{2 if wide else 3}pt}}",
        rf"\begin{{longtable}}{{{s.tex_align or s.align}}}",
        rf"\caption{{{tex(s.caption)}}}\label{{tab:{s.name}}}\\",
        *(*_tex_head(s), r"\endfirsthead", *_tex_head(s), r"\endhead", r"\bottomrule", r"\endfoot"),
        *_tex_rows(s),
        *(r"\end{longtable}", r"\noindent " + "\\\\\n".join(feet), r"\par\endgroup"),
        *[r"\end{landscape}"] * wide,
    ]
    return "\n".join(lines) + "\n"


def to_tabular(s: Sheet) -> str:
    """A bare LaTeX tabular without caption, marks and notes, for a text that brings its own; needs booktabs."""
    s = replace(s, blocks=[(title, [[replace(c, marks=[]) for c in row] for row in rows]) for title, rows in s.blocks])
    lines = [rf"\begin{{tabular}}{{{s.tex_align or s.align}}}", *_tex_head(s), *_tex_rows(s)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_text(s: Sheet) -> str:
    """A sheet for a terminal, with its footnotes; the best is marked by * instead of bold."""
    feet = [*s.lines, *(f"{raised([mark])} {text}" for mark, text in s.footnotes.texts().items())]
    lines = [*_fold(s.caption), "", *_text_rows(s), *(x for line in feet for x in _fold(line))]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _csv(x) -> str:
    if x is None or x != x:
        return ""
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def _md(c: Cell) -> str:
    text = f"**{md(c.text)}**" if c.bold else md(c.text)
    return text + (f"<sup>{','.join(c.marks)}</sup>" if c.marks else "")


def _tex(c: Cell) -> str:
    text = rf"\textbf{{{tex(c.text)}}}" if c.bold else tex(c.text)
    return text + (f"$^{{{','.join(c.marks)}}}$" if c.marks else "")


def _tex_head(s: Sheet) -> list[str]:
    return [r"\toprule", " & ".join(map(tex, s.head)) + r" \\", r"\midrule"]


def _tex_rows(s: Sheet) -> list[str]:
    lines = []
    for i, (title, rows) in enumerate(s.blocks):
        lines += [r"\midrule"] * bool(i)
        lines += [rf"\multicolumn{{{len(s.head)}}}{{l}}{{\emph{{{tex(title)}}}}} \\*"] if title else []
        rows = _once(rows)
        grouped = any(not row[0].text for row in rows)
        for k, row in enumerate(rows):
            lines += [r"\addlinespace"] * bool(k and grouped and row[0].text)
            lines.append(" & ".join(map(_tex, row)) + r" \\")
    return lines


def _once(rows: list[list[Cell]]) -> list[list[Cell]]:
    """The rows without a first cell that repeats the one above."""
    above = [""] + [row[0].text for row in rows]
    return [[Cell("") if row[0].text == text else row[0], *row[1:]] for text, row in zip(above, rows)]


def _text_rows(s: Sheet) -> list[str]:
    """Blocks of aligned lines, with columns "l" before columns "r"; a title takes the place of the first heads.

    A row's name that is too long for the terminal has lines of its own above the cells.
    """
    left = s.align.count("l")
    rows = [row for _, rows in s.blocks for row in _once(rows)]
    tail = max((len(_tail(c)) for row in rows for c in row[left:]), default=0)
    marked = [[c.text + _tail(c).ljust(tail * (j >= left and c.text != "")) for j, c in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(s.head, *marked)]

    def halves(cells: list[str]) -> tuple[str, str]:
        padded = [f"{x:{'<' if a == 'l' else '>'}{n}}" for x, a, n in zip(cells, s.align, widths)]
        return "  ".join(padded[:left]).rstrip(), " ".join(padded[left:])

    lines, found = [], iter(marked)
    for title, block in s.blocks:
        name, rest = halves(s.head)
        lines += [(title or name, rest), *(halves(next(found)) for _ in block), ("", "")]
    room = max(WIDTH - 2 - max((len(rest) for _, rest in lines), default=0), NAME)
    width = max((len(name) for name, rest in lines if rest and len(name) <= room), default=0)
    out = []
    for name, rest in lines:
        apart = len(name) > width
        out += _fold(name) if apart else []
        out += [f"{'' if apart else name:<{width}}  {rest}"] if rest or not apart else []
    return out


def _tail(c: Cell) -> str:
    return "*" * c.bold + raised(c.marks)


def raised(marks: list[str]) -> str:
    """Letters as superscripts; other signs as they are."""
    return "".join(marks).translate(_RAISED)


def _fold(line: str) -> list[str]:
    """A line too long for a terminal goes on below, indented."""
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""]
