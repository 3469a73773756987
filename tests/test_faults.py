"""Faults of the machine, processes that share folders, and files that others damaged."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from fakes import forked
from test_run import SMALL, configure, records  # noqa: F401 (configure is a fixture)

from qbench.files import DAY, Lock, remove_stale, scratch, write_atomic
from qbench.models.quantized import QuantizedFolder
from qbench.plan.status import Records
from qbench.quantization import CachedWeights
from qbench.record import NewerRecord
from qbench.run import Run, is_of_machine, run
from qbench.store import Store


def one_record(tmp_path) -> Path:
    (path,) = (tmp_path / "results" / "measurements").glob("*.json")
    return path


# --- whose fault ---


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ConnectionResetError("peer"),
        httpx.RemoteProtocolError("closed"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: unspecified launch failure"),
        ModuleNotFoundError("No module named 'lm_eval'"),
    ],
    ids=repr,
)
def test_a_fault_of_the_machine_is_told_and_not_recorded(configure, tmp_path, monkeypatch, error):  # noqa: F811
    def fail(*args, **kwargs):
        raise error

    assert is_of_machine(error)
    with monkeypatch.context() as m:
        m.setattr("qbench.quantization.quantize", fail)
        outcome = run(configure("method=gptq"))
    assert (outcome.status, outcome.is_bad) == ("failed", True)
    assert "a fault of this machine, not recorded" in outcome.message
    assert Store(tmp_path / "results").failures() == []
    assert run(configure("method=gptq")).status == "measured"


def test_what_is_no_fault_of_the_machine():
    for error in (ValueError("x"), ArithmeticError("NaN"), RuntimeError("shapes do not fit"), ZeroDivisionError()):
        assert not is_of_machine(error)
    error = ValueError("no such luck")
    error.__cause__ = OSError(28, "No space left on device")
    assert is_of_machine(error)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("machine.device=tpu", "machine.device: 'tpu' is not a device"),
        ("machine.device=meta", "machine.device=meta: torch"),
        ("machine.hidden_device=cpuu", "machine.hidden_device: 'cpuu' is not a device"),
        ("machine.max_memory={cpuu: 5}", "machine.max_memory: 'cpuu' is not a device"),
        ("machine.max_memory={cpu: -1}", "machine.max_memory: cpu is given -1"),
        ("machine.max_memory={mps: 1}", "machine.max_memory=mps: torch"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_work(configure, tmp_path, override, message):  # noqa: F811
    outcome = run(configure("method=gptq", override))
    assert outcome.status == "refused"
    assert message in outcome.message
    assert not (tmp_path / "cache").exists()


def test_a_failure_of_one_evaluation_leaves_the_others_to_measure(configure, tmp_path):  # noqa: F811
    parts = ["eval=study", "eval.text.limit=2", "eval.tasks.limit=2", "calib.n=8"]
    asked = Run(configure("method=rtn", *parts, small=False))
    name = next(iter(asked.ids))
    asked.store.put_failure(asked.ids[name], asked.sciences[name], ArithmeticError("NaN"), "")
    outcome = asked.execute()
    assert (outcome.status, len(records(tmp_path))) == ("failed", len(asked.ids) - 1)
    assert "failed before" in outcome.message


# --- the statistics cache is optional ---


def test_statistics_that_do_not_fit_the_disk_do_not_stop_a_run(configure, tmp_path, monkeypatch):  # noqa: F811
    expected = run(configure("method=rtn", "machine.statistics_gib=0")).metrics
    one_record(tmp_path).unlink()

    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qbench.statistics_cache.save_tensors", full)
    with pytest.warns(UserWarning, match="statistics are not kept in .*No space left"):
        outcome = run(configure("method=rtn"))
    assert outcome.metrics == expected
    assert not list((tmp_path / "cache" / "statistics").glob("*/*"))


def test_statistics_used_longest_ago_make_room(tmp_path):
    from qbench.statistics_cache import open_statistics

    def fill(id, used):
        folder = open_statistics(tmp_path, id, size=1000, limit=2500, spare=0).folder
        (folder / "block-00000.safetensors").write_bytes(bytes(1000))
        os.utime(folder, (used, used))

    fill("a", 1)
    fill("b", 2)
    assert open_statistics(tmp_path, "c", size=3000, limit=2500, spare=0) is None
    fill("c", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
    with pytest.warns(UserWarning, match="statistics are not kept"):
        assert open_statistics(tmp_path, "d", size=1000, limit=2500, spare=2**60) is None


# --- locks, scratch folders, what killed processes leave ---


def test_a_lock_is_of_the_file_that_its_path_names(tmp_path):
    first, second, third = (Lock(tmp_path / "lock") for _ in range(3))
    assert first.acquire()
    assert not second.acquire()
    waiting = threading.Thread(target=second.acquire, kwargs={"wait": True})
    waiting.start()
    time.sleep(0.1)
    first.release(remove=True)
    waiting.join(5)
    assert not third.acquire(), "the file was removed while the second waited for it"
    assert second.acquire(shared=True)
    assert third.acquire(shared=True)


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(configure, tmp_path):  # noqa: F811
    cfg = configure("method=rtn")
    (id,) = Run(cfg).ids.values()
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / "results" / ".locks").mkdir()
    (tmp_path / "results" / ".locks" / id).symlink_to(precious)
    outcome = run(cfg)
    assert (outcome.status, precious.read_text()) == ("refused", "x")
    assert "is a symbolic link; delete it" in outcome.message


def test_scratch_folders_of_the_dead_are_removed_and_no_others(tmp_path):
    dead = tmp_path / "dead"
    dead.mkdir()
    dead.with_suffix(".lock").touch()
    with scratch(tmp_path) as a, scratch(tmp_path) as b:
        assert a != b
        assert a.is_dir()
        assert not dead.exists()
    assert not list(tmp_path.iterdir())


def test_old_temporary_files_are_removed(configure, tmp_path):  # noqa: F811
    folder = tmp_path / "results" / "measurements"
    folder.mkdir(parents=True)
    old, new = folder / ".a.json.x.tmp", folder / ".b.json.y.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, time.time() - DAY - 1))
    run(configure("method=rtn"))
    assert (old.exists(), new.exists()) == (False, True)
    (folder / ".tmpAbC").touch()  # safetensors' own
    remove_stale(folder, age=0)
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_weights_in_use_are_deleted_by_their_last_user(tmp_path, monkeypatch):
    monkeypatch.setattr(QuantizedFolder, "has", lambda self, index: self.block_path(index).is_file())
    made = []

    def make(folder):
        made.append(time.sleep(0.2))
        for index in range(2):
            write_atomic(folder.block_path(index), "x")

    a, b = (CachedWeights(tmp_path, "id", 2) for _ in range(2))
    with a.whole(make) as folder, b.whole(make):
        b.drop()  # gives up b's lock; a still uses them
        assert folder.is_complete(2)
    a.drop()
    assert not folder.path.exists()
    assert len(made) == 1


def test_offloaded_layers_are_gone_after_sigterm(tmp_path):
    folders = [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]
    slow = ["machine.max_memory={cpu: 0}", "eval.window=16", "method=rtn"]
    process = forked.Command("run", *folders, *SMALL[:1], *SMALL[3:], *slow, cwd=tmp_path)
    while process.is_alive() and not list((tmp_path / "cache" / "offload").glob("*/*/*.dat")):
        time.sleep(0.05)
    process.send(signal.SIGTERM)
    assert process.finished().returncode == 143
    assert not list((tmp_path / "cache" / "offload").iterdir())


# --- damaged records ---


def damage(kind: str, path: Path) -> None:
    """Makes of the record ``path`` what should not be there."""
    d = json.loads(path.read_text())
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("/nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "newer":
        path.write_text(json.dumps(d | {"schema": 99, "metrics": None}))
    else:
        metrics = {"list": [], "null": {k: m | {"value": None} for k, m in d["metrics"].items()}, "none": None}
        path.write_text("[1]" if kind == "other" else json.dumps(d | {"metrics": metrics[kind]}))


KINDS = ["list", "null", "none", "other", "dangling", "pipe", "folder", "newer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_record_blocks_no_other_and_is_replaced_where_that_is_safe(configure, tmp_path, kind):  # noqa: F811
    assert run(configure("method=rtn")).status == "measured"
    path = one_record(tmp_path)
    damage(kind, path)
    with pytest.warns(UserWarning, match=str(path)):
        assert records(tmp_path) == []
    Records(tmp_path / "results")  # a plan neither fails nor waits
    assert run(configure("method=rtn", "eval.limit=3")).status == "measured"
    outcome = run(configure("method=rtn"))
    if kind in ("folder", "newer"):
        assert outcome.status == "refused"
        assert str(path) in outcome.message
        assert ("made by a newer qbench (schema 99" in outcome.message) == (kind == "newer")
    else:
        assert (outcome.status, len(records(tmp_path))) == ("measured", 2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_failure_is_no_failure(configure, tmp_path):  # noqa: F811
    asked = Run(configure("method=rtn"))
    (id,) = asked.ids.values()
    path = asked.store.failure_path(id)
    write_atomic(path, "[1]")
    os.mkfifo(path.with_name("pipe.json"))
    assert asked.store.failures() == []
    assert asked.execute().status == "measured"


def test_a_newer_record_is_an_error_of_its_own(configure, tmp_path):  # noqa: F811
    run(configure("method=rtn"))
    damage("newer", one_record(tmp_path))
    with pytest.raises(NewerRecord):
        Store(tmp_path / "results").get(one_record(tmp_path).stem)


# --- kills ---

SWEEP = [(f"method={method}", f"grid.bits={bits}") for method in ("rtn", "gptq") for bits in (2, 3)]


def sweep(results: Path, cache: Path, told: Path) -> None:
    """All of SWEEP in this process; how each cell ended goes to the file ``told``."""
    from hydra import compose, initialize_config_dir

    from qbench.files import packaged

    folders = [f"machine.results_dir={results}", f"machine.cache_dir={cache}"]
    for overrides in SWEEP:
        with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            outcome = run(compose("config", [*folders, *SMALL, *overrides]))
        with told.open("a") as f:
            f.write(f"{outcome.status} {outcome.cell} {outcome.message}\n")


def test_kills_with_two_results_folders_on_one_cache(tmp_path):
    """Two processes sweep into folders of their own over one cache and are killed again and again."""
    from random import Random

    kills, random = int(os.environ.get("QBENCH_TEST_KILLS", 6)), Random(0)
    context = multiprocessing.get_context("fork")
    cache, told, done = tmp_path / "cache", tmp_path / "told", 0

    def start(name):
        process = context.Process(target=sweep, args=(tmp_path / name, cache, told))
        process.start()
        return process

    started = time.monotonic()
    undisturbed = context.Process(target=sweep, args=(tmp_path / "alone", tmp_path / "other", told))
    undisturbed.start()
    undisturbed.join()
    usual = time.monotonic() - started
    running, before = {name: start(name) for name in "ab"}, {}
    while done < kills:
        time.sleep(random.uniform(0, 0.7) * usual)
        name = random.choice("ab")
        done += running[name].is_alive()
        running[name].kill()
        running[name].join()
        found = {r.id: r for r in Store(tmp_path / name).measurements()}
        assert all(found[id] == r for id, r in before.get(name, {}).items()), "a record was lost or changed"
        if len(found) == len(SWEEP):  # begin again, so that kills fall into work
            for path in (tmp_path / name / "measurements").glob("*.json"):
                path.unlink()
            found = {}
        before[name] = found
        running[name] = start(name)
    for process in running.values():
        process.join()
        assert process.exitcode == 0
    expected = {r.id: r for r in Store(tmp_path / "alone").measurements()}
    assert len(expected) == len(SWEEP)
    for name in "ab":
        found = {r.id: r for r in Store(tmp_path / name).measurements()}
        assert {id: r.metrics for id, r in found.items()} == {id: r.metrics for id, r in expected.items()}
        assert Store(tmp_path / name).failures() == []
    print(f"{done} kills while a sweep of {usual:.1f} s ran, {len(told.read_text().splitlines())} cells finished")
    assert not [line for line in told.read_text().splitlines() if line.split()[0] not in ("measured", "present")]
