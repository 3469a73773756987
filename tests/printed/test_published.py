"""The printed numbers: whole, and read as printed."""

import math
import re

import pytest

from qbench.printed.published import METRICS, is_printed, load


def row(table, model, method, w_bits, a_bits=16):
    (found,) = [r for r in load() if (r.table, r.model, r.method, r.a_bits) == (table, model, method, a_bits)
                and r.w_bits == w_bits]  # fmt: skip
    return found


def test_all_numbers_are_there():
    rows = load()
    assert [sum(r.table == k for r in rows) for k in (1, 2, 3, 4)] == [70, 81, 45, 54]
    assert all(tuple(r.values) == METRICS == tuple(r.text) for r in rows)
    assert len({r.model for r in rows}) == 11
    assert {r.method for r in rows} == {"none", "rtn", "gptq", "awq", "smoothquant", "billm"}


def test_numbers_are_as_printed():
    eight = row(4, "qwen3-8b", "awq", 4)
    assert eight.group_size == 128
    assert (eight.values["mmlu"], eight.text["mmlu"]) == (69.3, "69.3")
    broken = row(1, "qwen3-0.6b-base", "smoothquant", 4, 4)
    assert broken.text["wikitext2_ppl"] == "5.25E4"
    assert broken.values["wikitext2_ppl"] == 52500
    assert broken.group_size is None
    lost = row(1, "qwen3-0.6b-base", "rtn", 2)
    assert lost.text["c4_ppl"] == "NaN"
    assert math.isnan(lost.values["c4_ppl"])
    assert row(3, "qwen3-0.6b-base", "billm", 1.06).values["c4_ppl"] == 28500


def test_the_last_printed_digit():
    assert row(4, "qwen3-8b", "awq", 4).step("mmlu") == pytest.approx(0.1)
    assert row(1, "qwen3-14b-base", "none", 16).step("c4_ppl") == pytest.approx(0.01)
    assert row(1, "qwen3-0.6b-base", "smoothquant", 4, 4).step("wikitext2_ppl") == pytest.approx(100)


def test_every_cell_is_a_number_as_printed_and_every_row_is_there_once():
    rows = load()
    assert all(re.fullmatch(r"NaN|\d+(\.\d+)?(E\d+)?", x) for r in rows for x in r.text.values())
    assert all(0 <= r.values[m] <= 100 for r in rows for m in METRICS[2:])
    assert len({(r.table, *r.cell) for r in rows}) == len(rows)


@pytest.mark.parametrize(
    ("cell", "there"),
    [
        ((1, "qwen3-8b-base", "gptq", 4, 16), True),
        ((1, "qwen3-8b-base", "gptq", 3, 16), False),
        ((1, "qwen3-8b", "gptq", 4, 16), False),
        ((2, "qwen3-32b", "smoothquant", 8, 8), False),
        ((2, "qwen3-14b", "smoothquant", 4, 4), True),
        ((2, "qwen3-14b", "smoothquant", 8, 4), False),
        ((3, "qwen3-8b-base", "rtn", 4, 16), False),
        ((3, "qwen3-8b-base", "billm", 4, 16), True),
        ((3, "qwen3-8b-base", "billm", None, 16), True),
        ((1, "qwen3-8b-base", "billm", 1.05, 16), False),
        ((4, "qwen3-32b", "none", 2, 16), True),
        ((3, "qwen3-32b", "none", 16, 16), False),
        ((4, "nano-s", "gptq", 4, 16), False),
    ],
)
def test_which_cells_are_printed(cell, there):
    assert is_printed(*cell) is there


@pytest.mark.parametrize("table", [0, 5, "1", None])
def test_there_are_four_tables(table):
    with pytest.raises(ValueError, match="1, 2, 3 and 4"):
        is_printed(table, "qwen3-8b", "none", 16, 16)


def test_every_row_printed_is_printed():
    assert all(is_printed(r.table, r.model, r.method, r.w_bits, r.a_bits) for r in load())
