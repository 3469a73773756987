"""Synthetic records with the numbers of a real study: what the report's tests read."""

import math
from dataclasses import replace

import numpy as np

from qbench.record import LayerReport, Measurement, Metric, digest
from qbench.store import Store

SIZES = {"nano-s": (0.8e6, 2.1, 0.62, 2), "nano-m": (3e6, 1.8, 0.86, 4), "nano-l": (12e6, 1.70, 0.97, 6)}
LEAVES = ("nano_town", "nano_trade")
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
HARM = {"rtn": 1.0, "gptq": 0.35, "awq": 0.5, "smoothquant": 1.3, "billm": 1.0}


def science(model="nano-s", method="none", bits=None, /, **changes):
    fields = {"name": method} if method == "none" else {"name": method, "version": 1}
    if method == "gptq":
        fields |= {"act_order": False, "damp": 0.01, "block": 128}
    if method == "smoothquant":
        fields |= {"alpha": 0.5, "acts": {"bits": 8}}
    grid = bits and {"bits": bits, "group_size": -1 if method == "smoothquant" else 128, "symmetric": False}
    calib = None
    if method != "none":
        calib = {"source": "nano", "n": 128, "length": 256, "seed": 0, "data": "c0ffee0123456789"}
    where = {"name": model, "repo": f"embedded/{model}", "revision": "0" * 40, "dtype": "bfloat16"}
    s = {"model": where, "method": fields, "grid": grid, "calib": calib}
    return s | {k: {**(s[k] or {}), **v} for k, v in changes.items()}


def evals():
    text = {"window": 256, "data": "ab" * 8}
    tasks = {"name": "tasks", "tasks": {"nano_world": "1"}, "shots": 0, "limit": None, "data": "cd" * 8}
    return [{"name": "ppl"} | text, {"name": "kl"} | text, tasks]


def metric(unit, samples, value=None):
    x = np.asarray(samples, float)
    if value is None:
        value = math.exp(x.mean()) if unit == "perplexity" else float(x.mean())
    stderr = float(x.std(ddof=1) / math.sqrt(len(x))) * (value if unit == "perplexity" else 1.0)
    is_share = unit == "fraction"
    return Metric(value, unit, len(x), stderr, [float(v) for v in x], is_share, 0.25 if is_share else None)


def measure(s, ev, harm=0.0, notes=(), windows=48, questions=120):
    """A record whose numbers follow from ``harm``: 0 unquantized, about 1 three bits, about 4 chance."""
    size, ppl, acc, blocks = SIZES.get(s["model"]["name"], SIZES["nano-s"])
    items, own = np.random.default_rng(0), np.random.default_rng(int(digest(s)[:8], 16))
    nll = math.log(ppl) + items.normal(0, 0.08, windows)
    worse = np.exp(own.normal(0, 0.3, windows)) * min(0.03 * harm**3 + 0.015 * harm, 5.3)
    level = 0.25 + (acc - 0.25) * math.exp(-(harm**2) / 4)
    right = {leaf: (items.random(questions) < level).astype(float) for leaf in LEAVES}
    if ev["name"] == "ppl":
        metrics = {"nano/ppl": metric("perplexity", nll + worse)}
    elif ev["name"] == "kl":
        agree = own.normal(math.exp(-harm / 3), 0.01, windows).clip(0, 1) if harm else np.ones(windows)
        metrics = {"nano/kl": metric("nats/token", worse * 0.9), "nano/top1": metric("fraction", agree)}
    else:
        metrics = {"nano_world/acc": metric("fraction", np.concatenate(list(right.values())))}
        metrics |= {f"{leaf}/acc": replace(metric("fraction", x), samples=None) for leaf, x in right.items()}
    bits = (s["grid"] or {}).get("bits", 1.06 if s["method"]["name"] == "billm" else 16)
    stored = {16: 16}.get(bits, 3.1 if s["method"]["name"] == "billm" else bits + 0.25)
    layers = []
    for block, name in [(b, n) for b in range(blocks) for n in LINEARS] if bits != 16 else []:
        error = 0.4 * harm * float(own.lognormal(0, 0.4)) * (1.5 if name.endswith("down_proj") else 1) + 1e-3
        noted = tuple(notes) if name.endswith("v_proj") else ()
        layers.append(LayerReport(block, name, error, bits, stored, 0.1, noted))
    whole = {**s, "eval": ev}
    return Measurement(digest(whole), whole, metrics, bits, stored, int(size * (0.1 + 0.9 * stored / 16)), layers)


def harm(s):
    name, grid = s["method"]["name"], s["grid"]
    if name == "none":
        return 0.0
    weight = {"nano-s": 1.3, "nano-m": 1.0, "nano-l": 0.8}.get(s["model"]["name"], 1.0)
    if name == "billm":
        return 2.2 * weight
    return HARM[name] * weight * 2.0 ** (3 - grid["bits"]) + (0.25 if name == "smoothquant" else 0)


def study(root, models=tuple(SIZES), bits=range(8, 0, -1)):
    """The whole nano matrix, with a failed cell, a diverged cell and notes."""
    store = Store(root)
    for model in models:
        cells = [science(model), science(model, "billm")]
        cells += [science(model, m, b) for m in ("rtn", "gptq", "awq", "smoothquant") for b in bits]
        for s in cells:
            name, b = s["method"]["name"], (s["grid"] or {}).get("bits")
            notes = ["v_proj -> o_proj not scaled: grouped-query attention"] if name == "awq" else []
            notes += [f"damping raised to {0.02 * (4 - b):.2f}"] if name == "gptq" and b < 3 else []
            for ev in evals():
                m = measure(s, ev, harm(s), notes)
                if (model, name, b, ev["name"]) == ("nano-s", "awq", 1, "tasks"):
                    error = FloatingPointError("no finite scale in model.layers.1.mlp")
                    store.put_failure(m.id, m.science, error, "Traceback ...")
                    continue
                if (model, name, b, ev["name"]) == ("nano-s", "smoothquant", 1, "ppl"):
                    m.metrics["nano/ppl"] = Metric(
                        math.nan, "perplexity", 48, math.nan, [math.nan] * 48, higher_is_better=False
                    )
                store.put(m)
    return root
