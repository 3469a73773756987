"""Synthetic records of the real models' cells: what the tests of the paper's tables read."""

from dataclasses import replace

import yaml

from qbench.files import packaged
from qbench.printed.published import PERPLEXITIES, TASKS, Printed
from qbench.protocol import judge
from qbench.record import Measurement, Metric, digest

METHODS = {
    "rtn": {"whole_rows": False},
    "gptq": {"act_order": False, "static_groups": False, "damp": 0.01, "block_size": 128},
    "awq": {"loss": "gram", "n_scale": 20, "n_clip": 10, "unclipped": ["q_proj", "k_proj"], "arithmetic": "float32"},
    "smoothquant": {"alpha": 0.5},
    "billm": {
        "block_size": 128,
        "max_salient": 49,
        "damp": 0.01,
        "salience": "inverse",
        "split_on": "weights",
        "count": "all",
    },
}
CALIB = {"source": "c4", "n": 128, "length": 2048, "seed": 0, "draw": "windows", "data": "c" * 16}

MMLU = {"paper": "mmlu", "released": "mmlu_hendrycks"}


def released(part: str, method: str) -> dict:
    """The fields of "method" or "calib" in which the released code differs, as the configuration has them."""
    text = (packaged("conf") / "protocol" / "method" / f"released_{method}.yaml").read_text()
    return yaml.safe_load(text).get(part, {})


def science(row: Printed, protocol: str = "paper") -> dict:
    """What a record of ``row`` under ``protocol`` says of its model, method, grid and calibration."""
    model = {"name": row.model, "repo": f"Qwen/{row.model}", "revision": "a" * 40, "dtype": "bfloat16"}
    if row.method == "none":
        return {"model": model, "method": {"name": "none", "version": 1}, "grid": None, "calib": None}
    method = {"name": row.method, "version": 1, **METHODS[row.method]}
    calib = dict(CALIB)
    if protocol == "released":
        method |= released("method", row.method)
        calib |= released("calib", row.method)
    if row.method == "smoothquant":
        method["acts"] = {"bits": row.a_bits}
    grid = {"bits": int(row.w_bits), "group_size": row.group_size or -1, "symmetric": row.method == "smoothquant"}
    return {"model": model, "method": method, "grid": None if row.method == "billm" else grid, "calib": calib}


def evaluations(protocol: str = "paper") -> dict[str, dict]:
    """The evaluations of a protocol, by the metrics they give."""
    theirs = protocol == "released"
    ppl = {"name": "perplexity", "version": 1, "window": 2048, "limit": None, "data": "d" * 16}
    ppl["logits"] = "model" if theirs else "float32"
    tasks = {"name": "tasks", "version": 1, "lm_eval": "0.4", "limit": None, "max_length": None}
    tasks |= {"max_prompt": 2048 if theirs else None, "data": "e" * 16}
    mmlu = MMLU[protocol]
    return {
        "wikitext2_ppl": ppl | {"source": "wikitext2"},
        "c4_ppl": ppl | {"source": "c4", "draw": "released" if theirs else "head"},
        "tasks": tasks | {"tasks": {t: "1.0" for t in TASKS}, "num_fewshot": 0},
        "mmlu": tasks | {"tasks": {mmlu: "2"}, "num_fewshot": 5},
    }


def record(sc: dict, ev: dict, metrics: dict[str, Metric]) -> Measurement:
    sc = sc | {"eval": ev}
    return Measurement(digest(sc), sc, metrics, 4.0, 4.25, 10**9, protocol=judge(sc))


def records(row: Printed, shift: float = 0.0, protocol: str = "paper", only: tuple[str, ...] = ()) -> list[Measurement]:
    """The four records of a printed row: printed numbers, perplexities × (1 + shift), accuracies - 100 × shift."""
    out = []
    for name, ev in evaluations(protocol).items():
        if name in PERPLEXITIES:
            value = row.values[name] * (1 + shift)
            metrics = {f"{name[:-4]}/ppl": Metric(value, "perplexity", 100, 0.005 * value, [0.0])}
        else:
            keys = {f"{t}/acc": t for t in TASKS} if name == "tasks" else {f"{MMLU[protocol]}/acc": "mmlu"}
            metrics = {k: Metric(row.values[m] / 100 - shift, "fraction", 1000, 0.004, [0.0]) for k, m in keys.items()}
        if not only or name in only:
            out.append(record(science(row, protocol), ev, metrics))
    return out


def with_science(m: Measurement, **parts: dict) -> Measurement:
    """The record with changed fields in parts of its science."""
    sc = {k: (v | parts[k] if isinstance(v, dict) and k in parts else v) for k, v in m.science.items()}
    return replace(m, science=sc, id=digest(sc), protocol=judge(sc))
