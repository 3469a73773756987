"""The numbers that the text of paper/ quotes, each under a key that says which record it comes from.

No number of a result is typed into the text. ``\\result{nano/s/gptq/4/ppl}`` asks for one by its key, and a key that
no record gives stops the build. The families of keys:

    nano/<s|m|l>/<method>/<bits>/<ppl|kl|top1|acc|nominal|stored|mb>   one model; accuracies in per cent
    nano/<method>/<bits>/<ppl|acc|...>                              the same of all sizes: "3.13, 2.93 and 2.34"
    nano/worst/<bits>             the largest loss of perplexity of a weight-only method, per cent
    nano/least/1                  the least perplexity of a uniform grid at one bit
    real/<model>/<method>/<bits>/<ppl|kl|c4>                        a model of others: WikiText-2, KL there, C4
    qwen3/<models|records>        the released Qwen3 models that have records, and how many these are
    gptq_sensitivity/<text>/<tokens>/<damp>/<order>/<ppl|KL>/<mean|sd|least|most>   over draws of calibration windows
    ablation/<method>/<bits>/<field>=<value>/<ppl|acc>              measured with one field changed
    printed/<table>/<model>/<method>/<W>/<A>/<metric>               a printed cell of the study
    audit/...                                                       counts of the audit
    agreement/...                                                   packed models compared with dequantized ones
    <folder>/<file>/<path>                                          a value of another record, see ``other_records``

The sizes of the embedded models are read from their own files.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pandas
from safetensors import safe_open

from experiments.audit.rules import INFERRED, RULES, doubted, findings
from experiments.paper import other_records
from qbench.printed.published import METRICS, load
from qbench.protocol import name_of
from qbench.record import Measurement
from qbench.render.escape import tex
from qbench.report.quality.columns import column
from qbench.report.quality.frame import of_kernels
from qbench.report.quality.variants import UNQUANTIZED, method_of

SIZES = ("s", "m", "l")
REAL_KEYS = {"wikitext2/ppl": "ppl", "wikitext2/kl": "kl", "c4/ppl": "c4"}
METRIC_KEYS = {"nano/ppl": "ppl", "nano/kl": "kl", "nano/top1": "top1", "nano_world/acc": "acc"}
VARIED = {"gptq": "act_order", "awq": "loss", "smoothquant": "alpha"}
WEIGHT_ONLY = ("rtn", "gptq", "awq")


def numbers(results: Path, measurements: list[Measurement], ablations: list[Measurement], nano: Path) -> dict[str, str]:
    """Key to text, as it is to be printed.

    ``measurements`` are the records of ``results``, ``ablations`` those that change a single field, and ``nano`` is
    the folder of the embedded models. ValueError where there is no record of an embedded model.
    """
    study = [m for m in measurements if in_study(m)]
    if not study:
        raise ValueError(f"{results}: no record of an embedded model, which the text is about; run make results first")
    real = [m for m in measurements if not _size(m)]
    out = _cells(study, "nano", lambda m: str(_bits(m))) | _study(study) | _models(nano)
    out |= _cells(ablations, "ablation", _variant) | _agreement(measurements) | _printed() | _audit()
    qwen3 = [m for m in real if m.science["model"]["name"].startswith("qwen3")]
    out |= {"ablation/records": str(len(ablations)), "qwen3/records": str(len(qwen3))}
    out |= {"qwen3/models": joined(sorted({m.science["model"]["name"] for m in qwen3}))} if qwen3 else {}
    return out | _real(real) | _sensitivity(results / "gptq_sensitivity") | other_records.values(results)


def in_study(m: Measurement) -> bool:
    """Whether the record is of the nano study: the protocol of the text, groups of 128, 8-bit activations."""
    if not _size(m) or of_kernels(m.science) or name_of(m.protocol) != "paper":
        return False
    method = method_of(m.science)
    grouped = method["name"] not in WEIGHT_ONLY or m.science["grid"]["group_size"] == 128
    return grouped and (method.get("acts") or {"bits": 8})["bits"] == 8


def differs_singly(m: Measurement) -> bool:
    """Whether the record has the settings of the nano study but for its method's field in VARIED."""
    field = VARIED.get(method_of(m.science)["name"])
    others = [d for d in m.protocol["deviations"]["paper"] if not d.startswith(f"method.{field}=")]
    draw = (m.science.get("calib") or {}).get("draw", "windows")
    return field is not None and not others and draw == "windows" and m.science["model"]["dtype"] == "float32"


