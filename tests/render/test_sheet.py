"""One sheet in all forms it is written in."""

import math

import pytest

from qbench.render.escape import md, tex
from qbench.render.footnotes import Footnotes
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import to_csv, to_latex, to_markdown, to_tabular, to_text, write


@pytest.fixture
def sheet():
    s = Sheet("study", "A study of 5 % & more", ["Model", "Method", "8 bit", "4 bit"], "llrr")
    a, b = s.mark("damping raised to 0.1"), s.mark("failed: no scale")
    rows = [["s", "RTN", Cell("2.84"), Cell("3.29", [a])], ["s", "GPTQ", Cell("2.85", bold=True), Cell("failed", [b])]]
    s.blocks = [("", [[Cell(x) if isinstance(x, str) else x for x in row] for row in rows])]
    s.csv_head, s.csv_rows = ["model", "bits", "ppl"], [["s", 8, 2.8412345], ["s", 4, math.nan], ["s", 2, None]]
    s.lines = ["Bold: the best | no bold where all tie."]
    s.mark("damping raised to 0.3")
    return s


def test_csv_has_six_digits_and_an_empty_cell_where_there_is_no_number(sheet):
    assert to_csv(sheet) == "model,bits,ppl\ns,8,2.84123\ns,4,\ns,2,\n"


def test_markdown(sheet):
    assert to_markdown(sheet).splitlines() == [
        "**A study of 5 % & more**",
        "",
        "| Model | Method | 8 bit | 4 bit |",
        "|---|---|---:|---:|",
        "| s | RTN | 2.84 | 3.29<sup>a</sup> |",
        "| s | GPTQ | **2.85** | failed<sup>b</sup> |",
        "",
        r"- Bold: the best \| no bold where all tie.",
        "- <sup>a</sup> damping raised to 0.1 to 0.3",
        "- <sup>b</sup> failed: no scale",
    ]


def test_latex_names_a_group_once(sheet):
    for text, a, b in ((to_latex(sheet), "$^{a}$", "$^{b}$"), (to_tabular(sheet), "", "")):
        assert rf"s & RTN & 2.84 & 3.29{a} \\" in text
        assert f"\n & GPTQ & \\textbf{{2.85}} & failed{b} \\\\\n" in text
        assert r"Model & Method & 8 bit & 4 bit \\" in text
    assert r"\caption{A study of 5 \% \& more}\label{tab:study}\\" in to_latex(sheet)
    assert "landscape" not in to_latex(sheet)
    sheet.head, sheet.align = ["x"] * 15, "r" * 15
    assert to_latex(sheet).count("landscape") == 2


def test_text_aligns_numbers_and_keeps_marks_behind_them(sheet):
    assert to_text(sheet).splitlines() == [
        "A study of 5 % & more",
        "",
        "Model  Method  8 bit   4 bit",
        "s      RTN     2.84    3.29ᵃ",
        "       GPTQ    2.85* failedᵇ",
        "",
        "Bold: the best | no bold where all tie.",
        "ᵃ damping raised to 0.1 to 0.3",
        "ᵇ failed: no scale",
    ]


def test_text_puts_a_title_in_the_head_and_a_long_name_above_its_cells(sheet):
    sheet.blocks = [("accuracy", [[Cell("s"), Cell("a name " * 20), Cell("1"), Cell("2")]])]
    lines = to_text(sheet).splitlines()
    assert lines[2] == "accuracy  8 bit 4 bit"
    assert max(map(len, lines)) <= 100
    assert lines[3].split()[:3] == ["s", "a", "name"]
    assert lines[5].split() == ["1", "2"]


def test_a_block_with_a_title_begins_a_markdown_table(sheet):
    row = [Cell("x")] * 4
    sheet.blocks = [("one", [row]), ("", [row]), ("two", [row])]
    assert to_markdown(sheet).count("|---|---|---:|---:|") == 2
    assert to_latex(sheet).count("multicolumn{4}{l}") == 2


def test_a_sheet_is_three_files(sheet, tmp_path):
    assert [p.name for p in write(sheet, tmp_path / "new")] == ["study.csv", "study.md", "study.tex"]
    assert (tmp_path / "new" / "study.csv").read_text() == to_csv(sheet)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["damping raised to 0.2", "damping raised to 0.1", "damping raised to 0.4"], "damping raised to 0.1 to 0.4"),
        (["mean of 3 of 4", "mean of 11 of 12"], "mean of 3 of 4 or 11 of 12"),
        (["12 of 9e-3 lost", "12 of 9e-3 lost"], "12 of 9e-3 lost (in 1 to 2 linears of the model)"),
        (["failed: 1 x", "failed: 2 x"], "failed: 1 x"),
    ],
)
def test_a_footnote_is_whole(texts, said):
    feet = Footnotes()
    for i, text in enumerate(texts):
        feet.mark(text, (i + 1) * (text[0] == "1"))
    assert said == feet.texts()["a"]


def test_letters_can_be_raised():
    feet = Footnotes()
    letters = [feet.mark(f"failed: {i}") for i in range(27)]
    assert letters[24:] == ["z", "aa", "ab"]
    assert "q" not in letters


def test_signs_are_escaped():
    assert tex("a_b & 5% → {x}") == r"a\_b \& 5\% $\rightarrow$ \{x\}"
    assert md("a|b\nc") == r"a\|b c"
