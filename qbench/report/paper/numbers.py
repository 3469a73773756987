"""The numbers that the text of paper/ quotes, each under a key that says which record it comes from.

No number of a result is typed into the text. ``\\result{nano/s/gptq/4/ppl}`` asks for one by its key, and a key that
no record gives stops the build. The families of keys:

    nano/<s|m|l>/<method>/<bits>/<ppl|kl|top1|acc|nominal|stored|mb>   one model; accuracies in per cent
    nano/<method>/<bits>/<ppl|acc|...>                              the same of all sizes, joined: "3.13, 2.93 and 2.34"
    nano/worst/<bits>             the largest loss of perplexity of a method that leaves activations alone, per cent
    nano/least/1                  the least perplexity of a uniform grid at one bit
    ablation/<method>/<bits>/<field>=<value>/<ppl|acc>              as measured with one field changed
    printed/<table>/<model>/<method>/<W>/<A>/<metric>               a printed cell of the study
    audit/...                                                       counts of the audit
    <folder>/<file>/<path>                                          a leaf of a JSON record, see ``leaves``

Beside results/, the embedded models' own files are read for their sizes.
"""

import json
import math
from pathlib import Path

from qbench.printed.audit import INFERRED, RULES, doubted, findings
from qbench.printed.published import METRICS, load
from qbench.protocol import name_of
from qbench.record import Measurement
from qbench.render.escape import tex
from qbench.report.paper.json_values import of_folders
from qbench.report.quality.columns import column
from qbench.report.quality.frame import of_kernels
from qbench.report.quality.variants import UNQUANTIZED, method_of

SIZES = ("s", "m", "l")
METRIC_KEYS = {"nano/ppl": "ppl", "nano/kl": "kl", "nano/top1": "top1", "nano_world/acc": "acc"}
VARIED = {"gptq": "act_order", "awq": "loss", "smoothquant": "alpha"}


def numbers(results: Path, measurements: list[Measurement], ablations: list[Measurement], nano: Path) -> dict[str, str]:
    """Key to text, as it is to be printed.

    ``measurements`` are the records of ``results``, ``ablations`` those of its nano_ablations that differ singly,
    ``nano`` is the folder of the embedded models. ValueError where there is no record of an embedded model.
    """
    study = [m for m in measurements if in_study(m)]
    if not study:
        raise ValueError(f"{results}: no record of an embedded model, which the text is about; run make results first")
    real = [m for m in measurements if not _size(m)]
    out = _cells(study, "nano", lambda m: str(_bits(m))) | _study(study) | _models(nano)
    out |= _cells(ablations, "ablation", _variant)
    out |= {"ablation/records": str(len(ablations)), "real/records": str(len(real))}
    out |= _agreement(measurements)
    if real:
        out["real/models"] = joined(sorted({m.science["model"]["name"] for m in real}))
    return out | _printed() | _audit() | of_folders(results)


def _agreement(measurements: list[Measurement]) -> dict[str, str]:
    """Packed models against dequantized ones: how many, their largest differences, and where the kernels ran."""
    found = [m for m in measurements if m.science["eval"]["name"] == "agreement"]
    if not found:
        return {}
    values = [{key.removeprefix("agreement/"): x.value for key, x in m.metrics.items()} for m in found]
    ratios = [v["error"] / v["rounding"] for v in values]
    return {
        "agreement/models": str(len(found)),
        "agreement/least": f"{min(ratios):.2f}",
        "agreement/most": f"{max(ratios):.2f}",
        "agreement/worst_layer": f"{100 * max(v['worst_layer'] for v in values):.2f}",
        "agreement/kernels": joined(sorted({m.science["eval"]["kernels"] for m in found})),
    }


def joined(texts: list[str]) -> str:
    """a, b and c; one of them where all are the same."""
    return texts[0] if len(set(texts)) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _size(m: Measurement) -> str | None:
    name = m.science["model"]["name"]
    return name.removeprefix("nano-") if name.removeprefix("nano-") in SIZES and name.startswith("nano-") else None


def in_study(m: Measurement) -> bool:
    """Whether the record is of the nano study: the protocol of the text, groups of 128, 8-bit activations."""
    if not _size(m) or of_kernels(m.science):
        return False
    method, grid = method_of(m.science), m.science.get("grid") or {}
    if method["name"] in ("rtn", "gptq", "awq") and grid["group_size"] != 128:
        return False
    return name_of(m.protocol) == "paper" and (method.get("acts") or {"bits": 8})["bits"] == 8


def _bits(m: Measurement) -> int:
    name = method_of(m.science)["name"]
    return {UNQUANTIZED: 16, "billm": 1}.get(name) or m.science["grid"]["bits"]


def differs_singly(m: Measurement) -> bool:
    """Whether the record has the settings of the nano study but for its method's field in VARIED."""
    s, field = m.science, VARIED.get(method_of(m.science)["name"])
    others = [d for d in m.protocol["deviations"]["paper"] if not d.startswith(f"method.{field}=")]
    draw = (s.get("calib") or {}).get("draw", "windows")
    return field is not None and not others and draw == "windows" and s["model"]["dtype"] == "float32"


