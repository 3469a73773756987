"""The report, from synthetic records with the numbers of a real study."""

import csv
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fakes.report_records import evals, measure, metric, science, study
from scipy.stats import ttest_rel

from qbench.record import Metric, digest
from qbench.report import Report, frame, layer_frame, load, main, make_table
from qbench.report.quality.comparison import winners
from qbench.report.quality.variants import distinguish
from qbench.significance import paired_difference
from qbench.store import Store

BITS = (8, 4, 3, 2, 1)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("results"), bits=BITS)


@pytest.fixture(scope="module")
def built(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, Report(results).write(out)


def records(*cells, only=("ppl",)):
    """Measurements of ``cells`` (science, harm) under the evaluations named in ``only``."""
    return [measure(s, ev, h) for s, h in cells for ev in evals() if ev["name"] in only]


def with_science(m, **parts):
    whole = m.science | parts
    return replace(m, science=whole, id=digest(whole))


def table_of(measurements, failures=(), **options):
    return make_table(frame(measurements, failures), **options)


def best(t, key):
    bold = winners(t)
    return [r for r in t.rows if id(r.cells[key]) in bold]


def test_paired_difference_equals_the_naive_one():
    base, rtn = (records((s, h), only=("ppl", "tasks")) for s, h in ((science(), 0), (science("nano-s", "rtn", 3), 1)))
    df = frame([*base, *rtn]).query("method == 'rtn'").set_index("metric")
    acc, acc0 = rtn[1].metrics["nano_world/acc"].samples, base[1].metrics["nano_world/acc"].samples
    d = [a - b for a, b in zip(acc, acc0)]
    mean = sum(d) / len(d)
    naive = math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d))
    assert df.loc["nano_world/acc", "delta"] == pytest.approx(mean)
    assert df.loc["nano_world/acc", "delta_stderr"] == pytest.approx(naive)

    nll, nll0 = (np.array(m[0].metrics["nano/ppl"].samples) for m in (rtn, base))
    assert df.loc["nano/ppl", "delta"] == pytest.approx(np.exp(nll.mean()) - np.exp(nll0.mean()))
    rng, n = np.random.default_rng(0), len(nll)
    picks = rng.integers(0, n, (4000, n))
    bootstrap = (np.exp(nll[picks].mean(1)) - np.exp(nll0[picks].mean(1))).std()
    assert df.loc["nano/ppl", "delta_stderr"] == pytest.approx(bootstrap, rel=0.1)
    assert df.loc["nano/ppl", "delta_stderr"] < 0.5 * df.loc["nano/ppl", "stderr"]


@pytest.mark.parametrize("harm", [0.1, 4.0])
def test_the_error_of_a_relative_change_is_the_spread_of_resampled_changes(harm):
    from experiments.nano_ablations import differences

    before, after = (records((s, h))[0].metrics for s, h in ((science(), 0), (science("nano-s", "rtn", 3), harm)))
    value, change, stderr, p = differences(before, after)["ppl"]
    assert p == pytest.approx(ttest_rel(after["nano/ppl"].samples, before["nano/ppl"].samples).pvalue)
    nll0, nll = (np.array(m["nano/ppl"].samples) for m in (before, after))
    assert value == before["nano/ppl"].value
    assert change == pytest.approx(100 * (after["nano/ppl"].value / before["nano/ppl"].value - 1))
    picks = np.random.default_rng(0).integers(0, len(nll), (8000, len(nll)))
    resampled = 100 * (np.exp(nll[picks].mean(1)) / np.exp(nll0[picks].mean(1)) - 1)
    assert stderr == pytest.approx(resampled.std(), rel=0.1)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda m: replace(m, samples=None), "no per-item outcomes"),
        (lambda m: metric("fraction", m.samples[:-1]), "240 items against 239"),
        (lambda m: replace(m, value=m.value + 0.1), "do not average"),
        (lambda m: None, "not measured by the same evaluation"),
    ],
)
def test_nothing_is_paired_in_silence(changed, says):
    base, rtn = (metric("fraction", [0.0, 1.0] * 120) for _ in range(2))
    base = changed(base)
    delta, stderr, note = paired_difference(rtn, base)
    assert math.isnan(delta)
    assert math.isnan(stderr)
    assert says in note


