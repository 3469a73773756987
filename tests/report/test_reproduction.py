"""The paper's tables beside ours: which record is which cell, what is marked, and what is refused."""

import csv
import io
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from fakes.paper_records import evaluations, record, records, science, with_science

from qbench.printed.published import METRICS, TASKS, load
from qbench.protocol import judge
from qbench.record import Metric, digest
from qbench.render.writers import to_csv, to_latex, to_markdown
from qbench.report import Report, main
from qbench.report.reproduction.compare import reproduce
from qbench.report.reproduction.sheet import sheet
from qbench.store import Store

ROWS = load()


def printed(table, model, method, w_bits=None, a_bits=16):
    (row,) = [r for r in ROWS if (r.table, r.model, r.method, r.a_bits) == (table, model, method, a_bits)
              and w_bits in (None, r.w_bits)]  # fmt: skip
    return row


def line_of(t, row):
    (line,) = [x for x in t.lines if x.row == row]
    return line


# --- the cells ---


def test_every_printed_row_takes_its_record_and_no_other():
    wanted = [r for r in ROWS if r.model in ("qwen3-8b", "qwen3-8b-base")]
    by_id = {m.id: m for r in wanted for m in records(r)}  # the 16-bit rows of two tables are one record
    for k in (1, 2, 3, 4):
        t = reproduce(by_id.values(), k)
        for line in t.lines:
            assert line.measured == (line.row in wanted)
            for m in METRICS if line.measured else ():
                if line.row.method != "none" and m != "zeroshot_mean" and not math.isnan(line.row.values[m]):
                    assert line.ours[m].value == pytest.approx(line.row.values[m])
                    assert not line.printed[m].beyond
        assert [x.row for x in t.lines] == [r for r in ROWS if r.table == k]


def test_billm_of_other_tables_and_4_bit_activations_find_their_rows():
    for row in (printed(4, "qwen3-32b", "billm"), printed(2, "qwen3-14b", "smoothquant", 4, 4)):
        t = reproduce(records(row), row.table)
        assert [x.row for x in t.lines if x.measured] == [row]


def test_our_mean_is_of_the_six_and_needs_all_six():
    row = printed(2, "qwen3-4b", "gptq", 4)
    (six,) = records(row, only=("tasks",))
    ours = line_of(reproduce([six], 2), row).ours
    assert ours["zeroshot_mean"].value == pytest.approx(sum(row.values[t] for t in TASKS) / 6)
    assert ours["zeroshot_mean"].stderr == pytest.approx(0.4 / math.sqrt(6))
    five = replace(six, metrics={k: v for k, v in six.metrics.items() if k != "boolq/acc"})
    assert "zeroshot_mean" not in line_of(reproduce([five], 2), row).ours


@pytest.mark.parametrize(("off", "beyond"), [(0.0075, False), (0.0085, True), (-0.0085, True)])
def test_a_difference_is_marked_beyond_twice_its_error(off, beyond):
    row = printed(2, "qwen3-4b", "gptq", 4)
    (m,) = records(row, shift=off, only=("mmlu",))
    a = line_of(reproduce([m], 2), row).printed["mmlu"]
    assert a.tolerance == pytest.approx(2 * math.hypot(0.4, 0.1 / math.sqrt(12)))
    assert a.difference == pytest.approx(-100 * off)
    assert a.beyond is beyond


@pytest.mark.parametrize(("off", "beyond"), [(0.049, False), (-0.05, False), (0.051, True), (0.25, True)])
def test_an_unquantized_model_may_differ_by_rounding_only(off, beyond):
    row = printed(1, "qwen3-0.6b-base", "none")  # 12.7: 2 % of it are 0.25, within two standard errors
    exact = {"wikitext2/ppl": Metric(12.7 + off, "perplexity", 100, 0.2, [0.0])}
    a = line_of(reproduce([record(science(row), evaluations()["wikitext2_ppl"], exact)], 1), row).printed
    assert a["wikitext2_ppl"].tolerance == pytest.approx(0.05)
    assert a["wikitext2_ppl"].beyond is beyond


def test_a_record_without_an_error_is_never_marked_and_never_called_equal():
    row = printed(2, "qwen3-4b", "gptq", 4)
    m = record(science(row), evaluations()["c4_ppl"], {"c4/ppl": Metric(99.0, "perplexity", 100)})
    t = reproduce([m], 2)
    assert math.isnan(line_of(t, row).printed["c4_ppl"].tolerance)
    (cell,) = (r for r in csv.DictReader(io.StringIO(to_csv(sheet(t)))) if r["ours"])
    assert (cell["ours"], cell["beyond"]) == ("99", "")
    assert "| ours | – | 99.00 |" in to_markdown(sheet(t))


