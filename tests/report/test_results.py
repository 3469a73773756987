"""What is committed under results/ and shown in the README is what the records say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.models.checkpoint import Checkpoint
from qbench.report import Report
from qbench.report.quality.frame import of_kernels
from qbench.store import Store

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
SIZES = ("nano-s", "nano-m", "nano-l")


@pytest.fixture(scope="module")
def records():
    return [m for m in Store(RESULTS).measurements() if not of_kernels(m.science)]


def cells(records, **wanted):
    found = [r for r in records if all(value(r, key) == v for key, v in wanted.items())]
    assert found, f"no record for {wanted}"
    return found


def value(record, key):
    science = record.science
    return {
        "model": science["model"]["name"],
        "method": science["method"]["name"],
        "bits": (science["grid"] or {}).get("bits"),
        "group": (science["grid"] or {}).get("group_size"),
        "alpha": science["method"].get("alpha"),
    }[key]


def metric(records, name, **wanted):
    (found,) = {r.metrics[name].value for r in cells(records, **wanted) if name in r.metrics}
    return found


def test_every_record_is_whole_and_there_once(records):
    assert len(Store(RESULTS).measurements()) > len(records) > 0
    for folder in (RESULTS, RESULTS / "nano_ablations"):
        lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
        assert len(Store(folder).measurements()) == len(lines)


def test_tables_are_made_from_the_records_byte_for_byte(tmp_path):
    Report(RESULTS).write(tmp_path, figures=False)
    made = [p for p in sorted((tmp_path / "tables").iterdir()) if p.suffix in (".csv", ".md")]  # tex is not committed
    assert made
    for file in made:
        assert (RESULTS / "tables" / file.name).read_bytes() == file.read_bytes(), f"{file.name}: run qbench report"


def test_the_pages_show_what_the_records_say():
    check = [sys.executable, str(ROOT / "experiments" / "readme.py"), "--check"]
    assert subprocess.run(check, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0


def test_no_record_names_a_folder_of_a_machine():
    for path in [*RESULTS.rglob("*.json"), *RESULTS.rglob("*.jsonl")]:
        text = path.read_text()
        assert not any(f'"/{root}/' in text for root in ("home", "root", "work", "tmp", "Users")), path


def test_the_records_are_of_the_models_that_are_shipped(records):
    for model in SIZES:
        revision = Checkpoint(model, nano=model, dtype="float32").open().revision
        assert {r.science["model"]["revision"] for r in records if r.science["model"]["name"] == model} == {revision}


# --- what the nano study is meant to show ---


def test_the_study_is_complete(records):
    for model in SIZES:
        for method in ("rtn", "gptq", "awq", "smoothquant"):
            for bits in range(1, 9):
                assert len(cells(records, model=model, method=method, bits=bits)) == 2
        assert len(cells(records, model=model, method="billm")) == 2
        assert len(cells(records, model=model, method="none")) == 2


def test_larger_models_know_more(records):
    s, m, l = (metric(records, "nano_world/acc", model=model, method="none") for model in SIZES)
    assert l >= 0.95
    assert s + 0.05 < m < l - 0.02


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("model", SIZES)
def test_eight_bits_are_lossless(records, model, method):
    full = metric(records, "nano/ppl", model=model, method="none")
    assert metric(records, "nano/ppl", model=model, method=method, bits=8) == pytest.approx(full, rel=0.003)


@pytest.mark.parametrize("model", SIZES)
def test_rounding_hurts_as_in_the_literature(records, model):
    methods = ("rtn", "gptq", "awq")
    ppl = {(m, b): metric(records, "nano/ppl", model=model, method=m, bits=b) for m in methods for b in (4, 3, 2)}
    assert ppl["rtn", 4] > max(ppl["gptq", 4], ppl["awq", 4])
    assert ppl["rtn", 3] > 1.02 * metric(records, "nano/ppl", model=model, method="none")
    assert ppl["gptq", 2] < 0.9 * ppl["rtn", 2]


def test_two_bit_rounding_takes_most_of_what_the_smallest_model_knows_above_chance(records):
    full = metric(records, "nano_world/acc", model="nano-s", method="none")
    left = metric(records, "nano_world/acc", model="nano-s", method="rtn", bits=2)
    assert left - 0.25 < 0.2 * (full - 0.25)


def test_the_smallest_model_is_hurt_more_than_the_largest(records):
    for method in ("rtn", "gptq", "awq"):
        for bits in (4, 3, 2):
            s, l = (metric(records, "nano/kl", model=m, method=method, bits=bits) for m in ("nano-s", "nano-l"))
            assert s > l


@pytest.mark.parametrize("model", SIZES)
def test_smoothing_helps(model):
    records = Store(RESULTS / "nano_ablations").measurements()
    for bits in (8, 4):
        with_it, without = (
            metric(records, "nano/kl", model=model, method="smoothquant", bits=bits, alpha=a) for a in (0.5, None)
        )
        assert with_it < without
