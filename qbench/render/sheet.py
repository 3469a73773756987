"""A table of text cells: what every table of the package becomes before it is written.

A sheet holds finished text. It knows no record and no number format; ``qbench.render.writers`` makes csv, Markdown,
LaTeX and terminal text of it.
"""

from dataclasses import dataclass, field

from qbench.render.footnotes import Footnotes


@dataclass
class Cell:
    """``marks`` stand raised behind ``text``: letters of the sheet's footnotes, or any other sign."""

    text: str
    marks: list[str] = field(default_factory=list)
    bold: bool = False


@dataclass
class Sheet:
    """A table with one head. Every row of every block has one cell per column of ``head``.

    ``name``          of its files and of its LaTeX label
    ``align``         "l" or "r" per column; the leading "l" columns name the row, numbers are "r"
    ``blocks``        (title or "", rows). A title stands above its rows. Where a row's first cell repeats the one
                      above, LaTeX and text leave it empty.
    ``csv_head``, ``csv_rows``  the same in long form, with all digits; None and NaN become empty
    ``lines``         sentences below the table that hold for all of it
    ``tex_align``     for LaTeX, where another than ``align``
    """

    name: str
    caption: str
    head: list[str]
    align: str
    blocks: list[tuple[str, list[list[Cell]]]] = field(default_factory=list)
    csv_head: list[str] = field(default_factory=list)
    csv_rows: list[list] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tex_align: str = ""
    footnotes: Footnotes = field(default_factory=Footnotes)

    def mark(self, text: str, count: int = 0) -> str:
        """The letter of a footnote, as ``Footnotes.mark``."""
        return self.footnotes.mark(text, count)