def test_baseline_of_another_evaluation_is_not_used():
    base, rtn = records((science(), 0), (science("nano-s", "rtn", 3), 1))
    t = table_of([with_science(base, eval=base.science["eval"] | {"window": 512}), rtn], delta=True)
    assert t.columns == []
    assert any("Left out" in line and "nano/ppl" in line for line in t.notes)


def test_rows_are_in_the_papers_order(results):
    df = frame(*load(results))
    t = make_table(df)
    assert list(dict.fromkeys(r.model for r in t.rows)) == ["nano-s", "nano-m", "nano-l"]
    axis = [(m, b) for m in ("rtn", "gptq", "awq", "smoothquant") for b in BITS]
    small = [(r.method, r.bits) for r in t.rows if r.model == "nano-s"]
    assert small == [("none", 16), *axis, ("billm", 1.06)]
    assert len(t.rows) == 3 * (2 + 4 * len(BITS))
    labels = set(df["label"])
    assert {"W4A16 g128", "W4A8", "W16A16", "W1.06A16"} <= labels


def test_failed_diverged_and_missing_cells_say_so(built):
    text = (built[0] / "tables" / "nano_matrix.md").read_text()
    failed = next(line for line in text.splitlines() if line.startswith("| nano-s | AWQ") and "| 1 |" in line)
    mark = re.search(r"failed<sup>(\w)</sup>", failed)[1]
    assert f"<sup>{mark}</sup> failed: FloatingPointError: no finite scale in model.layers.1.mlp" in text
    assert re.search(r"\| nano-s \| SmoothQuant \| 1 \| 8 \| row .*\| nan \|", text)
    assert re.search(r"<sup>\w</sup> damping raised to 0.04 to 0.06 \(in 2 to 6 linears", text)
    with (built[0] / "tables" / "nano_matrix.csv").open() as f:
        rows = {(r["model"], r["method"], r["w_bits"]): r for r in csv.DictReader(f)}
    assert rows["nano-s", "awq", "1"]["nano_world/acc"] == "failed"
    assert rows["nano-s", "smoothquant", "1"]["nano/ppl"] == "nan"
    assert "damping raised" in rows["nano-m", "gptq", "2"]["notes"]
    only_ppl = table_of([*records((science(), 0), only=("ppl", "kl")), *records((science("nano-s", "rtn", 4), 0.5))])
    assert [r.cells["nano/kl"].state for r in only_ppl.rows] == ["ok", "missing"]


def test_a_metric_of_any_measure_has_a_column_as_the_measure_declares_it(tmp_path):
    (m,) = records((science("nano-s", "rtn", 3), 1))
    new = {"story/x": Metric(0.25, "fraction", 4, 0.1, higher_is_better=True, header="surprise")}
    new |= {"story/length": Metric(3.5, "words", 4), "mmlu_law/acc": Metric(0.5, "fraction", 4)}
    Store(tmp_path).put(replace(m, metrics=m.metrics | new))
    Report(tmp_path).write(figures=False)
    text = (tmp_path / "tables" / "nano_matrix.md").read_text()
    assert "| nano PPL ↓ | story length | surprise ↑, % |" in text
    assert "| 3.500 | 25.0 ± 10.0 |" in text
    assert "mmlu_law/acc" not in (tmp_path / "tables" / "nano_matrix.csv").read_text()
    assert "- Left out: the accuracies of 1 subjects of MMLU, which are in the records." in text


def test_every_table_of_a_model_says_which_file_its_weights_come_from(tmp_path):
    for told in (science("smol-1b", **{"model": {"from": "Q4_1 GGUF"}}), science("smol-2b")):
        Store(tmp_path).put(measure(told, evals()[0]))
    Report(tmp_path).write(figures=False)
    text = (tmp_path / "tables" / "smol_matrix.md").read_text()
    assert "| smol-1b<sup>a</sup> | BF16 |" in text
    assert "| smol-2b | BF16 |" in text
    assert "<sup>a</sup> weights from Q4_1 GGUF: they lie on its grid" in text
    assert "ᵃ weights from Q4_1 GGUF" in (tmp_path / "tables" / "smol_summary.md").read_text()


def test_the_letters_of_a_printed_table_are_explained_below_it(tmp_path):
    notes = {"nano-s": "damping raised", "qwen3-0.6b": "not scaled"}
    for model, note in notes.items():
        Store(tmp_path).put(measure(science(model, "rtn", 4), evals()[0], 1, [note]))
    nano, qwen = Report(tmp_path).summary().split("Post-training")
    for text, note in ((nano, "damping raised"), (qwen, "not scaled")):
        assert text.index("RTN g128ᵃ") < text.index(f"ᵃ {note}")