def joined(texts: list[str]) -> str:
    """a, b and c; one of them where all are the same."""
    return texts[0] if len(set(texts)) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _size(m: Measurement) -> str | None:
    family, _, size = m.science["model"]["name"].partition("-")
    return size if family == "nano" and size in SIZES else None


def _bits(m: Measurement) -> int:
    return {UNQUANTIZED: 16, "billm": 1}.get(method_of(m.science)["name"]) or m.science["grid"]["bits"]


def _variant(m: Measurement) -> str:
    method = method_of(m.science)
    field = VARIED.get(method["name"])
    return str(_bits(m)) + (f"/{field}={str(method.get(field)).lower()}" if field else "")


def _cells(records: list[Measurement], family: str, place: Callable[[Measurement], str]) -> dict[str, str]:
    """One key per record and metric, and one for the sizes together."""
    found: dict[tuple[str, str], dict[str | None, str]] = defaultdict(dict)
    for m in records:
        where = f"{method_of(m.science)['name']}/{place(m)}"
        texts = {METRIC_KEYS[k]: column(k).short(x.value) for k, x in m.metrics.items() if k in METRIC_KEYS}
        if "kl" in texts:
            texts["kl"] = f"{m.metrics['nano/kl'].value:.2g}"
        texts |= {"nominal": f"{m.nominal_bits:.2f}", "stored": f"{m.stored_bits:.2f}"}
        texts |= {"mb": f"{m.model_bytes / 1e6:.2f}"}
        for name, text in texts.items():
            first = found[where, name].setdefault(_size(m), text)
            if first != text:
                key = f"{family}/{_size(m)}/{where}/{name}"
                raise ValueError(f"{key} is {first} and {text} in two records; move one of them elsewhere")
    out = {f"{family}/{s}/{where}/{k}": tex(text) for (where, k), texts in found.items() for s, text in texts.items()}
    for (where, name), by_size in found.items():
        out[f"{family}/{where}/{name}"] = tex(joined([by_size[s] for s in SIZES if s in by_size]))
    return out


def _real(records: list[Measurement]) -> dict[str, str]:
    """One key per metric of each cell of a model that others trained."""
    out = {}
    for m in records:
        where = f"real/{m.science['model']['name']}/{method_of(m.science)['name']}/{_bits(m)}"
        texts = {REAL_KEYS[k]: column(k).short(x.value) for k, x in m.metrics.items() if k in REAL_KEYS}
        texts |= {"kl": f"{m.metrics['wikitext2/kl'].value:.2g}"} if "kl" in texts else {}
        out |= {f"{where}/{name}": tex(text) for name, text in (texts | {"stored": f"{m.stored_bits:.2f}"}).items()}
    return out


def _sensitivity(folder: Path) -> dict[str, str]:
    """Mean, standard deviation and range of each setting that ``experiments/gptq_sensitivity.py`` measured."""
    out = {}
    if (path := folder / "gptq_sensitivity.csv").is_file():
        setting = ["calibration", "tokens", "damping", "act_order", "metric"]
        for (text, tokens, damp, order, metric), values in pandas.read_csv(path).groupby(setting)["value"]:
            where = f"gptq_sensitivity/{text}/{tokens}/{damp:g}/{str(order).lower()}/{metric}"
            found = {"mean": values.mean(), "sd": values.std(), "least": values.min(), "most": values.max()}
            out |= {f"{where}/{name}": f"{x:.3g}" for name, x in found.items() if math.isfinite(x)}
    return out