def _variant(m: Measurement) -> str:
    method = method_of(m.science)
    field = VARIED.get(method["name"])
    return str(_bits(m)) + (f"/{field}={str(method.get(field)).lower()}" if field else "")


def _cells(records: list[Measurement], family: str, place) -> dict[str, str]:
    """One key a record and metric, and one for the sizes together."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for m in records:
        where = f"{method_of(m.science)['name']}/{place(m)}"
        values = {METRIC_KEYS[k]: column(k).short(x.value) for k, x in m.metrics.items() if k in METRIC_KEYS}
        if "kl" in values:
            values["kl"] = f"{m.metrics['nano/kl'].value:.2g}"
        values |= {
            "nominal": f"{m.nominal_bits:.2f}",
            "stored": f"{m.stored_bits:.2f}",
            "mb": f"{m.model_bytes / 1e6:.2f}",
        }
        for name, text in values.items():
            told = found.setdefault((where, name), {})
            if told.setdefault(_size(m), text) != text:
                key = f"{family}/{_size(m)}/{where}/{name}"
                raise ValueError(f"{key} is {told[_size(m)]} and {text} in two records; move one of them elsewhere")
    out = {f"{family}/{s}/{where}/{k}": tex(text) for (where, k), t in found.items() for s, text in t.items()}
    for (where, name), t in found.items():
        out[f"{family}/{where}/{name}"] = tex(joined([t[s] for s in SIZES if s in t]))
    return out


def _study(study: list[Measurement]) -> dict[str, str]:
    """Counts, machines, and how much perplexity is lost at each bit-width."""
    ppl = {
        (_size(m), method_of(m.science)["name"], _bits(m)): m.metrics["nano/ppl"]
        for m in study
        if "nano/ppl" in m.metrics
    }
    out = {"nano/records": str(len(study)), "nano/cells": str(len(ppl))}
    for b in range(1, 9):
        pairs = [(x, ppl.get((s, UNQUANTIZED, 16))) for (s, name, bits), x in ppl.items()
                 if bits == b and name in ("rtn", "gptq", "awq")]  # fmt: skip
        worst = max((100 * (x.value / full.value - 1) for x, full in pairs if full), default=math.nan)
        if math.isfinite(worst):
            out[f"nano/worst/{b}"] = f"{worst:.2g}" if worst < 100 else f"{worst:,.0f}"
    ones = [x.value for (_, name, bits), x in ppl.items() if bits == 1 and name != "billm"]
    if ones:
        out["nano/least/1"] = column("nano/ppl").short(min(ones))
    out["nano/windows"] = str(max(x.n for x in ppl.values()))
    out["nano/questions"] = str(max(m.metrics["nano_world/acc"].n for m in study if "nano_world/acc" in m.metrics))
    out["nano/devices"] = tex(joined(sorted({m.provenance["device"] for m in study})))
    for package in ("torch", "transformers", "lm_eval"):
        versions = {m.provenance["packages"][package].partition("+")[0] for m in study}
        out[f"nano/version/{package.replace('_', '-')}"] = tex(joined(sorted(versions)))
    return out


def _models(folder: Path) -> dict[str, str]:
    """Millions of parameters, and shape of each embedded model, from its own files."""
    out = {}
    for s in SIZES:
        home = folder / f"nano-{s}"
        with (home / "model.safetensors").open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        count = sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
        config = json.loads((home / "config.json").read_text())
        out[f"nano/{s}/parameters"] = f"{count / 1e6:.2g}"
        out |= {f"nano/{s}/{k}": str(config[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size")}
        out |= {f"nano/{s}/heads": f"{config['num_attention_heads']} / {config['num_key_value_heads']}"}
    return out


def _printed() -> dict[str, str]:
    return {
        f"printed/{r.table}/{r.model}/{r.method}/{r.w_bits:g}/{r.a_bits}/{m}": tex(r.text[m])
        for r in load()
        for m in METRICS
    }


def _audit() -> dict[str, str]:
    rows = load()
    found = findings(rows)
    off = [abs(r.values["zeroshot_mean"] - r.task_mean) for r in rows]
    out = {"audit/findings": str(len(found)), "audit/doubted": str(len(doubted(found)))}
    out |= {"audit/rows": str(len(rows)), "audit/cells": f"{len(rows) * len(METRICS):,}".replace(",", "{,}")}
    out |= {f"audit/{kind}": str(sum(f.kind == kind for f in found)) for kind in RULES}
    out["audit/inferences"] = str(sum(f.kind in INFERRED for f in found))
    swapped = {cell for f in found if f.kind == "group_order" for cell in f.cells}
    out |= {"audit/group_order/cells": str(len(swapped)), "audit/not_mean/largest": f"{max(off):.1f}"}
    out["audit/group_order/models"] = str(len({cell[1] for cell in swapped}))
    return out