def test_infinity_stays_infinity():
    base, rtn = records((science(), 0), (science("nano-s", "rtn", 1), 4))
    rtn.metrics["nano/ppl"] = Metric(math.inf, "perplexity", 48, None, [900.0] * 48)
    t = table_of([base, rtn])
    assert t.columns[0].text(t.rows[1].cells["nano/ppl"].value) == "inf"
    assert table_of([base, rtn], delta=True).rows[0].cells["nano/ppl"].value == math.inf


def test_failure_is_forgotten_once_measured():
    (m,) = records((science(), 0))
    old = {"id": m.id, "science": m.science, "error": "OSError: disk full"}
    assert set(frame([m], [old])["status"]) == {"ok"}
    assert set(frame([], [old])["status"]) == {"failed"}


def test_bold_goes_to_the_best_at_equal_bits(results):
    df = frame(*load(results))
    t = make_table(df)
    assert {r.method for r in best(t, "nano/ppl") if r.model == "nano-s" and r.bits == 4} == {"gptq"}
    lone = table_of(records((science(), 0), (science("nano-s", "rtn", 4), 1)))
    assert best(lone, "nano/ppl") == []


def with_samples(m, key, samples):
    return replace(m, metrics={key: metric(m.metrics[key].unit, samples)})


def cells_with(key, ev, **samples):
    """Records of nano-s at 4 bits, one per method, with these outcomes per item."""
    cells = {name: science("nano-s", *([] if name == "none" else [name, 4])) for name in samples}
    return [with_samples(measure(cells[name], ev), key, x) for name, x in samples.items()]


def test_a_star_needs_more_than_noise():
    rng, (ppl, _, tasks) = np.random.default_rng(1), evals()
    base = rng.normal(1, 0.3, 48)
    noise, gain = base + rng.normal(0, 0.05, 48), base - 0.1 + rng.normal(0, 0.05, 48)
    key = "nano/ppl"
    assert best(table_of(cells_with(key, ppl, rtn=base, gptq=noise)), key) == []
    assert [r.method for r in best(table_of(cells_with(key, ppl, rtn=base, gptq=gain, awq=noise)), key)] == ["gptq"]
    lost = with_samples(measure(science("nano-s", "awq", 4), ppl), key, base)
    lost.metrics[key] = Metric(math.inf, "perplexity", 48, None, [900.0] * 48)
    assert [r.method for r in best(table_of([*cells_with(key, ppl, rtn=base), lost]), key)] == ["rtn"]
    right, key = [1.0] * 60 + [0.0] * 40, "nano_world/acc"
    for lost, stars in ((5, []), (6, ["rtn"])):  # six flips in one direction: p = 2 / 2^6
        fewer = [0.0] * lost + right[lost:]
        assert [r.method for r in best(table_of(cells_with(key, tasks, rtn=right, gptq=fewer)), key)] == stars
    (m,) = cells_with(key, tasks, gptq=[0.0] * 100)
    m.metrics[key] = replace(m.metrics[key], samples=None)
    assert best(table_of([*cells_with(key, tasks, rtn=right), m]), key) == [], "without outcomes there is no test"


def test_the_best_of_a_group_must_beat_every_rival():
    """The second is surely worse; the third, whose outcomes scatter, may be better."""
    rng, (ppl, *_) = np.random.default_rng(2), evals()
    base = rng.normal(1, 0.1, 48)
    scattered = base + 0.3 + rng.normal(0, 3, 48)
    found = table_of(cells_with("nano/ppl", ppl, rtn=base, gptq=base + rng.normal(0.01, 0.001, 48), awq=scattered))
    values = {r.method: r.cells["nano/ppl"].value for r in found.rows}
    assert values["rtn"] < values["gptq"] < values["awq"]
    assert best(found, "nano/ppl") == []


def test_stars_are_corrected_for_the_size_of_the_table():
    """Six flips in one direction are significant alone, p = 0.031, and not beside another group."""
    (_, _, tasks), key, right = evals(), "nano_world/acc", [1.0] * 60 + [0.0] * 40
    one = cells_with(key, tasks, rtn=right, gptq=[0.0] * 6 + right[6:])
    other = [
        with_science(m, grid={**m.science["grid"], "bits": 3}) for m in cells_with(key, tasks, rtn=right, gptq=right)
    ]
    assert [r.bits for r in best(table_of(one), key)] == [4]
    assert best(table_of([*one, *other]), key) == []


