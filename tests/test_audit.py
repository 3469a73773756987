"""The audit finds each known defect of the printed tables by its rules, and nothing in tables without any."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.audit.__main__ import doubts_csv, to_markdown, write
from experiments.audit.book import Book, billions
from experiments.audit.rules import doubted, findings
from qbench.files import packaged
from qbench.printed.published import METRICS, PERPLEXITIES, TASKS, doubts, load

ZERO_SHOT = {*TASKS, "zeroshot_mean"}


@pytest.fixture(scope="module")
def rows():
    return load()


@pytest.fixture(scope="module")
def found(rows):
    return findings(rows)


def of(finding, part):
    """The models, tables, ... that a finding is about."""
    return {getattr(cell, part) for cell in finding.cells}


def kind(found, name, **wanted):
    """The findings of a kind that have the wanted model, table, method, bits and metric in one of their cells."""
    return [f for f in found if f.kind == name and any(wanted.items() <= cell._asdict().items() for cell in f.cells)]


def one(found, name, **wanted):
    (finding,) = kind(found, name, **wanted)
    return finding


# --- the defects of the printed tables ---


@pytest.mark.parametrize(
    ("name", "where", "about", "words"),
    [
        ("group_order", {"w_bits": 4}, {"method": {"awq"}, "table": {1, 2, 3, 4}}, "AWQ W4|11/11 models in C4 PPL"),
        ("group_order", {"w_bits": 3}, {"method": {"awq"}, "table": {1, 2, 3, 4}}, "AWQ W3|11/11 models in MMLU"),
        ("group_order", {"w_bits": 4}, {}, "GPTQ W4 keeps the order in 11 and 11"),
        ("repeated_row", {}, {"model": {"qwen3-4b"}, "metric": set(METRICS)}, "repeats 1.7B's row in 10 of 10 cells"),
        ("exchanged", {"w_bits": 8}, {"model": {"qwen3-8b", "qwen3-14b"}, "metric": ZERO_SHOT}, "Table 2, AWQ W8"),
        ("exchanged", {"w_bits": 4}, {"model": {"qwen3-8b", "qwen3-14b"}, "metric": ZERO_SHOT}, "Table 2, AWQ W4"),
        ("exchanged", {"w_bits": 3}, {"model": {"qwen3-8b", "qwen3-14b"}, "metric": ZERO_SHOT}, "AWQ W3|probably too"),
        ("misprint", {"table": 2}, {"model": {"qwen3-8b"}, "metric": {"hellaswag"}}, "14B's 16-bit row|60.9 would fit"),
        ("misprint", {"table": 1}, {"model": {"qwen3-8b-base"}, "metric": {"winogrande"}}, "W8A8|72.5 would fit"),
        ("above_16", {"table": 1}, {"model": {"qwen3-8b-base"}, "metric": {"winogrande"}}, "77.5 over 72.1"),
        ("impossible", {}, {"metric": {"arc_easy", "zeroshot_mean"}}, "Table 2, 4B, GPTQ W2|80.1|45.3"),
        ("base_differs", {"model": "qwen3-1.7b"}, {"metric": {"c4_ppl"}}, "19.2|19.3"),
        ("base_differs", {"model": "qwen3-14b-base"}, {"metric": {"zeroshot_mean"}}, "73.7|73.65"),
        ("near_equal", {}, {"model": {"qwen3-0.6b", "qwen3-8b"}}, "3.35E4 / 2.29E4 and 3.36E4 / 2.29E4"),
        ("below_16_ppl", {"table": 4}, {"model": {"qwen3-4b"}}, "GPTQ W4 g128|13.5 is below the 16-bit model's 13.7"),
        ("larger_worse", {"table": 1}, {"model": {"qwen3-14b-base"}}, "14.0 / 19.1|8B-Base 9.90"),
        ("larger_worse", {"table": 2}, {"model": {"qwen3-32b"}}, "38.5 / 35.0|8B 12.0"),
    ],
)
def test_each_known_defect_is_one_finding(found, name, where, about, words):
    f = one(found, name, **where)
    assert {part: of(f, part) for part in about} == about
    assert all(word in f.evidence for word in words.split("|"))


def test_nothing_else_is_accused(found):
    assert {(c.method, c.w_bits) for f in kind(found, "group_order") for c in f.cells} == {("awq", 4), ("awq", 3)}
    assert all(len(of(f, "model")) == 11 for f in kind(found, "group_order"))
    assert {c[:5] for c in one(found, "repeated_row").cells} == {(2, "qwen3-4b", "gptq", 8, 16)}
    assert len(kind(found, "exchanged")) == 3
    assert {c for f in kind(found, "nan") for c in f.cells} == {
        *((1, "qwen3-0.6b-base", "rtn", 2, 16, m) for m in PERPLEXITIES),
        *((2, "qwen3-8b", "rtn", 2, 16, m) for m in PERPLEXITIES),
        (1, "qwen3-0.6b-base", "gptq", 2, 16, "c4_ppl"),
        *((4, "qwen3-32b", "awq", 2, 16, m) for m in PERPLEXITIES),
    }


def test_24_means_are_not_the_mean(found, rows):
    assert len(kind(found, "not_mean")) == 24
    assert all(len(f.cells) == 1 for f in kind(found, "not_mean"))
    off = sum(of(f, "method") == {"smoothquant"} for f in kind(found, "not_mean"))
    assert off > 0.4 * sum(r.method == "smoothquant" for r in rows)


@pytest.mark.parametrize(
    ("table", "model", "method", "w", "a", "printed", "recomputed"),
    [
        (1, "qwen3-0.6b-base", "smoothquant", 4, 8, "45.7", "49.12"),
        (3, "qwen3-1.7b-base", "billm", 1.04, 16, "34.5", "37.82"),
        (2, "qwen3-8b", "smoothquant", 8, 8, "74.0", "71.08"),
        (1, "qwen3-1.7b-base", "none", 16, 16, "65.6", "63.83"),
        (2, "qwen3-1.7b", "none", 16, 16, "63.25", "61.58"),
        (3, "qwen3-4b-base", "awq", 8, 16, "69.7", "68.77"),
    ],
)
def test_the_largest_of_them(found, table, model, method, w, a, printed, recomputed):
    f = one(found, "not_mean", table=table, model=model, method=method, w_bits=w, a_bits=a)
    assert f"printed {printed}, the six tasks average {recomputed}" in f.evidence


@pytest.mark.parametrize(
    "words",
    [
        ("8B model", "74.7 → 69.3 (-5.4", "74.7 → 71.9 (-2.8", "Table 4 only", "exchanged"),
        ("14B", "78.5 → 77.4 (-1.1", "78.5 → 75.9 (-2.6"),
        ("0.6B", "47.1 → 44.0 (-3.1, -6.6 %)", "47.1 → 40.0 (-7.1, -15.1 %)", "neither group size gives 10"),
        ("8B-Base", "10.4 → 23.8", "10.4 → 14.4", "exchanged"),
        ("BiLLM", "57.5", "54.9", "70.0", "does not surpass AWQ W3 per row"),
        ("1.8B, 7B and 72B", "1.7B, 8B and 32B"),
        ("5 bits, 6 bits and 7 bits",),
    ],
    ids=lambda words: words[0],
)
def test_the_text_against_the_tables(found, words):
    assert sum(all(w in f.evidence for w in words) for f in kind(found, "text")) == 1


# --- the rules themselves ---


def test_rules_find_nothing_in_clean_tables(rows):
    """Rows that lose a little with fewer bits, as they should, and a right mean: only the text remains."""
    book, clean = Book(rows), []
    for r in rows:
        base = book.all_tables(r.model, "none", 16)[0]
        loss = 0 if r.method == "none" else 2.0 ** (4 - max(r.w_bits, 2)) * (0.9 if r.group_size else 1)
        values = {m: round(base.values[m] * (1 + 0.01 * loss), 2) for m in PERPLEXITIES}
        values |= {m: round(base.values[m] - loss, 1) for m in (*TASKS, "mmlu")}
        values["zeroshot_mean"] = round(sum(values[t] for t in TASKS) / 6, 1)
        clean.append(replace(r, values=values, text={m: f"{v:g}" for m, v in values.items()}))
    assert {f.kind for f in findings(clean)} <= {"text"}


@pytest.mark.parametrize(
    ("table", "model", "method", "w", "change", "expected"),
    [
        (1, "qwen3-4b-base", "rtn", 8, {"piqa": "95.0"}, "above_16"),
        (1, "qwen3-4b-base", "rtn", 8, {"zeroshot_mean": "12.3"}, "not_mean"),
        (3, "qwen3-4b-base", "gptq", 4, {"c4_ppl": "9.0"}, "below_16_ppl"),
        (3, "qwen3-4b-base", "gptq", 4, {"c4_ppl": "NaN"}, "nan"),
        (3, "qwen3-8b-base", "awq", 2, {"piqa": "79.0"}, "impossible"),
        (3, "qwen3-8b-base", "none", 16, {"mmlu": "76.9"}, "base_differs"),
    ],
)
def test_a_new_slip_is_found_too(rows, found, table, model, method, w, change, expected):
    assert not kind(found, expected, table=table, model=model, method=method, w_bits=w)
    changed = [
        replace(r, text=r.text | change, values=r.values | {m: float(v) for m, v in change.items()})
        if (r.table, r.model, r.method, r.w_bits) == (table, model, method, w)
        else r
        for r in rows
    ]
    assert kind(findings(changed), expected, table=table, model=model, method=method, w_bits=w)


def test_a_copied_row_is_found_and_laid_on_the_model_it_does_not_fit(rows):
    source = next(r for r in rows if (r.table, r.model, r.method, r.w_bits) == (3, "qwen3-4b-base", "gptq", 4))
    copied = [
        replace(r, text=source.text, values=source.values)
        if (r.table, r.model, r.method, r.w_bits) == (3, "qwen3-14b-base", "gptq", 4)
        else r
        for r in rows
    ]
    assert of(kind(findings(copied), "repeated_row", table=3)[0], "model") == {"qwen3-14b-base"}


def test_doubts_are_of_cells_that_exist(rows, found):
    there = {c for r in rows for c in r.cells()}
    doubts = doubted(found)
    assert set(doubts) <= there
    assert all(c in there for f in found for c in f.cells)
    assert "text" not in {k for kinds in doubts.values() for k in kinds}
    assert doubts[2, "qwen3-8b", "awq", 8, 16, "hellaswag"] == ["exchanged", "misprint"]


def test_sizes_and_means(rows):
    assert billions("qwen3-0.6b-base") == 0.6
    with pytest.raises(ValueError, match="no size in its name"):
        billions("qwen3-large")
    assert math.isclose(rows[0].task_mean, (70.0 + 65.6 + 33.9 + 41.1 + 58.5 + 69.7) / 6)


# --- what is written ---


def test_the_page_and_its_figure_show_every_finding_and_are_stable(rows, found, tmp_path):
    from matplotlib.image import imread

    first, second = (write(tmp_path / name, tmp_path / name) for name in ("a", "b"))
    assert [p.name for p in first] == ["audit.md", "audit.tex", "doubts.csv", "audit.png", "audit.pdf"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    page, tex = first[0].read_text(), first[1].read_text()
    assert all(f"- {f.evidence}\n" in page for f in found)
    assert tex.isascii()
    assert tex.count("{") == tex.count("}")
    assert tex.count(r"\\") == 1 + len({f.kind for f in found})
    pixels = imread(first[3])[..., :3]
    assert pixels.shape[1] == 1400
    assert 0.02 < (pixels.min(axis=2) < 0.95).mean() < 0.7


def test_what_is_committed_is_what_the_rules_say(rows, found):
    page = Path(__file__).parents[1] / "results" / "audit" / "audit.md"
    assert page.read_text() == to_markdown(rows, found), "run python -m experiments.audit"
    assert (packaged("paper/published") / "doubts.csv").read_text() == doubts_csv(rows, found)


def test_the_package_reads_the_doubts_as_the_rules_found_them(found):
    assert doubts() == {cell: tuple(kinds) for cell, kinds in doubted(found).items()}
