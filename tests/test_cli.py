"""The command line: exit codes, launchers, signals, what is printed while and after measuring."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
from fakes import forked
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher

from qbench import progress
from qbench.files import packaged
from qbench.outcomes import Outcome, exit_code, line, summary, table
from qbench.record import Metric
from qbench.run import Run
from qbench.store import Store

SMALL = ["calib.n=8", "eval.window=128", "eval.limit=4", "machine.device=cpu", "machine.threads=1"]
QBENCH = [sys.executable, "-m", "qbench.cli"]


class ForkingLauncher(Launcher):
    """Its jobs end in other processes, as those of joblib and submitit do."""

    __module__ = "hydra_plugins"  # Hydra takes plugins from no other package

    def setup(self, *, hydra_context, task_function, config):
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        context = pickle.loads(pickle.dumps(self.hydra_context))
        for number, overrides in enumerate(job_overrides):
            if os.fork() == 0:
                setup_globals()
                config = context.config_loader.load_sweep_config(self.config, list(overrides))
                config.hydra.job.id, config.hydra.job.num = str(number), initial_job_idx + number
                folders = dict(job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir")
                run_job(self.task_function, config, hydra_context=context, **folders)
                os._exit(0)
            os.wait()
        return [JobReturn(_return_value=None, status=JobStatus.COMPLETED) for _ in job_overrides]


@pytest.fixture
def qbench(tmp_path):
    """qbench("run", ...) -> the finished process, in folders of its own."""
    env = os.environ | {"QBENCH_RESULTS": str(tmp_path / "results"), "QBENCH_CACHE": str(tmp_path / "cache")}

    def call(*args, start=None, python=QBENCH[1:], env=env, **kwargs):
        plugin = any(arg in ("hydra/launcher=joblib", "hydra/launcher=submitit_local") for arg in args)
        if start is None and python == QBENCH[1:] and not kwargs and not plugin:
            return forked.qbench(*args, cwd=tmp_path, env=env)
        if start is forked.Command:
            return start(*args, cwd=tmp_path, env=env)
        start = start or subprocess.run
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
        return start([sys.executable, *python, *args], **pipes | kwargs)

    return call


@pytest.mark.parametrize("launcher", ["basic", "forking", "joblib", "submitit_local"])
def test_a_sweep_ends_alike_with_every_launcher(qbench, tmp_path, monkeypatch, launcher):
    if launcher in ("joblib", "submitit_local"):
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="not installed")
    if launcher == "forking":
        node = {"_target_": "hydra_plugins.ForkingLauncher"}
        ConfigStore.instance().store("forking", node, group="hydra/launcher")
        Plugins.instance().register(ForkingLauncher)
        monkeypatch.setitem(sys.modules, "hydra_plugins", sys.modules[__name__])
    got = qbench("run", "-m", "method=rtn", "grid.bits=9,4", *SMALL, f"hydra/launcher={launcher}")
    assert got.returncode == 1, got.stdout + got.stderr
    refused = "grid.bits must be a whole number from 1 to 8, got 9"
    assert got.stdout.endswith(f"1 measured, 1 refused\n  refused  nano-s RTN W9: {refused}\n")
    assert not list((tmp_path / "cache" / "hydra").glob("outcomes-*"))
    again = qbench("run", "-m", "method=rtn", "grid.bits=4", *SMALL, f"hydra/launcher={launcher}")
    assert (again.returncode, again.stdout) == (0, "1 present\n")


def test_cells_left_to_others_have_an_exit_code(qbench, tmp_path):
    GlobalHydra.instance().clear()
    folders = [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]
    with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
        claimed = Run(compose("config", ["method=rtn", *SMALL, *folders]))
    with Store(tmp_path / "results").claim(*claimed.ids.values()):
        alone = qbench("run", "method=rtn", *SMALL)
        assert alone.returncode == 3
        assert re.search(r"elsewhere +another process measures 1 of 1", alone.stdout)
        sweep = qbench("run", "-m", "method=rtn", "grid.bits=4,3", *SMALL)
        assert sweep.returncode == 3
        assert "1 measured, 1 elsewhere\n  elsewhere: another process is measuring" in sweep.stdout
    assert qbench("run", "method=rtn", *SMALL).returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_sweep_in_one_line(qbench, tmp_path, number, code):
    sweep = ["run", "-m", "method=rtn", "grid.bits=2,3,4,5,6,7,8", *SMALL]
    process = qbench(*sweep, start=forked.Command)
    while process.is_alive() and len(list((tmp_path / "results" / "measurements").glob("*.json"))) < 2:
        time.sleep(0.05)
    process.send(number)
    done = process.finished()
    said = done.stderr.splitlines()
    assert done.returncode == code
    assert len(said) == 1, said
    assert re.fullmatch(
        rf"stopped by {number.name} after [1-6] finished cells: .*same command continues from there", said[0]
    )


@pytest.mark.parametrize("module", ["hydra", "numpy", "torch._C", "transformers", "qbench.run"])
def test_a_signal_before_anything_is_measured(qbench, module):
    """The signal falls into the import of ``module``, where C code turns an exception into another error."""
    raised = f"""