def _study(study: list[Measurement]) -> dict[str, str]:
    """Counts, machines, and how much perplexity is lost at each bit-width."""
    having = [m for m in study if "nano/ppl" in m.metrics]
    ppl = {(_size(m), method_of(m.science)["name"], _bits(m)): m.metrics["nano/ppl"] for m in having}
    asked = [m.metrics["nano_world/acc"].n for m in study if "nano_world/acc" in m.metrics]
    out = {"nano/records": str(len(study)), "nano/cells": str(len(ppl)), "nano/questions": str(max(asked))}
    out["nano/windows"] = str(max(x.n for x in ppl.values()))
    for b in range(1, 9):
        pairs = [(ppl.get((s, name, b)), ppl.get((s, UNQUANTIZED, 16))) for s in SIZES for name in WEIGHT_ONLY]
        worst = max((100 * (x.value / full.value - 1) for x, full in pairs if x and full), default=math.nan)
        if math.isfinite(worst):
            out[f"nano/worst/{b}"] = f"{worst:.2g}" if worst < 100 else f"{worst:,.0f}"
    if ones := [x.value for (_, name, bits), x in ppl.items() if bits == 1 and name != "billm"]:
        out["nano/least/1"] = column("nano/ppl").short(min(ones))
    out["nano/devices"] = tex(joined(sorted({m.provenance["device"] for m in study})))
    for package in ("torch", "transformers", "lm_eval"):
        versions = {m.provenance["packages"][package].partition("+")[0] for m in study}
        out[f"nano/version/{package.replace('_', '-')}"] = tex(joined(sorted(versions)))
    return out


def _models(folder: Path) -> dict[str, str]:
    """Millions of parameters and the shape of each embedded model, from its own files."""
    out = {}
    for s in SIZES:
        home = folder / f"nano-{s}"
        config = json.loads((home / "config.json").read_text())
        with safe_open(home / "model.safetensors", "np") as f:
            count = sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118
        out[f"nano/{s}/parameters"] = f"{count / 1e6:.2g}"
        out |= {f"nano/{s}/{k}": str(config[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size")}
        out[f"nano/{s}/heads"] = f"{config['num_attention_heads']} / {config['num_key_value_heads']}"
    return out


def _agreement(measurements: list[Measurement]) -> dict[str, str]:
    """Packed models against dequantized ones: how many, their largest differences, and where the kernels ran."""
    found = [m for m in measurements if m.science["eval"]["name"] == "agreement"]
    if not found:
        return {}
    error, rounding, layer = (
        [m.metrics[f"agreement/{k}"].value for m in found] for k in ("error", "rounding", "worst_layer")
    )
    ratios = [e / r for e, r in zip(error, rounding)]
    return {
        "agreement/models": str(len(found)),
        "agreement/least": f"{min(ratios):.2f}",
        "agreement/most": f"{max(ratios):.2f}",
        "agreement/worst_layer": f"{100 * max(layer):.2f}",
        "agreement/kernels": joined(sorted({m.science["eval"]["kernels"] for m in found})),
    }


def _printed() -> dict[str, str]:
    """Every printed number."""
    out: dict[str, str] = {}
    for r in load():
        where = f"printed/{r.table}/{r.model}/{r.method}/{r.w_bits:g}/{r.a_bits}"
        out |= {f"{where}/{metric}": tex(text) for metric, text in r.text.items()}
    return out


def _audit() -> dict[str, str]:
    rows = load()
    found = findings(rows)
    swapped = {cell for f in found if f.kind == "group_order" for cell in f.cells}
    counts = {"findings": len(found), "doubted": len(doubted(found)), "rows": len(rows)}
    counts |= {kind: sum(f.kind == kind for f in found) for kind in RULES}
    counts |= {"inferences": sum(f.kind in INFERRED for f in found), "group_order/cells": len(swapped)}
    counts |= {"group_order/models": len({cell.model for cell in swapped})}
    out = {f"audit/{name}": str(count) for name, count in counts.items()}
    out["audit/cells"] = f"{len(rows) * len(METRICS):,}".replace(",", "{,}")
    largest = max(abs(r.values["zeroshot_mean"] - r.task_mean) for r in rows)
    return out | {"audit/not_mean/largest": f"{largest:.1f}"}