def test_pairs_of_methods_are_compared(results, built):
    with (built[0] / "tables" / "nano_comparison.csv").open() as f:
        rows = [r for r in csv.DictReader(f) if r["model"] == "nano-s" and r["metric"] == "nano_world/acc"]
    found = {(r["method"], r["against"], r["w_bits"]): r for r in rows}
    assert {key[:2] for key in found if key[2] == "4"} == {
        *((m, "none") for m in ("rtn", "gptq", "awq", "smoothquant")),
        *(("gptq", "rtn"), ("awq", "rtn"), ("awq", "gptq")),
    }
    df = frame(load(results)[0]).query("metric == 'nano_world/acc' and model == 'nano-s' and bits == 4")
    by = {method: np.array(outcomes.samples) for method, outcomes in zip(df["method"], df["outcomes"])}
    row, a, b = found["gptq", "rtn", "4"], by["gptq"], by["rtn"]
    assert float(row["difference"]) == pytest.approx(a.mean() - b.mean(), abs=1e-6)
    assert float(row["stderr"]) == pytest.approx(np.std(a - b, ddof=1) / math.sqrt(len(a)), rel=1e-4)
    assert (int(row["right_to_wrong"]), int(row["wrong_to_right"])) == ((b > a).sum(), (a > b).sum())
    halves = (a - b).reshape(2, 120) - (a - b).mean()
    assert float(row["stderr_by_subject"]) == pytest.approx(math.sqrt(2 * (halves.sum(1) ** 2).sum()) / 240, rel=1e-4)
    p = [(float(r["p"]), float(r["p_holm"])) for r in found.values() if r["p"]]
    assert all(corrected == 1 or corrected >= 30 * raw for raw, corrected in p if raw > 0.01)
    assert not found["awq", "none", "1"]["p"], "a failed cell has no test"
    text = (built[0] / "tables" / "nano_comparison.md").read_text()
    lost, won = (b > a).sum(), (a > b).sum()
    assert re.search(rf"\| nano-s \| 4 \| 16 \| 128 \| GPTQ \| RTN \|.*\| {lost} / {won} \|", text)


def test_errors_by_subject_are_beside_the_others(results, built):
    df = frame(load(results)[0]).query("metric == 'nano_world/acc' and model == 'nano-l' and bits == 3")
    for outcomes, found in zip(df["outcomes"], df["stderr_by_subject"]):
        x = np.array(outcomes.samples).reshape(2, 120)
        assert found == pytest.approx(np.std(x.mean(1), ddof=1) / math.sqrt(2))
    with (built[0] / "tables" / "nano_matrix.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert all(float(r["nano_world/acc_stderr_by_subject"]) >= 0 for r in rows if r["nano_world/acc_stderr"])
    assert "nano/ppl_stderr_by_subject" not in rows[0]
    text = (built[0] / "tables" / "nano_matrix.md").read_text()
    assert re.search(r"if the questions of a subject depend on each other, .* 0\.\d to \d+\.\d times as large", text)


def test_tokens_have_a_table_with_the_noise_floor_below(tmp_path):
    _, kl, _ = evals()
    values = {"p50": 2e-6, "p99": 0.5, "p99.9": 3.0}
    tail = {f"nano/kl_{q}": Metric(x, "nats/token", 48, x / 10, higher_is_better=False) for q, x in values.items()}
    for s, harm in ((science(), 0), (science("nano-s", "rtn", 4), 1)):
        m = measure(s, kl, harm)
        Store(tmp_path).put(replace(m, metrics=m.metrics | tail))
    floor = with_science(measure(science(), kl, 0.01), eval=kl | {"name": "noise_floor", "dtype": "bfloat16"})
    Store(tmp_path).put(replace(floor, metrics=floor.metrics | tail))
    Report(tmp_path).write(figures=False)
    text = (tmp_path / "tables" / "nano_divergence.md").read_text()
    assert "| nano KL ↓ | nano KL median ↓ | nano KL 99 % ↓ | nano KL 99.9 % ↓ | nano top-1 ↑, % |" in text
    above, below = text.split("Noise floor")
    assert "| 2.0e-06 ± 2e-07 | 0.500 ± 0.050 | 3.000 ± 0.300 |" in above
    assert "| nano-s | unquantized in bfloat16 | 16 | 16 | – | 16 |" in below
    rows = list(csv.DictReader((tmp_path / "tables" / "nano_divergence.csv").open()))
    assert [r["variant"] for r in rows] == ["", "", "noise floor of bfloat16"]
    assert float(rows[2]["nano/kl"]) == pytest.approx(floor.metrics["nano/kl"].value, rel=1e-5)
    assert "kl_p" not in (tmp_path / "tables" / "nano_matrix.csv").read_text()


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"method": {"act_order": True}}, "act_order=True"),
        ({"method": {"version": 2}}, "version=2"),
        ({"grid": {"symmetric": True}}, "grid.symmetric=True"),
        ({"calib": {"seed": 1, "data": "d" * 16}}, "calib seed=1"),
        ({"model": {"revision": "1" * 40}}, "revision=11111111"),
    ],
)
def test_mixed_science_gets_rows_of_its_own(change, label):
    first, second = science("nano-s", "gptq", 4), science("nano-s", "gptq", 4, **change)
    t = table_of(records((science(), 0), (first, 0.3), (second, 0.3)))
    rows = [r for r in t.rows if r.method == "gptq"]
    assert len(rows) == 2
    assert label in {r.variant for r in rows}
    assert "" not in {r.variant for r in rows}


