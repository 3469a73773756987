"""The whole road on the smallest shipped model: records, resume, failures, bad input, the command line."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from fakes import forked
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from qbench import plan, signals
from qbench.config import Config
from qbench.files import packaged
from qbench.machine import Machine
from qbench.measure.perplexity import Perplexity
from qbench.models.checkpoint import NANO
from qbench.overrides import prepared
from qbench.record import digest
from qbench.run import Run, one_line, run
from qbench.store import Store

SMALL = ["calib.n=8", "eval.window=128", "eval.limit=4", "machine.device=cpu", "machine.threads=1"]


@pytest.fixture
def configure(tmp_path):
    """configure("method=gptq", ...) -> the config of `qbench run` with these overrides, in folders of its own."""
    GlobalHydra.instance().clear()
    folders = [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]

    def make(*overrides, small=True):
        with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            return compose("config", [*folders, *(SMALL if small else []), *overrides])

    return make


def test_a_plain_command_measures_the_cell_of_the_committed_study(configure):
    committed = Store(Path(__file__).parents[1] / "results")
    ids = Run(configure("method=gptq", "grid.bits=4", "eval=study", small=False)).ids
    assert all(committed.get(id) for id in ids.values())


def test_an_error_of_many_lines_is_told_in_one():
    assert (
        one_line(ValueError("\n\nCouldn't find it\n  for 'en'\nset data_dir\n"))
        == "Couldn't find it for 'en' set data_dir"
    )
    long = one_line(ValueError("asked for " + "x " * 999 + "\nset data_dir"))
    assert long.startswith("asked for x")
    assert long.endswith("x set data_dir")
    assert len(long) < 620
    assert one_line(KeyError()) == "KeyError"


def records(tmp_path):
    return Store(tmp_path / "results").measurements()


def qbench(*args, tmp_path):
    folders = [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]
    return forked.qbench("run", *args, *folders, *SMALL, cwd=tmp_path)


@pytest.mark.parametrize("method", ["none", "rtn", "gptq", "awq", "smoothquant", "billm"])
def test_every_method_from_config_to_record(configure, tmp_path, method):
    outcome = run(configure(f"method={method}", "grid.bits=3"))
    assert outcome.status == "measured", outcome.message
    (record,) = records(tmp_path)
    assert record.id == digest(record.science)
    assert record.science["method"]["name"] == method
    assert (record.science["grid"] is None) == (method in ("none", "billm"))
    assert (record.science["calib"] is None) == (method == "none")
    assert record.metrics["nano/ppl"].value == pytest.approx(
        torch.tensor(record.metrics["nano/ppl"].samples).mean().exp().item(), rel=1e-4
    )
    assert len(record.layers) == (0 if method == "none" else 14)
    assert record.stored_bits >= record.nominal_bits
    weights = (NANO / "nano-s" / "model.safetensors").stat().st_size
    if method == "none":
        assert record.model_bytes == pytest.approx(weights, rel=0.02)
    else:
        assert record.model_bytes < 0.7 * weights
    assert not (tmp_path / "cache" / "quantized").exists() or not any((tmp_path / "cache" / "quantized").iterdir())


def test_the_same_run_twice_is_measured_once_and_is_bit_identical(configure, tmp_path):
    first = run(configure("method=gptq"))
    (path,) = (tmp_path / "results" / "measurements").glob("*.json")
    before = path.stat().st_mtime_ns
    started = time.process_time()
    assert run(configure("method=gptq")).status == "present"
    assert time.process_time() - started < 1
    assert path.stat().st_mtime_ns == before
    path.unlink()
    again = run(configure("method=gptq"))
    assert again.status == "measured"
    assert again.metrics == first.metrics


def test_threads_change_no_number_of_gptq(configure, tmp_path):
    found = [
        run(configure("method=gptq", f"machine.threads={n}", f"machine.results_dir={tmp_path / n}",
                      f"machine.cache_dir={tmp_path / n}"))
        for n in "421"
    ]  # fmt: skip
    assert found[0].status == "measured"
    assert found[0].metrics == found[1].metrics == found[2].metrics


def test_machine_and_folders_do_not_change_the_identity(configure):
    a = Run(configure("method=gptq")).ids
    assert a == Run(configure("method=gptq", "machine.statistics_gib=0")).ids
    assert a != Run(configure("method=gptq", "calib.seed=1")).ids
    assert a != Run(configure("method=gptq", "grid.bits=3")).ids
    assert a != Run(configure("method=gptq", "method.damp=0.1")).ids


def test_billm_is_one_cell_on_the_whole_bits_axis(configure):
    assert Run(configure("method=billm", "grid.bits=8")).ids == Run(configure("method=billm", "grid.bits=2")).ids


def test_parts_of_an_evaluation_are_records_of_their_own(configure, tmp_path):
    parts = ["eval=study", "eval.text.limit=2", "eval.tasks.limit=2", "calib.n=8"]
    outcome = run(configure("method=rtn", *parts, small=False))
    assert outcome.status == "measured", outcome.message
    assert {r.science["eval"]["name"] for r in records(tmp_path)} == {"divergence", "tasks"}
    assert {"nano/ppl", "nano/kl", "nano/top1", "nano_world/acc"} <= set(outcome.metrics)


def test_the_noise_floor_of_a_model_is_a_record(configure, tmp_path):
    outcome = run(configure("method=none", "eval=noise_floor"))
    assert outcome.status == "measured", outcome.message
    (record,) = records(tmp_path)
    assert (record.science["eval"]["name"], record.science["eval"]["dtype"]) == ("noise_floor", "bfloat16")
    assert 0 < record.metrics["nano/kl"].value < 1e-3


def test_weights_are_kept_if_asked_and_used_again(configure, tmp_path, monkeypatch):
    run(configure("method=gptq", "machine.keep_weights=true"))
    (folder,) = (tmp_path / "cache" / "quantized").iterdir()
    assert len(list(folder.glob("block-*.safetensors"))) == 2
    monkeypatch.setattr("qbench.quantization.quantize", lambda *a, **k: pytest.fail("quantized again"))
    outcome = run(configure("method=gptq", "eval.limit=3"))
    assert outcome.status == "measured", outcome.message


# --- failures ---


def test_a_failure_is_recorded_and_tried_again_only_if_asked(configure, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("qbench.quantization.quantize", lambda *a, **k: 1 / 0)
        outcome = run(configure("method=gptq"))
    assert outcome.status == "failed"
    (failure,) = (tmp_path / "results" / "failures").glob("*.json")
    told = json.loads(failure.read_text())
    assert told["error"].startswith("ZeroDivisionError")
    assert "1 / 0" in told["traceback"]
    again = run(configure("method=gptq"))
    assert again.status == "failed"
    assert "retry_failed=true" in again.message
    assert run(configure("method=gptq", "retry_failed=true")).status == "measured"
    assert not failure.exists()


def test_one_part_that_fails_does_not_stop_the_others(configure, tmp_path, monkeypatch):
    from qbench.measure.divergence import Divergence

    def fail(*args):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Divergence, "run", fail)
    parts = ["eval=study", "eval.text.limit=2", "eval.tasks.limit=2", "calib.n=8"]
    outcome = run(configure("method=rtn", *parts, small=False))
    assert outcome.status == "failed"
    assert "no such luck" in outcome.message
    assert {r.science["eval"]["name"] for r in records(tmp_path)} == {"tasks"}


def test_a_half_written_record_is_measured_again(configure, tmp_path):
    run(configure("method=rtn"))
    (path,) = (tmp_path / "results" / "measurements").glob("*.json")
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    with pytest.warns(UserWarning, match="is not a whole record"):
        assert records(tmp_path) == []
    assert run(configure("method=rtn")).status == "measured"
    assert json.loads(path.read_text())["metrics"] == whole["metrics"]


def test_another_process_at_the_same_cell_is_left_alone(configure, tmp_path):
    cfg = configure("method=rtn")
    (id,) = Run(cfg).ids.values()
    with Store(tmp_path / "results").claim(id) as mine:
        assert mine == {id}
        outcome = run(cfg)
        assert (outcome.status, outcome.message) == ("elsewhere", "another process measures 1 of 1")
        assert run(configure("method=rtn", "eval.limit=3")).status == "measured", "another evaluation is free"
    assert run(cfg).status == "measured"


def test_a_sweep_goes_on_after_a_failure_and_says_what_failed(tmp_path):
    got = qbench("-m", "method=rtn", "grid.bits=9,4", "grid.group_size=128", tmp_path=tmp_path)
    assert got.returncode == 1
    assert "1 measured, 1 refused" in got.stdout
    assert "grid.bits must be a whole number from 1 to 8, got 9" in got.stdout
    assert len(records(tmp_path)) == 1
    stopped = qbench("-m", "method=rtn", "grid.bits=9,5", "fail_fast=true", tmp_path=tmp_path)
    assert stopped.returncode == 1
    assert len(records(tmp_path)) == 1


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path):
    folders = [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]
    sweep = ["-m", "method=rtn", "grid.bits=2,3,4,5,6,7,8"]
    process = forked.Command("run", *sweep, *folders, *SMALL, cwd=tmp_path)
    while process.is_alive() and len(records(tmp_path)) < 2:
        time.sleep(0.05)
    process.kill()
    process.join()
    done = {r.id: r for r in records(tmp_path)}
    assert 2 <= len(done) < 7, "killed too late to test anything"
    got = qbench(*sweep, tmp_path=tmp_path)
    assert got.returncode == 0, got.stdout + got.stderr
    assert f"{7 - len(done)} measured, {len(done)} present" in got.stdout
    assert len(after := {r.id: r for r in records(tmp_path)}) == 7
    assert all(after[id] == record for id, record in done.items())


# --- bad input ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=rtn", "grid.bits=0"], "grid.bits must be a whole number from 1 to 8, got 0"),
        (
            ["method=rtn", "grid.group_size=96"],
            "group_size 96 does not divide K=128 (model.layers.0.self_attn.q_proj)",
        ),
        (["method=gptq", "method.damp=7"], "method.damp must be a number between 0 and 1, got 7"),
        (["eval.limit=0"], "eval.limit must be a whole number of at least 1 or null, got 0"),
        (["eval.window=4096"], "eval.window=4096"),
        (["machine.device=cuda"], "sees no CUDA device; use machine=cpu"),
        (["machine.data_dir=nowhere"], "machine.data_dir=nowhere is not a directory"),
        (["eval.path=nowhere.txt"], "no such text file: nowhere.txt"),
        (["model=local", "model.path=nowhere"], "there is no folder nowhere"),
        (["model.dtype=int8"], "model.dtype must be float32, bfloat16 or float16, got 'int8'"),
        (["eval=nano_tasks", "eval.tasks=[nano_wrld]"], "nano_world"),
    ],
)
def test_bad_input_is_refused_before_work_starts(configure, tmp_path, monkeypatch, overrides, message):
    if "machine.device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(Run, "execute", lambda self: pytest.fail("work started"))
    outcome = run(configure(*overrides, small="eval=nano_tasks" not in overrides))
    assert outcome.status == "refused"
    assert message in outcome.message
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=gptq", "method.act_order=no"], "method.act_order must be true or false, got 'no'"),
        (["method=rtn", "method.whole_rows=off"], "method.whole_rows must be true or false, got 'off'"),
        (["eval=kl", "eval.perplexity=no"], "eval.perplexity must be true or false, got 'no'"),
        (["method=awq", "method.n_scale=1.5"], "method.n_scale must be a whole number of at least 1, got 1.5"),
        (["method=awq", "method.n_scale=true"], "method.n_scale must be a whole number of at least 1, got true"),
        (["method=awq", "method.unclipped=[1]"], "method.unclipped must be text, got 1"),
        (["calib.n=1.5"], "calib.n must be a whole number of at least 1 or null, got 1.5"),
        (["calib.n=100000000"], "lower either"),
        (["eval.limit=2.5"], "eval.limit must be a whole number of at least 1 or null, got 2.5"),
        (["machine.threads=x"], "machine.threads must be a whole number of at least 1 or null, got 'x'"),
        (["machine.threads=0"], "machine.threads must be a whole number of at least 1 or null, got 0"),
        (["machine.threads=-1"], "machine.threads must be a whole number of at least 1 or null, got -1"),
        (["machine.cache_dir=FILE"], "is a file; give a directory"),
        (["model=local"], "model.path is not set; add model.path=VALUE"),
        (["model.name=7"], "model.name must be text, got 7"),
        ([f"model.name={'x' * 5000}"], "model.name has 5000 characters"),
        (["~eval"], "eval=None names no evaluation; choose one, e.g. eval=ppl"),
        (["eval.path=/nope.txt", "eval.window=null"], "no such text file: /nope.txt"),
        (["+mehtod=gptq"], "mehtod is unknown; did you mean method?"),
        (["+method.whole_row=true"], "method.whole_row is unknown; did you mean whole_rows?"),
        (["method=none", "+method.bits=4"], "method.bits is unknown; there is nothing to set"),
        (["eval=study", "+eval.txt.limit=4"], "eval.txt is unknown; did you mean text?"),
        (["eval=study", "+eval.text.limits=4"], "eval.text.limits is unknown; did you mean limit?"),
        (["protocol.logits=float"], "protocol.logits must be float32 or model, got 'float'"),
        (["++method.grid.bits=3"], "method.grid follows grid; set grid.bits instead of method.grid.bits"),
        (["wandb=offline"], "wandb is a group of settings, not 'offline'; set single ones, as in wandb.mode=offline"),
        (["wandb.mode=on"], "wandb.mode must be disabled, offline or online, got 'on'"),
        (["fail_fast=maybe"], "fail_fast must be true or false, got 'maybe'"),
        (["method._target_=os.system"], "method._target_=os.system is not a dataclass derived from Method"),
        (
            ["method._target_=qbench.methods.gtpq.GPTQ"],
            "there is no such class (No module named 'qbench.methods.gtpq')",
        ),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_alike_by_run_and_plan(configure, tmp_path, overrides, message):
    (tmp_path / "FILE").touch()
    overrides = [o.replace("FILE", str(tmp_path / "FILE")) for o in overrides]
    cfg = configure(*overrides, small=not any(o.startswith(("eval=study", "~eval")) for o in overrides))
    outcome = run(cfg)
    assert outcome.status == "refused"
    assert message in outcome.message
    if "no such text file" not in message:  # a plan opens no data
        with pytest.raises((ValueError, OSError), match=re.escape(message)):
            Config.of(OmegaConf.to_container(cfg, resolve=True))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mehtod=gptq", "mehtod is unknown; did you mean method?"),
        ("+mehtod=gptq", "mehtod is unknown; did you mean method?"),
        ("eval=null", "eval is one of agreement, c4"),
        ("model.path=/größe", "needs two pairs of quotes: 'model.path=\"/größe\"'"),
        ("gptq", "write GROUP=CHOICE or GROUP.FIELD=VALUE"),
    ],
)
def test_overrides_that_cannot_be_read(word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepared([word])


def test_overrides_for_hydra():
    words = ["method=gptq,rtn", "grid.bits=3,4", "~wandb.project", "hydra/launcher=joblib", "hydra.verbose=true"]
    assert prepared(words) == [words[0], "++grid.bits=3,4", *words[2:]]
    assert prepared(['model.path="/größe"']) == ['++model.path="/größe"']
    words = ["experiment=nano_matrix", "grid.bits=3,4"]  # once for each width, not for each pair
    assert prepared(words) == words


@pytest.mark.parametrize(("text", "n"), [("", 4), ("too short", 4)])
def test_empty_and_short_texts_are_refused(configure, tmp_path, text, n):
    file = tmp_path / "text.txt"
    file.write_text(text)
    for overrides in (["method=gptq", f"calib.path={file}", f"calib.n={n}", "calib.length=64"], [f"eval.path={file}"]):
        outcome = run(configure(*overrides))
        assert outcome.status == "refused"
        assert "text" in outcome.message


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["method=rtn", "calib.length=4096"], "calib.length=4096"),
        (["method=none", "eval.window=1025"], "eval.window=1025"),
        (["method=none", "eval=nano_tasks", "eval.max_length=2048"], "eval.max_length=2048"),
        (["method=none", "eval=nano", "eval.kl.window=2048"], "eval.kl.window=2048"),
    ],
)
def test_sequences_longer_than_the_model_are_refused_alike_by_run_and_plan(
    configure, monkeypatch, capsys, overrides, what
):
    monkeypatch.setattr(Run, "execute", lambda self: pytest.fail("work started"))
    message = f"{what} tokens, but nano-s has 1024 positions; set {what.partition('=')[0]} to 1024 or less"
    outcome = run(configure(*overrides, small=False))
    assert (outcome.status, outcome.message) == ("refused", message)
    assert plan.main(["model=nano-s", *overrides]) == 1
    assert message in capsys.readouterr().out


def test_a_results_folder_that_cannot_be_written_is_refused(configure, tmp_path):
    (tmp_path / "results").write_text("a file, not a folder")
    outcome = run(configure())
    assert outcome.status == "refused"
    assert "machine.results_dir" in outcome.message


def test_a_full_disk_is_noticed_before_work_starts(configure, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qbench.store.write_atomic", full)
    outcome = run(configure())
    assert outcome.status == "refused"
    assert "No space left on device" in outcome.message


def test_a_truncated_checkpoint_is_refused(configure, tmp_path):
    folder = save_tiny(tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    outcome = run(configure("model=local", f"model.path={folder}", "calib=nano", "eval=ppl"))
    assert outcome.status == "refused"
    assert "truncated" in outcome.message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=quip", "Could not find 'method/quip'"),
        ("model=gpt", "Could not find 'model/gpt'"),
        ("method.dampp=1", "method.dampp is unknown; did you mean damp?"),
        ("mehtod=rtn", "mehtod is unknown; did you mean method?"),
    ],
)
def test_unknown_names_are_refused(tmp_path, override, message):
    got = qbench("method=gptq", override, tmp_path=tmp_path)
    assert got.returncode != 0
    assert message in got.stdout + got.stderr


# --- a model of one's own ---


def test_a_local_checkpoint_with_local_texts(tmp_path):
    import shutil

    model = tmp_path / "model"
    save_tiny(model)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / "nano-s" / file, model)
    from qbench.nano import world

    (tmp_path / "a.txt").write_text(world.text("train", 60))
    (tmp_path / "b.txt").write_text(world.text("test", 60))
    got = qbench(
        *["model=local", f"model.path={model}", "model.dtype=float32", "method=gptq", "grid.bits=4"],
        *[
            "calib=text",
            f"calib.path={tmp_path / 'a.txt'}",
            "calib.length=64",
            "eval=ppl",
            f"eval.path={tmp_path / 'b.txt'}",
        ],
        tmp_path=tmp_path,
    )
    assert got.returncode == 0, got.stdout + got.stderr
    (record,) = records(tmp_path)
    assert record.science["model"]["repo"] == "local"
    assert "text/ppl" in record.metrics
    assert str(tmp_path) not in json.dumps(record.science)


def test_a_signal_that_compiled_code_turns_into_an_error_still_ends_the_process(configure, tmp_path, monkeypatch):
    def interrupted(*_):
        try:
            signals.stop(signal.SIGTERM)
        except SystemExit as e:
            raise SystemError("returned a result with an exception set") from e

    monkeypatch.setattr(signals, "_asked", [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Perplexity, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(configure("method=rtn"))
    assert ended.value.code == 128 + signal.SIGTERM
    assert not Store(tmp_path / "results").failures()


# --- the rest of the command line ---


def test_help_and_unknown_commands(tmp_path):
    assert "qbench run" in forked.qbench("--help", cwd=tmp_path).stdout
    bad = forked.qbench("rnu", cwd=tmp_path)
    assert bad.returncode == 2
    assert "unknown command 'rnu'" in bad.stderr
    groups = forked.qbench("run", "--help", cwd=tmp_path).stdout
    assert "method: awq, billm, billm_b96, fp8, fp8_w8a8, gptq, none, rtn, smoothquant" in groups


def test_every_config_composes(configure):
    for group in ("model", "method", "grid", "calib", "eval", "machine"):
        for path in sorted(Path(packaged("conf"), group).glob("*.yaml")):
            assert group in configure(f"{group}={path.stem}", small=False)


def test_wandb_offline_gets_one_run_a_record(configure, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    outcome = run(configure("method=rtn", "wandb.mode=offline"))
    assert outcome.status == "measured", outcome.message
    (record,) = records(tmp_path)
    assert [p.name.endswith(record.id) for p in (tmp_path / "wandb").glob("offline-run-*")] == [True]


def test_machine_auto_says_what_it_found(tmp_path):
    machine = Machine("auto", None, "auto", 16, 32, None, None, tmp_path, tmp_path, False)
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_results_dir_follows_the_environment(tmp_path):
    env = os.environ | {
        "QBENCH_RESULTS": str(tmp_path / "elsewhere"),
        "QBENCH_CACHE": str(tmp_path / "cache"),
    }
    got = forked.qbench("run", "method=none", *SMALL, cwd=tmp_path, env=env)
    assert got.returncode == 0, got.stdout + got.stderr
    assert len(Store(tmp_path / "elsewhere").measurements()) == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "elsewhere"}


def test_cells_that_a_table_does_not_print_are_left_out(configure):
    outcome = run(configure("model=qwen3-8b", "method=gptq", "grid.bits=3", "table=2"))
    assert (outcome.status, outcome.is_bad) == ("left out", False)
    assert "not in table 2" in outcome.message
    assert run(configure("method=gptq", "table=5")).status == "refused"


def test_a_changed_model_is_refused_with_both_hashes(configure, tmp_path):
    assert run(configure("method=rtn")).status == "measured"
    (path,) = (tmp_path / "results" / "measurements").glob("*.json")
    record = json.loads(path.read_text())
    now = record["science"]["model"]["revision"]
    record["science"]["model"]["revision"] = "0" * 40
    path.unlink()
    (path.parent / "another.json").write_text(json.dumps(record))
    outcome = run(configure("method=rtn"))
    assert outcome.status == "refused"
    assert now in outcome.message
    assert "0" * 40 in outcome.message


def test_what_cannot_fit_is_refused_before_it_starts(configure, monkeypatch):
    from qbench.plan import footprint

    monkeypatch.setattr(footprint, "available", lambda *a: footprint.Bytes(ram=2**40, disk=1000))
    outcome = run(configure("method=gptq"))
    assert outcome.status == "refused"
    assert "disk space in machine.cache_dir" in outcome.message
    assert "set machine.cache_dir to a larger disk" in outcome.message
    assert run(configure("method=none")).status == "measured"
    monkeypatch.setattr(footprint, "available", lambda *a: footprint.Bytes(ram=1, disk=1))
    assert run(configure("method=none")).status == "present", "what is measured needs no room"


def test_what_was_quantized_outlives_a_failed_evaluation(configure, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(Perplexity, "run", lambda *a: 1 / 0)
        assert run(configure("method=gptq")).status == "failed"
    assert len(list((tmp_path / "cache" / "quantized").glob("*/block-*.safetensors"))) == 2
    monkeypatch.setattr("qbench.quantization.quantize", lambda *a, **k: pytest.fail("quantized again"))
    assert run(configure("method=gptq", "retry_failed=true")).status == "measured"
    assert not list((tmp_path / "cache" / "quantized").iterdir())