def test_rounding_of_the_print_alone_is_no_difference():
    row = printed(1, "qwen3-0.6b-base", "smoothquant", 4, 4)  # 5.25E4: one unit is 100
    exact = {"wikitext2/ppl": Metric(52545.0, "perplexity", 100, 0.0, [0.0])}
    m = record(science(row), evaluations()["wikitext2_ppl"], exact)
    a = line_of(reproduce([m], 1), row).printed["wikitext2_ppl"]
    assert a.difference == pytest.approx(45)
    assert not a.beyond


def test_a_doubted_mean_is_compared_with_the_recomputed_one():
    row = printed(2, "qwen3-8b", "smoothquant", 8, 8)
    a = line_of(reproduce(records(row), 2), row).printed["zeroshot_mean"]
    assert (a.text, round(a.reference, 2)) == ("74.0", 71.08)
    assert a.difference == pytest.approx(0, abs=1e-9)
    assert "not_mean" in a.doubts


def test_awq_is_compared_with_both_group_sizes():
    row, other = printed(1, "qwen3-8b-base", "awq", 3), printed(3, "qwen3-8b-base", "awq", 3)
    swapped = replace(other, table=1, group_size=None)  # our per-row numbers are those printed under g128
    line = line_of(reproduce(records(swapped), 1), row)
    assert line.printed["c4_ppl"].beyond
    assert not line.other["c4_ppl"].beyond
    assert line.other["c4_ppl"].text == "23.8"
    page = to_markdown(sheet(reproduce(records(swapped), 1)))
    assert "| printed g128 (Table 3) | 22.6 | 23.8 |" in page
    assert line_of(reproduce([], 1), printed(1, "qwen3-8b-base", "gptq", 4)).other == {}


def test_doubted_cells_carry_a_mark():
    t = reproduce([], 2)
    page = to_markdown(sheet(t))
    mark = {kind: chr(97 + i) for i, kind in enumerate(t.doubts)}
    assert f"80.1<sup>{mark['impossible']}</sup>" in page
    assert f"| 4B | GPTQ<sup>{mark['repeated_row']}</sup> | 8 | 16 | printed | 16.8 |" in page
    assert f"<sup>{mark['not_mean']}</sup> in doubt: mean is not that of the six tasks" in page


def test_diverged_failed_and_nan_cells():
    row = printed(1, "qwen3-0.6b-base", "rtn", 2)
    (m,) = records(printed(1, "qwen3-0.6b-base", "rtn", 4), only=("c4_ppl",))
    lost = with_science(replace(m, metrics={"c4/ppl": Metric(math.inf, "perplexity", 9)}), grid={"bits": 2})
    sc = lost.science | {"eval": evaluations()["mmlu"]}
    failure = {"id": digest(sc), "science": sc, "protocol": judge(sc), "error": "OutOfMemoryError: no room\nmore"}
    t = reproduce([lost], 1, failures=[failure])
    line = line_of(t, row)
    assert line.ours["c4_ppl"].value == math.inf
    assert not line.printed["c4_ppl"].beyond
    assert line.ours["mmlu"].failed == "OutOfMemoryError: no room"
    assert "| ours | – | inf | – |" in to_markdown(sheet(t))
    cells = {r["metric"]: r for r in csv.DictReader(io.StringIO(to_csv(sheet(t)))) if r["ours"]}
    assert {k: r["ours"] for k, r in cells.items()} == {"c4_ppl": "inf", "mmlu": "failed"}


def test_perplexity_measured_with_divergences_counts_where_alone():
    row = printed(3, "qwen3-8b-base", "gptq", 4)
    (m,) = records(row, only=("c4_ppl",))
    kl = {"name": "divergence", "version": 1, "source": "c4", "window": 2048, "limit": None, "draw": "head"}
    other = record(science(row), kl, {"c4/ppl": Metric(99.0, "perplexity", 100, 0.1, [0.0])})
    assert line_of(reproduce([other], 3), row).ours["c4_ppl"].value == 99.0
    for both in ([m, other], [other, m]):
        assert line_of(reproduce(both, 3), row).ours["c4_ppl"].value == pytest.approx(row.values["c4_ppl"])


# --- what is refused ---


def test_unknown_tables():
    with pytest.raises(ValueError, match="table 5: the paper's result tables are 1, 2, 3 and 4"):
        reproduce([], 5)


def test_records_of_two_protocols_are_apart():
    row = printed(3, "qwen3-8b-base", "gptq", 4)
    both = [*records(row), *records(row, protocol="released")]
    for protocol, name in (("paper", "table3"), ("released", "table3_released")):
        t = reproduce(both, 3, protocol)
        assert t.name == name
        assert "mmlu" in line_of(t, row).ours
    assert not any(line.ours for line in reproduce(records(row), 3, "released").lines)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"revision": "b" * 40}}, ("a" * 40, "b" * 40)),
        ({"eval": {"data": "f" * 16}}, ("data=dddddddd", "data=ffffffff")),
        ({"calib": {"data": "f" * 16}}, ("data=cccccccc", "data=ffffffff")),
        ({"method": {"version": 2}}, ("version=1", "version=2")),
    ],
)
def test_two_records_of_one_cell(change, says):
    (m,) = records(printed(3, "qwen3-8b-base", "gptq", 4), only=("c4_ppl",))
    with pytest.raises(ValueError, match="two") as e:
        reproduce([m, with_science(m, **change)], 3)
    assert all(word in str(e.value) for word in says)