def test_mixed_evaluations_get_rows_of_their_own():
    s, (ev, _, tasks) = science("nano-s", "rtn", 4), evals()
    t = table_of([measure(s, ev, 0.5), measure(s, ev | {"window": 128}, 0.5), measure(s, tasks, 0.5)])
    assert [r.variant for r in t.rows] == ["ppl window=128", "ppl window=256"]
    assert all(r.cells["nano_world/acc"].state == "ok" for r in t.rows)


@pytest.fixture
def mixed():
    """Two cells under 48 windows, one also under 24, all with questions; divergences under 48 windows only."""
    ppl, kl, tasks = evals()
    shared = {"name": "divergence", "window": 256, "limit": 48, "data": "ab" * 8}
    few, out = {"name": "perplexity", "window": 256, "limit": 24, "data": "ef" * 8}, []
    for s, h in ((science(), 0), (science("nano-s", "rtn", 4), 1.0), (science("nano-s", "gptq", 4), 0.3)):
        one, two = measure(s, ppl, h), measure(s, kl, h)
        out += [with_science(replace(one, metrics=one.metrics | two.metrics), eval=shared), measure(s, tasks, h)]
    return [*out, with_science(measure(science("nano-s", "awq", 4), ppl, 0.1, windows=24), eval=few)]


def test_a_cell_is_of_its_rows_evaluation(mixed):
    t = table_of(mixed)
    by = {(r.method, r.variant): r.cells for r in t.rows}
    full, few = "divergence limit=48", "perplexity limit=24"
    assert set(by) == {("none", full), ("rtn", full), ("gptq", full), ("awq", few)}
    extra = measure(science("nano-s", "gptq", 4), evals()[0], 0.3, windows=24)
    t = table_of([*mixed, with_science(extra, eval=mixed[-1].science["eval"])])
    by = {(r.method, r.variant): r.cells for r in t.rows}
    assert by["gptq", few]["nano/kl"].state == "missing", "a divergence over 48 windows is no part of this row"
    assert by["gptq", few]["nano/ppl"].value == extra.metrics["nano/ppl"].value
    assert by["gptq", few]["nano_world/acc"].state == "ok"
    assert {(r.method, r.variant) for r in best(t, "nano/ppl")} == {("gptq", full), ("awq", few)}
    delta = {(r.method, r.variant): r.cells["nano/ppl"] for r in table_of([*mixed], delta=True).rows}
    assert delta["gptq", full].state == "ok"
    assert delta["awq", few].state == "missing"


def test_metrics_of_other_tables_split_no_row(mixed):
    subjects = table_of(mixed, subjects=True)
    assert [(r.method, r.variant) for r in subjects.rows] == [("none", ""), ("rtn", ""), ("gptq", "")]


