"""A plain table of texts: blocks of rows under one head, notes below; as csv, Markdown and LaTeX."""

import csv
import io
from dataclasses import dataclass, field

from qbench.render.footnotes import Footnotes
from qbench.render.write import _md, _sup, _tex, _tex_sup

WIDE = 14  # columns from which a table is laid across


@dataclass
class Field:
    """A cell. ``marks`` are letters of the sheet's footnotes."""

    text: str
    marks: list[str] = field(default_factory=list)


@dataclass
class Sheet:
    """``align``: l or r for each column, numbers to the right. ``blocks``: (title or "", rows of the head's width).

    ``csv_head`` and ``csv_rows`` are the same in long form, with all digits. ``lines`` hold for the whole table.
    ``tex_align``: for LaTeX, if another than ``align``.
    """

    name: str
    caption: str
    head: list[str]
    align: str
    blocks: list[tuple[str, list[list[Field]]]] = field(default_factory=list)
    csv_head: list[str] = field(default_factory=list)
    csv_rows: list[list] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tex_align: str = ""
    footnotes: Footnotes = field(default_factory=Footnotes)

    def mark(self, text: str) -> str:
        """The letter of a footnote; texts that differ in their numbers only share one."""
        return self.footnotes.mark(text)


def to_csv(s: Sheet) -> str:
    """Long: one line a measured thing, six digits; what has no number is empty and its notes say why."""
    out = io.StringIO()
    w = csv.writer(out, lineterminator="\n")
    w.writerow(s.csv_head)
    w.writerows([_plain(x) for x in row] for row in s.csv_rows)
    return out.getvalue()


def to_markdown(s: Sheet) -> str:
    """A pipe table a block, then what holds for all and the footnotes."""
    lines = [f"**{s.caption}**", ""]
    for title, rows in s.blocks:
        lines += [f"*{title}*", ""] if title else []
        lines.append(f"| {' | '.join(map(_md, s.head))} |")
        lines.append("|" + "".join({"l": "---|", "r": "---:|"}[a] for a in s.align))
        lines += [f"| {' | '.join(_md(f.text) + _sup(f.marks) for f in row)} |" for row in rows]
        lines.append("")
    feet = [*s.lines, *(f"<sup>{mark}</sup> {text}" for mark, text in s.footnotes.texts().items())]
    return "\n".join([*lines, *(f"- {_md(line)}" for line in feet)]) + "\n"


def to_latex(s: Sheet) -> str:
    """A longtable that breaks over pages; needs booktabs and longtable, and pdflscape if it is wide."""
    wide = len(s.head) > WIDE
    head = " & ".join(map(_tex, s.head)) + r" \\"
    lines = [
        r"% \usepackage{booktabs,longtable" + ",pdflscape" * wide + "}",
        *[r"\begin{landscape}"] * wide,
        r"\begingroup\scriptsize\setlength{\tabcolsep}{2pt}",
        r"\begin{longtable}{" + (s.tex_align or s.align) + "}",
        rf"\caption{{{_tex(s.caption)}}}\label{{tab:{s.name}}}\\",
        *(r"\toprule", head, r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
    ]
    for i, (title, rows) in enumerate(s.blocks):
        lines += [r"\midrule"] * bool(i)
        lines += [rf"\multicolumn{{{len(s.head)}}}{{l}}{{\emph{{{_tex(title)}}}}} \\*"] if title else []
        lines += [" & ".join(_tex(f.text) + _tex_sup(f.marks) for f in row) + r" \\" for row in rows]
    feet = [*map(_tex, s.lines), *(rf"$^{{{m}}}$ {_tex(text)}" for m, text in s.footnotes.texts().items())]
    lines += [r"\end{longtable}", r"\noindent " + "\\\\\n".join(feet), r"\par\endgroup"]
    return "\n".join([*lines, *[r"\end{landscape}"] * wide]) + "\n"


def _plain(x) -> str:
    if x is None or x != x:
        return ""
    return f"{x:.6g}" if isinstance(x, float) else str(x)
