"""paper/ builds from results/: no missing file, no number without a record, no conclusion that the records deny.

No TeX is needed: the sources are read as text, and what waits for records is left out as TeX would.
"""

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas
import pytest

from experiments.audit.__main__ import to_latex
from experiments.audit.rules import findings
from experiments.paper import __main__ as script
from experiments.paper.numbers import in_study, joined, numbers
from experiments.paper.other_records import json_values
from qbench.printed.published import load
from qbench.record import Metric
from qbench.report import frame
from qbench.store import Store

ROOT = Path(__file__).parents[1]
PAPER, RESULTS, NANO = ROOT / "paper", ROOT / "results", ROOT / "qbench" / "nano" / "models"
SOURCES = [PAPER / "paper.tex", *sorted((PAPER / "sections").glob("*.tex"))]
SIZES = ("s", "m", "l")


@pytest.fixture(scope="module")
def records():
    """Those of the nano study, without others of the same models."""
    return [m for m in Store(RESULTS).measurements() if in_study(m)]


@pytest.fixture(scope="module")
def files():
    return script.generate(RESULTS)


@pytest.fixture(scope="module")
def known(files):
    return dict(re.findall(r"\\setresult\{([^}]*)\}\{(.*)\}\n", files["numbers.tex"]))


def group(text: str, at: int) -> tuple[str, int]:
    """The content of the braces that open at ``at``, and where they have closed."""
    assert text[at] == "{"
    depth = 0
    for i in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1] != "\\" else 0
        if depth == 0:
            return text[at + 1 : i], i + 1
    raise AssertionError(f"braces never close: {text[at : at + 60]}")