def test_summary_and_figures_show_one_evaluation_and_name_the_others(mixed, tmp_path):
    for m in mixed:
        Store(tmp_path).put(m)
    text, t = Report(tmp_path).summary(), table_of(mixed, compact=True)
    assert "One evaluation per metric; left out: 1 record by perplexity limit=24" in " ".join(text.split())
    assert "AWQ" not in text
    assert [(r.method, r.variant) for r in t.rows] == [("none", ""), ("rtn", ""), ("gptq", "")]
    assert main([str(tmp_path)]) == 0
    more = [with_science(m, eval=m.science["eval"] | {"limit": 96}) for m in mixed if "nano/kl" in m.metrics]

    def kept(records):
        return set(table_of(records, compact=True).records["evaluation"]) - {"tasks"}

    assert kept([*mixed, *more[:2]]) == {"divergence limit=48"}, "most rows"
    assert kept([*mixed, *more]) == {"divergence limit=96"}, "equal rows: order"


def test_what_follows_from_a_tokenizer_is_no_other_evaluation():
    ms = [with_science(m, eval=m.science["eval"] | {"data": f"{i}" * 16, "windows": 40 + i})
          for i, m in enumerate(records((science("nano-s"), 0), (science("nano-m"), 0)))]  # fmt: skip
    assert {r.variant for r in table_of(ms).rows} == {""}
    assert set(frame(ms)["evaluation"]) == {"ppl"}


def test_no_star_across_calibrations():
    ms = records((science("nano-s", "rtn", 4), 1), (science("nano-s", "awq", 4, calib={"seed": 1}), 0.1),
                 (science("nano-s", "gptq", 4), 0.5))  # fmt: skip
    assert [r.method for r in best(table_of(ms), "nano/ppl")] == ["gptq"]


def test_a_frame_tells_evaluations_apart(mixed):
    df = frame(mixed).set_index("metric")["evaluation"]
    assert set(df["nano/ppl"]) == {"divergence limit=48", "perplexity limit=24"}
    assert set(df["nano_world/acc"]) == {"tasks"}
    own = frame(records(*((science("nano-s", "gptq", 4, method={"act_order": x}), 0.3) for x in (True, False))))
    assert set(own["variant"]) == {"act_order=True", "act_order=False"}


def test_unsmoothed_smoothquant_is_told_apart():
    plain = science("nano-s", "smoothquant", 8, method={"alpha": None})
    t = table_of(records((science("nano-s", "smoothquant", 8), 0.1), (plain, 1)))
    assert [r.variant for r in t.rows] == ["alpha=0.5", "alpha=none"]


def test_distinguish_takes_as_few_fields_as_it_can():
    a, b = {"name": "c4", "n": 128, "data": "a" * 16}, {"name": "nano", "n": 64, "data": "b" * 16}
    assert distinguish([a, b]) == ["n=128", "n=64"]
    assert distinguish([a, a]) == ["", ""]
    assert distinguish([a, a | {"data": "c" * 16}]) == ["data=aaaaaaaa", "data=cccccccc"]


