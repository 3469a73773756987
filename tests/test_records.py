"""Records in a folder and in a .jsonl: written, found, folded, listed, deleted, and measured again."""

import json
import os
import re

import pytest
from fakes import forked
from fakes.report_records import evals, harm, measure, science
from test_run import SMALL, configure  # noqa: F401 (a fixture)

from qbench import records
from qbench.overrides import prepared
from qbench.record import NewerRecord
from qbench.records.folding import delete, fold
from qbench.run import Run, run
from qbench.store import Store


@pytest.fixture
def store(tmp_path):
    """Twelve measurements and a failure, one file each."""
    store = Store(tmp_path / "records")
    for cell in (science(), science("nano-s", "gptq", 4), science("nano-s", "rtn", 3), science("nano-l", "rtn", 2)):
        for ev in evals():
            store.put(measure(cell, ev, harm(cell)))
    lost = measure(science("nano-l", "awq", 1), evals()[0], 1)
    store.put_failure(lost.id, lost.science, FloatingPointError("no finite scale"), "Traceback ...")
    return store


def told(store) -> dict:
    return {m.id: m for m in store.measurements()} | {f["id"]: f for f in store.failures()}


def test_folding_loses_nothing_and_gives_the_same_bytes(store):
    before = told(store)
    path, moved = fold(store, "study")
    text = path.read_text()
    assert (moved, told(store), len(text.splitlines())) == (len(before), before, len(before))
    assert not list(store.root.glob("*/*.json"))
    models = [json.loads(line)["science"]["model"]["name"] for line in text.splitlines()]
    assert models == sorted(models)
    for m in store.measurements():
        assert store.get(m.id) == m
        assert store.where(m.id).startswith(f"{path}:")
        store.put(m)
    assert fold(store, "study") == (path, len(before) - 1), "equal records are one"
    assert path.read_text() == text
    assert fold(store, "study") == (path, 0)


def test_what_is_folded_is_chosen(store):
    count = len(told(store))
    path, moved = fold(store, "rtn", lambda d: d["science"]["method"]["name"] == "rtn")
    assert {json.loads(line)["science"]["method"]["name"] for line in path.read_text().splitlines()} == {"rtn"}
    fold(store, "rest")
    assert len(told(store)) == count == moved + len((store.root / "rest.jsonl").read_text().splitlines())


def test_a_measurement_takes_the_place_of_a_failure(store):
    (failure,) = store.failures()
    fold(store, "study")
    assert store.get_failure(failure["id"])["error"] == "FloatingPointError: no finite scale"
    found = measure(science("nano-l", "awq", 1), evals()[0], 1)
    store.put(found)
    assert (store.failures(), store.get(found.id)) == ([], found)
    path, _ = fold(store, "study")
    assert "no finite scale" not in path.read_text()
    delete(store, found.id)
    assert (store.get(found.id), store.where(found.id)) == (None, "")


def test_records_of_one_id_that_differ_are_reported(store):
    m = store.measurements()[0]
    fold(store, "study")
    path = store.put(m)
    path.write_text(path.read_text().replace(f'"model_bytes": {m.model_bytes}', '"model_bytes": 1'))
    with pytest.warns(UserWarning, match=f"differs from the other record {m.id}; delete one"):
        assert len(store.measurements()) == len({m.id for m in store.measurements()})
    with pytest.raises(ValueError, match=rf"{path} differs from the record .*study.jsonl:\d+; delete one"):
        fold(store, "study")
    assert path.is_file()


def test_a_damaged_line_blocks_no_other(store):
    count = len(store.measurements())
    path, _ = fold(store, "study")
    lines = path.read_text().splitlines()
    newer = json.loads(lines[1])
    path.write_text("\n".join([lines[0][:50], json.dumps(newer | {"schema": 99}), "<<<<<<< HEAD", *lines[2:]]) + "\n")
    with pytest.warns(UserWarning, match=r"study\.jsonl:3 is not a whole record"):
        assert len(store.measurements()) == count - 2 + ("error" in lines[0])
    assert store.get(json.loads(lines[0])["id"]) is None
    with pytest.raises(NewerRecord):
        store.get(newer["id"])
    with pytest.raises(ValueError, match=r"study\.jsonl:1 is not a whole record"):
        fold(store, "study")


def test_a_resumed_run_finds_folded_records(configure, tmp_path):  # noqa: F811
    store = Store(tmp_path / "results")
    outcome = run(configure("method=rtn"))
    (id,) = outcome.records
    assert outcome.records == {id: str(store.path(id))}
    fold(store, "study")
    again = run(configure("method=rtn"))
    assert (again.status, again.records, again.metrics) == (
        "present",
        {id: f"{store.root}/study.jsonl:1"},
        outcome.metrics,
    )
    delete(store, id)
    assert run(configure("method=rtn")).status == "measured"


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 13),
        (["model=nano-s"], 9),
        (["method=rtn,gptq", "bits=3,4"], 6),
        (["bits=W16A16"], 3),
        (["eval=ppl", "model=nano-l"], 2),
        (["eval=nano_world"], 4),
        (["group=row"], 0),
    ],
)
def test_records_are_listed(store, capsys, words, count):
    assert records.main([str(store.root), *words]) == int(not count)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + count
    assert not count or lines[0].split()[:3] == ["id", "model", "method"]


def test_one_record_is_found_by_the_start_of_its_id(store, capsys):
    id = store.measurements()[0].id
    assert records.main([str(store.root), id[:8], "--delete"]) == 0
    assert store.get(id) is None
    for words, message in (
        (["0" * 16], "no record in"),
        (["size=3"], "there is no filter size="),
        (["abc", "model=nano-s"], "either one ID or filters"),
        (["--delete"], "no ID"),
    ):
        assert records.main([str(store.root), *words]) == 2
        assert message in capsys.readouterr().err
    assert records.main([str(store.root), "method=gptq", "--fold", "gptq"]) == 0
    assert re.search(r"\d records moved into .*gptq.jsonl", capsys.readouterr().out)


@pytest.mark.parametrize("choice", [[], ["-m"]])
def test_a_page_has_the_command_that_gives_the_same_id(configure, tmp_path, capsys, choice):  # noqa: F811
    text = tmp_path / "text.txt"
    text.write_text("one two three four five " * 2000)
    fields = ["grid.bits=5", "method.alpha=null", "eval.logits=model", "calib=text", "calib.length=64"]
    fields += [f"calib.path={text}", f"machine.results_dir={tmp_path / 'results'}", *SMALL]
    env = os.environ | {"QBENCH_CACHE": str(tmp_path / "cache")}
    done = forked.qbench("run", *choice, "method=smoothquant_a4", *fields, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (m,) = Store(tmp_path / "results").measurements()
    assert records.main([str(tmp_path / "results"), m.id]) == 0
    page = capsys.readouterr().out
    line = next(line for line in page.splitlines() if line.startswith("  qbench run "))
    words = line.split()[2:]
    assert "calib.path=FILE" in words
    assert not any(word.startswith("machine.threads") for word in words)
    assert Run(configure(*prepared(line.replace("FILE", str(text)).split()[2:]), small=False)).ids == {"": m.id}
    assert f"{line.replace('qbench run', 'qbench export', 1)} format=hf out=NEW_FOLDER" in page


def test_the_page_of_an_old_record_says_that_its_command_was_not_stored(store, capsys):
    for id in told(store):
        assert records.main([str(store.root), id]) == 0
        assert "The command that measured it was not stored." in capsys.readouterr().out
