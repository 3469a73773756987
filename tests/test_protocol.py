"""Which protocol a measurement follows, judged from its settings alone."""

import json
from dataclasses import asdict

import pytest
from fakes.paper_records import records, science, with_science
from hydra import compose, initialize_config_dir

from qbench.config import Config
from qbench.files import packaged
from qbench.printed.published import load
from qbench.protocol import NOT_STORED, OWN, PROTOCOLS, deviations, judge, name_of

ROWS = load()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", ["none", "rtn", "gptq", "awq", "smoothquant", "billm"])
def test_a_measurement_under_a_protocol_follows_it_and_not_the_other(protocol, method):
    (other,) = set(PROTOCOLS) - {protocol}
    for m in records(next(r for r in ROWS if r.method == method), protocol=protocol):
        assert m.protocol["name"] == protocol
        assert m.protocol["deviations"][protocol] == []
        zero_shot = "num_fewshot" in m.science["eval"]
        assert m.protocol["deviations"][other] or zero_shot


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", ["none", "rtn", "gptq", "awq", "smoothquant", "smoothquant_a4", "billm"])
def test_what_hydra_composes_for_a_protocol_follows_it(protocol, method):
    chosen = ["model=qwen3-8b", "calib=c4", "eval=paper", f"method={method}", f"protocol={protocol}", "machine=cpu"]
    with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
        config = Config.of(compose("config", chosen))
    quantization = {"model": {"name": "qwen3-8b"}, "method": config.method.science()}
    quantization |= {"grid": config.method.grid and asdict(config.method.grid), "calib": config.calib.settings()}
    assert len(config.eval) == 4
    for measure in config.eval.values():
        assert deviations(quantization | {"eval": measure.settings()}, protocol) == []


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("c4_ppl", {"method": {"act_order": True}}, "method.act_order=True"),
        ("c4_ppl", {"method": {"damp": 0.1}}, "method.damp=0.1"),
        ("c4_ppl", {"calib": {"source": "wikitext2"}}, "calib.source=wikitext2"),
        ("c4_ppl", {"calib": {"seed": 1}}, "calib.seed=1"),
        ("c4_ppl", {"calib": {"n": 64}}, "calib.n=64"),
        ("c4_ppl", {"grid": {"symmetric": True}}, "grid.symmetric=True"),
        ("c4_ppl", {"eval": {"limit": 8}}, "eval.limit=8"),
        ("c4_ppl", {"eval": {"window": 512}}, "eval.window=512"),
        ("c4_ppl", {"eval": {"logits": "model"}}, "eval.logits=model"),
        ("c4_ppl", {"eval": {"draw": "released"}}, "eval.draw=released"),
        ("tasks", {"eval": {"limit": 100}}, "eval.limit=100"),
        ("tasks", {"eval": {"max_prompt": 2048}}, "eval.max_prompt=2048"),
        ("mmlu", {"eval": {"num_fewshot": 0}}, "eval.num_fewshot=0"),
        ("mmlu", {"eval": {"tasks": {"mmlu_hendrycks": "1"}}}, "eval.tasks=mmlu_hendrycks"),
    ],
)
def test_one_other_field_is_another_setting(name, change, says):
    row = next(r for r in ROWS if (r.table, r.model, r.method, r.w_bits) == (3, "qwen3-8b-base", "gptq", 4))
    (m,) = records(row, only=(name,))
    assert with_science(m, **change).protocol["deviations"]["paper"] == [says]
    assert with_science(m, **change).protocol["name"] == OWN


def test_of_the_embedded_models_only_the_method_counts():
    gptq = {"name": "gptq", "act_order": False, "static_groups": False, "damp": 0.01}
    nano = {"model": {"name": "nano-s"}, "method": gptq, "grid": {"bits": 4}}
    nano |= {"calib": {"source": "nano", "n": 64, "length": 256}, "eval": {"name": "perplexity", "limit": 64}}
    assert judge(nano)["name"] == "paper"
    assert judge(nano | {"method": gptq | {"act_order": True}})["name"] == "released"
    assert judge(nano | {"method": gptq | {"damp": 1}})["name"] == OWN


def test_a_judgement_is_plain_json_and_one_that_is_missing_has_a_name():
    found = judge(science(ROWS[1]) | {"eval": {}})
    assert json.loads(json.dumps(found)) == found
    assert name_of(found) == found["name"]
    assert name_of({}) == NOT_STORED