def test_tables_are_byte_stable_and_need_no_torch(results, built, tmp_path):
    code = (
        "import sys; from qbench.report import Report; Report(sys.argv[1]).write(sys.argv[2], figures=False); "
        "assert not {'torch', 'transformers', 'hydra'} & set(sys.modules)"
    )
    env = {"PYTHONHASHSEED": "7", "PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code, results, tmp_path], check=True, env=env)
    tables = [p for p in built[1] if p.parent.name == "tables"]
    names = (
        "nano_matrix",
        "nano_matrix_delta",
        "nano_subjects",
        "nano_comparison",
        "table1",
        "table2",
        "table3",
        "table4",
    )
    assert {p.name for p in tables} == {f"{n}.{e}" for n in names for e in ("csv", "md", "tex")} | {"nano_summary.md"}
    for path in tables:
        assert (tmp_path / "tables" / path.name).read_bytes() == path.read_bytes()


def test_latex_is_balanced(built):
    text = (built[0] / "tables" / "nano_matrix.tex").read_text()
    body = text[text.index(r"\endfoot") : text.index(r"\end{longtable}")]
    columns = len(re.search(r"\\begin\{longtable\}\{(\w+)\}", text)[1])
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3 * (2 + 4 * len(BITS))
    assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.isascii()


def test_summary_fits_a_terminal(results, built):
    text = Report(results).summary()
    assert max(map(len, text.splitlines())) <= 100
    assert "nano PPL ↓" in text
    assert "nano tasks ↑" in text
    assert "fail" in text
    assert text.strip() in (built[0] / "tables" / "nano_summary.md").read_text()


def test_a_method_without_a_choice_of_bits_stands_in_the_column_of_its_own(tmp_path):
    """FP8 at 8 bits, once with 8-bit activations, beside 8 and 4 bits on a grid and BiLLM at 1.06."""
    acts = {"method": {"acts": {"bits": 8}}}
    fp8 = [science("nano-s", "fp8"), science("nano-s", "fp8", None, **acts)]
    cells = [(s, 0.1) for s in fp8] + [(science("nano-s", "rtn", b), 1) for b in (8, 4)]
    cells.append((science("nano-s", "billm"), 2))
    for m in records((science(), 0), *cells):
        is_fp8 = m.science["method"]["name"] == "fp8"
        Store(tmp_path).put(replace(m, nominal_bits=8.0, stored_bits=8.001) if is_fp8 else m)
    text = Report(tmp_path).summary().splitlines()
    head = next(line for line in text if "16 bit" in line)
    for name, column in (("FP8 8 (8) ", "8 bit"), ("FP8 A8 8 (8) ", "8 bit"), ("BiLLM 1.06 (3.1)", "4 bit")):
        (line,) = [line for line in text if name in line]
        assert len(line.rstrip(" *")) == head.index(column) + len(column), "its number ends where the column does"
    assert "BiLLM, FP8 in the column of the nearest bits: nominal bits" in "\n".join(text)
    table = make_table(frame(*load(tmp_path)))
    assert [(r.act_bits, r.bits) for r in table.rows if r.method == "fp8"] == [(16, 8), (8, 8)]
    assert {"W8A16", "W8A8"} <= set(frame(*load(tmp_path))["label"])
    figures = Report(tmp_path).write(tmp_path / "out")
    assert any("layers" in path.name for path in figures)


def test_summary_cuts_no_label_that_tells_rows_apart(tmp_path):
    for alpha in (0.5, 0.75, None):
        s = science("nano-s", "smoothquant", 8, method={"alpha": alpha, "a_field_with_a_rather_long_name": alpha})
        Store(tmp_path).put(records((s, 1))[0])
    text = Report(tmp_path).summary()
    assert all(f"alpha={a}" in text or f"name={a}" in text for a in ("0.5", "0.75", "none"))


def test_figures_exist_and_show_something(built):
    from matplotlib.image import imread

    figures = {p.name: p for p in built[1] if p.parent.name == "figures"}
    names = [f"nano_matrix_{kind}" for kind in ("bits", "pareto", "differences", "layers")]
    assert set(figures) == {f"{n}.{e}" for n in names for e in ("png", "pdf")}
    for name in names:
        pixels = imread(figures[f"{name}.png"])[..., :3]
        assert pixels.shape[1] == 1400
        assert 0.02 < (pixels.min(axis=2) < 0.95).mean() < 0.7
        assert len(np.unique((pixels[::3, ::3] * 16).astype(int).reshape(-1, 3), axis=0)) > 20
        assert b"CreationDate" not in figures[f"{name}.pdf"].read_bytes()


def test_a_figure_shows_what_is_in_the_frame(results):
    from qbench.report import figures

    df = frame(*load(results))
    mine = df[(df["model"] == "nano-s") & df["method"].isin(["none", "gptq", "awq"])]
    (ax,) = figures.differences(mine, ("nano_world/acc",)).axes
    drawn = [y for bars in ax.containers for y in bars.lines[0].get_ydata()]
    paired = mine[(mine["metric"] == "nano_world/acc") & (mine["method"] != "none") & (mine["status"] == "ok")]
    assert sorted(y for y in drawn if math.isfinite(y)) == pytest.approx(sorted(100 * paired["delta"]))
    bars = [segment for bars in ax.containers for segment in bars.lines[2][0].get_segments()]
    halves = [(bar[1, 1] - bar[0, 1]) / 2 for bar in bars if len(bar)]
    assert sorted(halves) == pytest.approx(sorted(196 * paired["delta_stderr"]))
    ax, _ = figures.pareto(mine, ("nano/ppl",)).axes
    assert {text.get_text() for text in ax.texts} == {"nano-s"}
    with pytest.raises(ValueError, match="no value of c4/ppl in the 11 rows"):
        figures.quality_by_bits(mine, ("c4/ppl",))
    with pytest.raises(ValueError, match="one family of models, these are nano-s, qwen3-8b"):
        figures.pareto(frame(records((science("nano-s"), 0), (science("qwen3-8b"), 0))))


def test_memory_is_weights_and_the_keys_and_values_of_all_tokens():
    """Qwen3-8B: 36 layers x (keys + values) x 8 heads x 128 x 2 bytes = 147,456 bytes per token."""
    from qbench.report import figures

    cells = (science("qwen3-8b"), 0), (science("qwen3-8b", "gptq", 4), 1)
    df = frame(records(*cells))
    ppl = df[df["metric"] == "nano/ppl"]
    axes = figures.memory(df, ("nano/ppl",)).axes
    assert [ax.get_title("left") for ax in axes[:2]] == ["1 token, batch 1", "4,096 tokens, batch 1"]
    for ax, tokens in zip(axes, (1, 4096, 32768, 16, 16 * 4096, 16 * 32768), strict=True):
        drawn = {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "None"}
        expected = [(size + 147_456 * tokens) / 2**30 for size in ppl["model_bytes"]]
        assert sorted(drawn) == pytest.approx(sorted(expected))
    with pytest.raises(figures.NothingToShow, match="no model of known shape that takes 4,096 tokens"):
        figures.memory(frame(records((science("nano-s"), 0), (science("nano-s", "gptq", 4), 1))))


@pytest.mark.parametrize("case", ["one cell", "unquantized only", "failure only", "all diverged", "one model"])
def test_any_part_of_the_records_can_be_shown(tmp_path, case, capsys):
    store = Store(tmp_path)
    cells = {"one cell": [(science("nano-s", "rtn", 4), 1)], "unquantized only": [(science(), 0)]}
    if case == "one model":
        study(tmp_path, models=["nano-m"], bits=(4, 2))
    elif case == "failure only":
        s = science("nano-s", "rtn", 4) | {"eval": evals()[0]}
        store.put_failure(digest(s), s, ValueError("no"), "Traceback")
    else:
        for m in records(*cells.get(case, [(science("nano-s", "gptq", 2), 1)])):
            if case == "all diverged":
                m.metrics["nano/ppl"] = Metric(math.nan, "perplexity", 48)
            store.put(m)
    assert main([str(tmp_path)]) == 0
    assert "nano_matrix" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": 7}},
        {"model": None},
        {"method": "rtn"},
        {"method": {"name": "rtn", "acts": 8}},
        {"grid": {"bits": None}},
        {"grid": {"bits": 4, "group_size": None}},
        {"eval": None},
        {"eval": "ppl"},
    ],
    ids=str,
)
def test_a_record_of_another_shape_is_left_out_by_name(tmp_path, change):
    study(tmp_path, models=["nano-s"], bits=(4,))
    (m,) = records((science("nano-s", "rtn", 3), 1))
    odd = m.science | change
    Store(tmp_path).put(with_science(m, **change))
    Store(tmp_path).put_failure("0" * 16, odd, ValueError("no"), "")
    with pytest.warns(UserWarning, match=f"left out: record {digest(odd)}, as it") as said:
        Report(tmp_path).write(figures=False)
    assert len(said) == 1, "records are read once"
    assert "| RTN | 3 |" not in (tmp_path / "tables" / "nano_matrix.md").read_text()


@pytest.mark.parametrize(
    ("change", "metrics"),
    [
        ({"model": {"name": "7"}}, None),
        ({"model": {"name": "x" * 5000}}, None),
        ({"model": {"name": "größe/é|&%_{}"}}, None),
        ({"eval": {"name": "unheard of"}}, {"new/thing": Metric(1.0, "", 3)}),
        ({"eval": {}}, {"nano/ppl": Metric(-math.inf, "perplexity", 0)}),
        ({"calib": None}, {}),
    ],
    ids=lambda x: str(x)[:40],
)
def test_an_unusual_record_is_shown(tmp_path, change, metrics):
    (m,) = records((science("nano-s", "rtn", 3), 1))
    Store(tmp_path).put(with_science(replace(m, metrics=m.metrics if metrics is None else metrics), **change))
    assert main([str(tmp_path)]) in (0, 1)
    assert len(load(tmp_path)[0]) == 1
    assert max(map(len, Report(tmp_path).summary().splitlines()), default=0) <= 100


def test_no_records_is_said_and_not_an_error_trace(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no records in" in capsys.readouterr().out
    assert Report(tmp_path).write() == []
    assert len(frame([])) == 0
    assert len(layer_frame([])) == 0