def test_two_revisions_of_one_model_in_different_cells():
    (a,), (b,) = (records(printed(3, "qwen3-8b-base", "gptq", w), only=("c4_ppl",)) for w in (4, 8))
    with pytest.raises(ValueError, match="has two revisions"):
        reproduce([a, with_science(b, model={"revision": "b" * 40})], 3)


def test_own_settings_and_records_without_a_protocol_are_left_out_with_a_note():
    (m,) = records(printed(3, "qwen3-8b-base", "gptq", 4), only=("c4_ppl",))
    other = with_science(m, calib={"seed": 1})
    t = reproduce([other, replace(m, protocol={})], 3)
    assert not any(line.measured for line in t.lines)
    assert "with settings of their own (calib.seed=1): 1 record." in t.notes[-2]
    assert "measured before protocols were stored: 1 record." in t.notes[-1]


def test_the_head_is_read_from_the_records():
    rows = [printed(3, "qwen3-8b-base", "gptq", 4), printed(3, "qwen3-8b-base", "awq", 4)]
    notes = reproduce([m for row in rows for m in records(row, protocol="released")], 3, "released").notes
    assert "Calibration: data=cccccccc, draw=lines, length=512, n=128, seed=42, source=c4 (awq)." in notes
    (mmlu,) = (note for note in notes if note.startswith("MMLU by tasks: "))
    assert "max_prompt=2048, num_fewshot=5" in mmlu
    assert "Differs from paper: method.act_order=True (gptq)." in notes
    assert reproduce([], 3).notes == ["Measured: 0 of 45 rows."]


# --- what is written ---


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("paper"))
    for row in (r for r in ROWS if r.model == "qwen3-0.6b"):
        for m in records(row, shift=0.01):
            if row.method != "none" or row.table == 2:
                store.put(m)
    for m in records(printed(4, "qwen3-0.6b", "gptq", 4), protocol="released"):
        store.put(m)
    return store.root


def test_files_of_both_protocols(results, tmp_path):
    paths = {str(p.relative_to(tmp_path)) for p in Report(results).write(tmp_path)}
    tables = {f"tables/table{k}.{e}" for k in (1, 2, 3, 4, "4_released") for e in ("csv", "md", "tex")}
    assert tables <= paths
    assert not any("table2_released" in p for p in paths)
    page = (tmp_path / "tables" / "table2.md").read_text()
    assert "Measured: 14 of 81 rows" in page
    assert "Models: qwen3-0.6b @ aaaaaaaa" in page
    assert "Protocol: paper (" in (tmp_path / "tables" / "qwen3_matrix.md").read_text()


def test_tables_are_byte_stable_and_need_neither_torch_nor_hydra(results, tmp_path):
    code = (
        "import sys; from qbench.report import Report; Report(sys.argv[1]).write(sys.argv[2], figures=False); "
        "assert not {'torch', 'hydra', 'omegaconf', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    env = {"PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, results, tmp_path / seed]
        subprocess.run(command, check=True, env=env | {"PYTHONHASHSEED": seed})
    made = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*.*"))
    assert len(made) > 15
    assert all((tmp_path / "1" / p).read_bytes() == (tmp_path / "2" / p).read_bytes() for p in made)


@pytest.mark.parametrize("table", [1, 4])
def test_latex_is_balanced(results, table):
    t = reproduce(Store(results).measurements(), table, "paper")
    tex = to_latex(sheet(t))
    body = tex[tex.index(r"\endfoot") : tex.index(r"\end{longtable}")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert all(line.count("&") == 4 + len(METRICS) for line in lines)
    assert tex.isascii()
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    done = sum(line.measured for line in t.lines)
    awq = sum(line.measured and line.row.method == "awq" for line in t.lines)
    assert len(lines) == len(t.lines) + 2 * done + 2 * awq


def test_contradicting_records_are_said_after_the_rest_is_written(results, tmp_path, capsys):
    store = Store(tmp_path)
    (m,) = records(printed(3, "qwen3-8b-base", "gptq", 4), only=("c4_ppl",))
    for x in (m, with_science(m, eval={"data": "f" * 16})):
        store.put(x)
    assert main([str(store.root)]) == 2
    assert "table 3, protocol paper: two records for c4_ppl" in capsys.readouterr().out
    assert (store.root / "tables" / "table4.md").exists()
    assert not (store.root / "tables" / "table3.md").exists()