def seen(text: str, known) -> str:
    """The text that TeX sets: comments gone, conditional parts in or out by ``known``."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    out, at = "", 0
    for m in re.finditer(r"\\(whenresults|unlessresult)(?=\{)", text):
        if m.start() < at:
            continue
        keys, end = group(text, m.end())
        body, end = group(text, end)
        there = all(k in known for k in keys.split(","))
        out += text[at : m.start()] + (body if there == (m[1] == "whenresults") else "")
        at = end
    return out + text[at:]


def wrong(text: str, known) -> list[str]:
    """Keys that the text asks for and no record gives."""
    return [k for k in re.findall(r"\\result\{([^}]*)\}", seen(text, known)) if k not in known]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_every_number_of_the_text_has_a_record(path, known):
    assert not wrong(path.read_text(), known)


def test_a_number_without_a_record_is_found(known):
    assert wrong(r"\result{nano/s/gptq/4/ppl} \result{nano/xl/gptq/4/ppl}", known) == ["nano/xl/gptq/4/ppl"]
    assert not wrong(r"\whenresults{qwen3/models,no/such}{\result{no/such}}", known)
    assert wrong(r"\unlessresult{no/such}{\result{no/such}}", known) == ["no/such"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_waiting_text_waits_for_every_number_in_it(path, known):
    """Whatever further records come: a conditional part asks for nothing that it does not wait for."""
    text = re.sub(r"(?<!\\)%.*", "", path.read_text())
    for m in re.finditer(r"\\whenresults(?=\{)", text):
        keys, end = group(text, m.end())
        body, _ = group(text, end)
        always = {"qwen3/records"}
        assert set(re.findall(r"\\result\{([^}]*)\}", body)) <= set(keys.split(",")) | always


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_every_file_of_the_text_exists(path, files, known):
    for command, name in re.findall(
        r"\\(input|includegraphics)(?:\[[^]]*\])?\{([^}]*)\}", seen(path.read_text(), known)
    ):
        name += "" if Path(name).suffix else ".tex"
        if name.startswith("\\results"):  # made from the records, beside files that are committed
            name = name.replace("\\results", str(RESULTS)).replace(".tex", ".md").replace(".pdf", ".png")
        generated = name.startswith("generated/") and name.removeprefix("generated/") in files
        assert generated or (PAPER / name).is_file(), f"{path.name}: \\{command}{{{name}}}"


def test_every_reference_has_its_label(files):
    text = "".join(p.read_text() for p in SOURCES) + to_latex(load(), findings(load()))
    labels = re.findall(r"\\label\{([^}]*)\}|\\bibitem\{([^}]*)\}", text)
    labels = [a or b for a, b in labels]
    asked = {k for m in re.findall(r"\\(?:ref|cite)\{([^}]*)\}", text) for k in m.split(",")}
    assert len(labels) == len(set(labels))
    assert asked <= set(labels)


def test_numbers_are_those_of_the_records(records, known):
    rows, checked = frame(records), 0
    rows = rows[rows["metric"] == "nano/ppl"]
    for r in rows.itertuples():
        bits = {"none": 16, "billm": 1}.get(r.method) or int(r.bits)
        text = known[f"nano/{r.model[-1]}/{r.method}/{bits}/ppl"]
        digits, _, power = text.partition("e")
        step = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
        assert abs(float(text) - r.value) <= 0.5 * step * (1 + 1e-9)
        checked += 1
    assert checked >= 102
    for row in load():
        key = f"printed/{row.table}/{row.model}/{row.method}/{row.w_bits:g}/{row.a_bits}/mmlu"
        assert known[key] == row.text["mmlu"]


def test_the_main_table_has_every_cell(files, known):
    for s in SIZES:
        for method in ("rtn", "gptq", "awq", "smoothquant"):
            for b in range(1, 9):
                assert re.search(rf"\b{re.escape(known[f'nano/{s}/{method}/{b}/ppl'])}\b", files["nano.tex"])


def test_no_result_is_typed_into_the_text():
    """Numbers with decimals are results, but for those of settings and versions."""
    allowed = {"0.5", "0.55", "0.6", "1.7", "0.4", "2505.02214", "2505.09388", "2210.17323", "2306.00978"}
    allowed |= {"2211.10438", "2402.04291", "1603.05279", "1609.07843", "1910.10683", "2009.03300"}
    for path in SOURCES[1:]:
        text = re.sub(
            r"\\(result|whenresults|unlessresult)\{[^}]*\}|\\\w+\[[^]]*\]|p\{[^}]*\}|,?\.\d+\\\w+", "", path.read_text()
        )
        found = set(re.findall(r"\d+\.\d+", text)) - allowed
        assert not found, f"{path.name}: {found}"


def test_further_records_flow_in_by_themselves(tmp_path, records):
    shutil.copytree(RESULTS, tmp_path / "results")
    extra = tmp_path / "results" / "full_size"
    extra.mkdir(exist_ok=True)
    (extra / "new_check.json").write_text(json.dumps({"took": {"minutes, all": 12.345}, "steps": [4096, 5, 6]}))
    (tmp_path / "results" / "tables" / "other_matrix.tex").write_text("x")
    (tmp_path / "results" / "figures" / "other_matrix_bits.pdf").write_text("x")
    files = script.generate(tmp_path / "results")
    known = dict(re.findall(r"\\setresult\{([^}]*)\}\{(.*)\}\n", files["numbers.tex"]))
    assert known["full_size/new_check/took/minutes--all"] == "12.35"
    assert known["full_size/new_check/steps/first"] == "4,096"
    assert known["full_size/any"]
    assert "new check" in files["records.tex"]
    assert "12.35" in files["records.tex"]
    assert "tables/other_matrix.tex" in files["further.tex"]
    assert "figures/other_matrix_bits.pdf" in files["further.tex"]
    for path in SOURCES:
        assert not wrong(path.read_text(), known)


def test_without_records_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="no record of an embedded model"):
        numbers(tmp_path, [], [], NANO)


def test_two_records_of_one_number_are_refused(records):
    first = next(m for m in records if m.science["model"]["name"] == "nano-s" and "nano/ppl" in m.metrics)
    other = replace(first, metrics={"nano/ppl": Metric(99.0, "perplexity", 1)})
    with pytest.raises(ValueError, match="in two records"):
        numbers(RESULTS, [*records, other], [], NANO)


def test_joined_and_json_values():
    assert joined(["1", "2", "3"]) == "1, 2 and 3"
    assert joined(["1", "1"]) == "1"
    assert dict(json_values({"a": [{"b": 1}, 2], "c": [], "d": None})) == {"a/0/b": 1, "a/1": 2}


# --- what the text concludes from the numbers ---


@pytest.fixture(scope="module")
def ppl(records):
    rows = frame(records)
    rows = rows[rows["metric"] == "nano/ppl"]
    return {
        (r.model[-1], r.method, {"none": 16, "billm": 1}.get(r.method) or int(r.bits)): r.value
        for r in rows.itertuples()
    }


def value(known, key: str) -> list[float]:
    return [float(x) for x in re.split(r", | and ", known[key])]


def test_losses_by_bits_are_as_told(known):
    worst = [float(known[f"nano/worst/{b}"].replace(",", "")) for b in (8, 7, 6, 5, 4, 3, 2)]
    assert worst[0] < 0.3
    assert all(b >= 3 * a for a, b in pairwise(worst))


@pytest.mark.parametrize("s", SIZES)
def test_the_order_of_methods_is_as_told(ppl, s):
    full = ppl[s, "none", 16]
    assert full < ppl[s, "awq", 4] < ppl[s, "gptq", 4] < ppl[s, "rtn", 4]
    assert ppl[s, "rtn", 3] > 1.1 * full
    assert ppl[s, "awq", 2] < ppl[s, "gptq", 2] < 0.5 * ppl[s, "rtn", 2]
    assert ppl[s, "billm", 1] > ppl[s, "gptq", 3]
    assert ppl[s, "billm", 1] < min(ppl[s, m, 1] for m in ("rtn", "gptq", "awq", "smoothquant"))
    if s != "s":
        assert ppl[s, "smoothquant", 2] > ppl[s, "smoothquant", 1]


def test_a_larger_model_can_use_the_same_bytes_better(ppl, known):
    assert value(known, "nano/l/awq/3/mb")[0] == pytest.approx(value(known, "nano/m/none/16/mb")[0], rel=0.15)
    assert ppl["l", "awq", 3] < ppl["m", "none", 16]


def test_single_choices_are_worth_what_is_told(known):
    def pair(method, bits, field, a, b):
        return zip(*(value(known, f"ablation/{method}/{bits}/{field}={v}/ppl") for v in (a, b)))

    assert all(on < off for bits in (4, 3, 2) for off, on in pair("gptq", bits, "act_order", "false", "true"))
    assert all(math.isclose(a, b, rel_tol=2e-3) for a, b in pair("awq", 4, "loss", "gram", "module"))
    assert all(with_it < without for b in (8, 4) for with_it, without in pair("smoothquant", b, "alpha", "0.5", "none"))


def test_the_real_model_behaves_as_told(known):
    def ppl(method: str, bits: int) -> float:
        return float(known[f"real/smollm2-135m/{method}/{bits}/ppl"])

    full = ppl("none", 16)
    for bits in (4, 3, 2):
        assert full < ppl("awq", bits) < ppl("gptq", bits) < ppl("rtn", bits)
    assert ppl("awq", 2) < ppl("smoothquant", 2)
    assert ppl("smoothquant", 8) < 1.1 * full < 2 * full < ppl("smoothquant", 4)
    assert ppl("awq", 2) / full > 10 * value(known, "nano/m/awq/2/ppl")[0] / value(known, "nano/m/none/16/ppl")[0]


def test_gptq_depends_on_its_calibration_as_told(known):
    cells = pandas.read_csv(RESULTS / "gptq_sensitivity" / "gptq_sensitivity.csv").query("metric == 'ppl'")
    by_order = cells.pivot(index=["calibration", "tokens", "damping", "seed"], columns="act_order", values="value")
    assert (by_order[True] < by_order[False]).sum() == len(by_order.dropna()) >= 10

    def mean(text: str, tokens: int, damping: str, order: str) -> float:
        return float(known[f"gptq_sensitivity/{text}/{tokens}/{damping}/{order}/ppl/mean"])

    for order in ("false", "true"):
        c4, more = (mean("c4", tokens, "0.01", order) for tokens in (16384, 65536))
        assert mean("wikitext2", 16384, "0.01", order) < more < c4
    assert mean("c4", 16384, "0.001", "false") > 1.1 * mean("c4", 16384, "0.01", "false")
    assert mean("wikitext2", 16384, "0.001", "false") < mean("wikitext2", 16384, "0.01", "false")


def test_the_study_prints_what_is_told_of_it(known):
    rows = load()
    awq = [r.values["c4_ppl"] for r in rows if (r.method, r.w_bits) == ("awq", 2)]
    assert min(x for x in awq if not math.isnan(x)) > 1e4
    assert not [r for r in rows if r.method == "rtn" and r.table in (3, 4)]
    assert len({r.model for r in rows}) == int(known["audit/group_order/models"]) == 11
    (repeated,) = [f for f in findings(rows) if f.kind == "repeated_row"]
    assert len(repeated.cells) == 10
    assert int(known["audit/group_order/cells"]) > int(known["audit/doubted"]) / 2


def test_the_records_were_made_without_a_gpu(records):
    assert all(m.provenance["peak_gpu_mib"] is None for m in records)
