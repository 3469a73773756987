"""The plan of a sweep: its cells as Hydra composes them, what of them is measured, what the rest costs."""

import itertools
import json
import re
import subprocess
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from experiments import study
from qbench import costs, plan
from qbench.data.corpus import TOKENS, Corpus
from qbench.files import packaged
from qbench.measure.lm_eval.prefix_tree import Tree
from qbench.measure.lm_eval.requests import build_requests
from qbench.measure.lm_eval.tasks import SIZES
from qbench.models.checkpoint import NANO
from qbench.plan import estimate, footprint, machines
from qbench.plan.footprint import GIB
from qbench.plan.machines import NAMED
from qbench.plan.status import Records
from qbench.plan.sweep import cells, configs
from qbench.printed import published
from qbench.record import digest
from qbench.run import Run, run
from qbench.shape import QWEN3, RELEASED
from qbench.store import Store

H200 = NAMED["h200"]
SMALL = ["calib.n=8", "eval.window=128", "eval.limit=4", "machine.device=cpu", "machine.threads=1"]
METHODS = sorted(p.stem for p in (packaged("conf") / "method").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_hydra_left_over():
    GlobalHydra.instance().clear()


@pytest.fixture
def folders(tmp_path):
    return [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]


def composed(overrides):
    with hydra.initialize_config_dir(str(packaged("conf")), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def one(*overrides):
    (config,), refused = configs(list(overrides))
    assert not refused
    return config


def name_of(config):
    method = config.method
    return config.model.name, method.name, method.grid and method.grid.bits, method.acts.bits if method.acts else 16


@pytest.mark.parametrize(
    ("fixed", "swept"),
    [
        (["eval=study"], {"model": "nano-s nano-l", "method": "gptq awq", "grid.bits": "3 2"}),
        (["protocol=released", "eval=paper"], {"model": "qwen3-8b qwen3-14b-base", "grid": "g128 per_row"}),
        (["model.dtype=float32", "calib=c4"], {"model": "qwen3-8b nano-m", "calib.n": "4 8"}),
        (["experiment=matrix", "method=smoothquant_a4", "grid=g128"], {"model": "qwen3-4b nano-s", "grid.bits": "8 4"}),
        (["method=gptq", "calib={n: 4}", "~wandb.project"], {"model": "nano-s nano-m", "grid.bits": "3 2"}),
        (["model=local", "model.path=somewhere", "+method.version_note=x"], {"calib.seed": "0 1"}),
    ],
)
def test_cells_are_what_hydra_composes(fixed, swept):
    combinations = itertools.product(*([f"{key}={v}" for v in values.split()] for key, values in swept.items()))
    expected = [OmegaConf.to_container(composed([*fixed, *c]), resolve=True) for c in combinations]
    assert cells([*fixed, *(f"{key}={values.replace(' ', ',')}" for key, values in swept.items())]) == expected


def test_tables_are_the_papers():
    """All 250 printed rows, each once."""
    rows = published.load()
    for table in published.TABLES:
        found, _ = configs([f"experiment=table{table}"])
        names = {name_of(c) for c in found}
        assert len(names) == len(found) == sum(row.table == table for row in rows)
        assert all(published.is_printed(table, *name) for name in names)


def test_same_runs_appear_once():
    assert len(configs(["experiment=nano_matrix"])[0]) == 3 * (4 * 8 + 2)
    assert len(configs(["experiment=smollm2"])[0]) == 4 * 8 + 2
    assert len(configs(["experiment=smollm2_cut"])[0]) == 3 * 3 + 1
    found = [c.method.name for c in configs(["experiment=matrix", "model=qwen3-8b"])[0]]
    assert (found.count("none"), found.count("billm"), found.count("smoothquant")) == (1, 1, 16)
    assert one("experiment=table1", "model=qwen3-8b-base", "method=gptq", "grid.bits=4").is_wanted
    assert configs(["experiment=table1", "model=qwen3-8b"]) == ([], [])


def test_the_workers_of_a_study_share_the_bits_of_its_experiment():
    assert study.bits_of(["experiment=smollm2_cut"], 2) == ["grid.bits=4,2", "grid.bits=3"]
    assert study.bits_of(["experiment=smollm2_cut", "grid.bits=8"], 2) == ["grid.bits=8"]


@pytest.mark.parametrize(
    "bad", ["modle=nano-s", "method=gtpq", "method.grid.bits=3", "grid.bit=3", "experiment=table9"]
)
def test_bad_input_is_refused_by_name(bad, capsys):
    assert plan.main([bad]) == (1 if "grid.bit" in bad else 2)
    said = "".join(capsys.readouterr())
    assert said.startswith(("qbench plan: ", "  refused  nano-s RTN W4: "))
    assert any(word in said for word in bad.split("="))


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize("method", METHODS)
def test_what_was_run_is_done(method, protocol, folders, tmp_path):
    asked = [f"method={method}", "grid.bits=3", f"protocol={protocol}", "model=nano-s", *SMALL, *folders]
    if protocol == "released" and method == "awq":
        asked += ["calib.length=64"]
    if method == "billm_b96":  # 96 does not divide the 128 columns of nano-s
        asked += ["method.block_size=64"]
    assert set(Records(tmp_path / "results").status(one(*asked)).values()) == {"missing"}
    outcome = run(composed(asked))
    assert outcome.status == "measured", outcome.message
    records = Records(tmp_path / "results")
    assert records.status(one(*asked)) == {"": "done"}


@pytest.mark.parametrize("method", ["none", "gptq", "billm"])
def test_another_setting_is_another_run(method, folders, tmp_path):
    run(composed([f"method={method}", "model=nano-s", *SMALL, *folders]))
    records = Records(tmp_path / "results")
    ignored = {"none": ["calib.seed=1", "grid.bits=3"], "gptq": [], "billm": ["grid.bits=3"]}[method]
    for other in ["eval.limit=3", "eval.window=64", "calib.seed=1", "grid.bits=3", "model=nano-m", "protocol=released"]:
        kept = [a for a in [*SMALL, "model=nano-s"] if a.partition("=")[0] != other.partition("=")[0]]
        found = records.status(one(f"method={method}", *kept, *folders, other))
        assert found == {"": "done" if other in ignored else "missing"}, other


def edited(tmp_path, change):
    (path,) = (tmp_path / "results/measurements").glob("*.json")
    record = json.loads(path.read_text())
    change(record["science"])
    record["id"] = digest(record["science"])
    path.write_text(json.dumps(record, indent=1) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda science: science["method"].update(version=0),
        lambda science: science["method"].pop("act_order"),
        lambda science: science["eval"].pop("logits"),
    ],
)
def test_an_older_record_is_another_measurement(change, folders, tmp_path):
    """Its identity is another, so that a run measures again, and a plan says so."""
    asked = ["method=gptq", "model=nano-s", *SMALL, *folders]
    run(composed(asked))
    records = Records(tmp_path / "results")
    assert records.status(one(*asked)) == {"": "done"}
    assert records.status(one(*asked, "method.act_order=true")) == {"": "missing"}
    assert records.status(one(*asked, "protocol.logits=model")) == {"": "missing"}
    edited(tmp_path, change)
    assert Records(tmp_path / "results").status(one(*asked)) == {"": "missing"}


def test_failures_and_damaged_files(folders, tmp_path, capsys):
    asked = ["method=rtn", "model=nano-s", *SMALL, *folders]
    run(composed(asked))
    (path,) = (tmp_path / "results/measurements").glob("*.json")
    science = json.loads(path.read_text())["science"]
    path.write_text(path.read_text()[:200])
    with pytest.warns(UserWarning, match="is not a whole record"):
        assert Records(tmp_path / "results").status(one(*asked)) == {"": "missing"}
    path.unlink()
    Store(tmp_path / "results").put_failure("0" * 16, science, ValueError("x"), "trace")
    assert Records(tmp_path / "results").status(one(*asked)) == {"": "failed"}
    assert plan.main([*asked, "--on", "H200"]) == 0
    assert "1 failed before" in capsys.readouterr().out


def test_sizes_of_the_embedded_data():
    tokenizer = AutoTokenizer.from_pretrained(NANO / "nano-s")
    assert TOKENS["nano"] == len(Corpus("nano").tokens(tokenizer))
    loaded = build_requests(("nano_world",), 0, None, None)
    requests = [r for task in loaded.tasks.values() for r in task.instances]
    tree = Tree([tokenizer("".join(r.args), add_special_tokens=False)["input_ids"][:-1] for r in requests])
    questions, tokens, _, scored = SIZES["nano_world"]
    assert questions == sum(len(task.eval_docs) for task in loaded.tasks.values())
    assert (tokens, scored) == (sum(len(tree.pack(step).ids_Q) for step in tree.plan(256)), len(requests))


def test_what_is_estimated_follows_what_is_counted():
    shape, cell = QWEN3["8b"], one("model=qwen3-8b", "method=gptq", "eval=paper")
    found = estimate.cell_cost(cell, shape, H200, ["wikitext2", "c4", "zeroshot", "mmlu"])
    text = cell.eval["wikitext2"].work(shape)
    assert text.model == costs.forward_flops(shape, 146, 2048)
    assert text.float32 == costs.head_flops(shape, 146 * 2047)
    assert found.seconds["calibrate"] == costs.forward_flops(shape, 128, 2048) / H200.flops16
    assert found.gpu == footprint.peak_evaluate(shape, 2048) > shape.weight_bytes()
    assert found.disk == footprint.stored_bytes(shape, cell.method) + footprint.hidden_bytes(shape, 128 * 2048)
    half = one("model=qwen3-8b", "method=gptq", "eval=paper", "calib.n=64")
    halved = estimate.cell_cost(half, shape, H200, ["mmlu"])
    assert halved.seconds["statistics"] == found.seconds["statistics"] / 2
    assert halved.seconds["solve"] == found.seconds["solve"]
    assert halved.seconds["evaluate"] < found.seconds["evaluate"]


@pytest.mark.parametrize("name", sorted(p.stem for p in (packaged("conf") / "model").glob("qwen*.yaml")))
def test_the_shape_of_every_choice_is_known(name):
    unquantized = re.sub("-(awq|fp8|gptq-int8)$", "", name)
    assert estimate.shape_of(one(f"model={name}", "method=none").model) is RELEASED[unquantized]


def test_a_folder_of_another_family_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert plan.main(["model=local", f"model.path={tmp_path}", "method=rtn", "--on", "H200"]) == 1
    assert "is a gpt2; supported: qwen3, qwen2, llama, mistral" in capsys.readouterr().out


def test_statistics_are_paid_once():
    shape, cell = QWEN3["4b"], one("model=qwen3-4b", "method=rtn", "eval=mmlu")
    first, second = (estimate.cell_cost(cell, shape, H200, [""], known) for known in (False, True))
    assert {"calibrate", "statistics"} <= set(first.seconds) - set(second.seconds)
    assert (first.left, second.left) == (footprint.statistics_bytes(shape), 0)
    big = one("model=qwen3-32b", "method=rtn", "eval=mmlu")
    assert not estimate.shares_statistics(big, QWEN3["32b"])


def test_unknown_data_is_said_and_not_counted(tmp_path, capsys):
    assert plan.main(["model=qwen3-8b", "eval=mmlu", "eval.tasks=[mmlu,swag]", "--on", "H200"]) == 0
    assert "Not in it: task swag" in capsys.readouterr().out
    assert plan.main(["model=qwen3-8b", "model.name=mine", "model.repo=me/mine", "--on", "H200"]) == 0
    assert "Not in it: what a model of unknown shape needs" in capsys.readouterr().out
    assert plan.main(["model=nano-s", "eval=latency", "--on", "H200"]) == 0
    assert "Not in it: the measurement latency" in capsys.readouterr().out


def test_this_machine_is_measured():
    found = machines.machine("this", "cpu")
    assert 1e8 < found.flops32 < 1e15
    assert not found.is_gpu
    with pytest.raises(ValueError, match=r"--on cray: no such machine; choose one of H200"):
        machines.machine("cray")
    with pytest.raises(ValueError, match=r"machine.device=xpu"):
        machines.machine("this", "xpu")


def test_a_run_that_cannot_fit_is_refused():
    shape = QWEN3["32b"]
    gptq, none = (one(f"method={method}").method for method in ("gptq", "none"))
    need = footprint.needs(shape, gptq, "cuda")
    assert need.gpu >= 2 * shape.parameters
    assert (need.ram, need.disk) == (None, footprint.stored_bytes(shape, gptq))
    need = footprint.Bytes(need.gpu, 2 * GIB, 30 * GIB)
    assert not footprint.lacking(need, footprint.Bytes(80 * GIB, 64 * GIB, 100 * GIB))
    assert not footprint.lacking(need, footprint.Bytes())  # nothing is known, so nothing is lacking
    for has, words in [
        (footprint.Bytes(48 * GIB, 64 * GIB, 100 * GIB), "61.0 GiB of GPU memory, but there are 48.0; use"),
        (footprint.Bytes(80 * GIB, 1 * GIB, 100 * GIB), "2.0 GiB of CPU memory"),
        (footprint.Bytes(80 * GIB, 64 * GIB, 29 * GIB), "30.0 GiB of disk space in machine.cache_dir"),
    ]:
        assert footprint.lacking(need, has)[0].startswith(words)
    assert footprint.needs(shape, gptq, "cpu").gpu is None
    assert footprint.needs(shape, none, "cpu") == footprint.Bytes(ram=shape.weight_bytes(), disk=0)


def test_what_there_is(tmp_path):
    has = footprint.available("cpu", tmp_path / "not" / "yet")
    assert has.gpu is None
    assert has.ram > 2**28
    assert has.disk > 0


def test_strict_warns_of_what_cannot_fit(capsys):
    asked = ["model=qwen3-0.6b,qwen3-32b", "method=gptq", "eval=mmlu", "--on", "RTX-4090"]
    assert plan.main(asked) == 0
    assert plan.main([*asked, "--strict"]) == 1
    (line,) = {x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")}
    assert "qwen3-32b does not fit" in line
    assert plan.main([*asked[1:], "model=qwen3-0.6b", "--strict"]) == 0


def test_a_plan_is_light_and_complete():
    code = """if True:
        import sys
        from qbench import plan
        assert plan.main(["experiment=matrix", "--on", "H200"]) == 0
        assert "lm_eval" not in sys.modules and "datasets" not in sys.modules
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert len([line for line in lines if line.startswith("qwen3-")]) == 11
    (total,) = (line.split() for line in lines if line.startswith("all "))
    assert int(total[1]) == 11 * 66 == sum(map(int, total[2:5]))
    assert "An estimate for H200" in out.stdout


def test_sections_without_a_calibration():
    wanted = one("method=none").settings()
    assert wanted["calib"] is None
    assert wanted["grid"] is None


def test_the_ids_of_committed_records(tmp_path):
    """What identifies a record comes out of today's code: the whole nano study of one model."""
    store = Store(packaged("conf").parent / "results")
    committed = {m.id for m in store.measurements() if m.science["model"]["name"] == "nano-s"}
    asked = ["experiment=nano_matrix", "model=nano-s", "machine=cpu", f"machine.results_dir={tmp_path}"]
    found = {id for cell in cells(asked) for id in Run(cell).ids.values()}
    assert len(found) == 2 * 34
    assert found <= committed