import os, runpy, signal, sys

def on_import(event, args):
    if event == "import" and args[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(on_import)
runpy.run_module("qbench.cli", run_name="__main__")
"""
    process = qbench("run", *SMALL, python=["-c", raised])
    assert (process.returncode, len(process.stderr.splitlines())) == (130, 1), process.stderr


def test_what_is_printed_and_left_after_one_line(qbench):
    assert re.fullmatch(r"qbench \d+\.\d+.*\n", qbench("--version").stdout)
    for command in (["run", "--help"], ["run", "--cfg", "job"], ["run", "--hydra-help"], ["--help"]):
        process = qbench(*command, start=subprocess.Popen)
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == "", command
        process.wait()
    assert "machine:" in qbench("run", "--cfg", "job").stdout
    assert qbench("run", "--cfg", "job", "method=quip").returncode != 0
    assert qbench("run", "method=quip").returncode == qbench("run", "mehtod=gptq").returncode == 2


def test_tab_completion(qbench, tmp_path):
    for words in (["-sc"], ["run", "-sc"]):
        script = qbench(*words, "install=bash").stdout
        assert script.endswith("complete -o nospace -o default -F hydra_bash_completion qbench\n")
    env = os.environ | {"COMP_LINE": "qbench run method=g", "COMP_POINT": "19"}
    assert qbench("-sc", "query=bash", env=env).stdout.split() == ["method=gptq"]


def test_wandb_without_a_login_is_refused_before_work(qbench, tmp_path):
    pytest.importorskip("wandb")
    env = {k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "WANDB_MODE")}
    env |= {"HOME": str(tmp_path), "QBENCH_RESULTS": str(tmp_path / "results"), "WANDB_SILENT": "true"}
    got = qbench("run", "method=rtn", "wandb.mode=online", *SMALL, env=env)
    assert got.returncode == 1
    assert "refused   wandb.mode=online: No API key configured" in got.stdout
    assert "Or set wandb.mode=offline" in got.stdout
    assert not (tmp_path / "results" / "measurements").exists()


def metrics(count):
    found = {f"task{i}/acc": Metric(0.5, "fraction", 4, 0.25, [0.0, 1.0, 0.0, 1.0]) for i in range(count)}
    return found | {"task0_part/acc": Metric(0.5, "fraction", 2, 0.5)}


def test_one_line_names_what_it_measured():
    words = line(Outcome("nano-s rtn W4A16", "measured", "", 2.0, metrics(8)), 3)
    assert words.startswith("#3   nano-s rtn W4A16             measured  task0/acc 0.5  task1/acc 0.5")
    assert words.endswith("task5/acc 0.5  and 2 more  (2.0 s)")
    assert "refused   no" in line(Outcome("x", "refused", "no"), 1)


def test_a_single_run_ends_with_a_table():
    rows = table(metrics(2)).splitlines()[1:]
    assert rows == [
        "|data |metric|value| |stderr|n|",
        "|-----|------|-----|-|------|-|",
        "|task0|acc   |  0.5|±|  0.25|4|",
        "|task1|acc   |  0.5|±|  0.25|4|",
    ]
    assert table({}) == ""


def test_exit_codes():
    ended = {s: Outcome("x", s) for s in ("measured", "present", "elsewhere", "left out", "failed", "refused")}
    assert exit_code([ended["measured"], ended["present"], ended["left out"]]) == 0
    assert exit_code([ended["measured"], ended["elsewhere"]]) == 3
    assert exit_code([ended["elsewhere"], ended["failed"]]) == exit_code([ended["refused"]]) == 1
    assert summary([ended["measured"], ended["refused"]]).startswith("1 measured, 1 refused\n  refused  x: ")
    alike = [Outcome(cell, "refused", "no such file") for cell in ("RTN W4", "RTN W3")]
    assert summary(alike) == "2 refused\n  refused  RTN W4, RTN W3: no such file"


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Progress, "shown", 100.0)
    bar = progress.Progress(range(28), desc="nano-s gptq", unit="blocks", mininterval=0)
    for _ in bar:
        now[0] += 4
    said = capsys.readouterr().err.splitlines()
    assert [s.rpartition(",")[0] for s in said] == [f"nano-s gptq: {n} of 28 blocks" for n in (8, 16, 24)]
