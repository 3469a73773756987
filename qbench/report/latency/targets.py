"""What the kernels are meant to reach, and whether a record says they do. One with a row missing is undecided."""

import math
from dataclasses import dataclass

from qbench.render.sheet import Field, Sheet
from qbench.report.latency.rows import BF16, FUSED, LARGE, W4, Latency, geomean, label

MLP = ("gate_proj", "gate_up_proj", "down_proj")
FEW = 32  # tokens up to which no kernel may be slower than bfloat16
OWN = ("wna16", "wna8", "binary")


@dataclass(frozen=True)
class Target:
    """``value`` is NaN where it was not measured, ``bar`` where there is none; ``unit`` "%" or "×"."""

    what: str
    value: float
    bar: float
    unit: str
    detail: str = ""

    @property
    def verdict(self) -> str:
        if math.isnan(self.value):
            return "not measured"
        return "–" if math.isnan(self.bar) else "holds" if self.value >= self.bar else "missed"

    def text(self, x: float) -> str:
        return "–" if math.isnan(x) else f"{100 * x:.1f} %" if self.unit == "%" else f"{x:.2f}{self.unit}"


def targets(record: Latency, lines: list[str]) -> Sheet:
    """A line a target: its bar, what the record says, and whether it holds."""
    s = Sheet(
        f"latency_{record.name}_targets",
        f"What the kernels are meant to reach on an {record.provenance['gpu']}",
        ["Target", "Measured", "Bar", "", "From"],
        "lrrll",
        csv_head=["target", "measured", "bar", "verdict", "from"],
        tex_align=r"p{.34\linewidth}rrlp{.34\linewidth}",
    )
    s.lines = [
        "Means are geometric, over the fused products; bf16: cuBLAS; W4A16 has groups of 128. Best peer: the fastest "
        "kernel of others, bf16 apart, with at least as many bits. Not measured: a row it needs is missing or failed.",
        *lines,
    ]
    found = all_targets(record)
    s.csv_rows = [[t.what, t.value, t.bar, t.verdict, t.detail] for t in found]
    rows = []
    for t in found:
        bar = "–" if math.isnan(t.bar) else f"≥ {t.text(t.bar)}"
        rows.append([*map(Field, (t.what, t.text(t.value), bar, t.verdict, t.detail))])
    s.blocks = [("", rows)]
    return s


def all_targets(record: Latency) -> list[Target]:
    out = [
        _bandwidth(record, "qwen3-8b", MLP, 0.70),
        _bandwidth(record, "qwen3-32b", MLP, 0.80),
        _bandwidth(record, "qwen3-8b", ("qkv_proj",), 0.50),
        _mean(record, "M = 1, W4A16 over the best peer, 8B to 32B", LARGE, 1, record.over_peer, 1.0),
        _mean(record, "M = 1, W4A16 over bf16, 8B to 32B", LARGE, 1, record.gain, 2.5),
    ]
    for bits in (3, 2, 1):

        def faster(model, layer, M, k, bits=bits):
            return record.us(model, layer, M, k) / record.us(model, layer, M, ("wna16", bits, 128))

        out.append(_mean(record, f"M = 1, W{bits}A16 over W4A16, 32B", ("qwen3-32b",), 1, faster, 1.0))
    out += [
        _mean(record, "M = 16, W4A16 over bf16, 32B", ("qwen3-32b",), 16, record.gain, 2.0),
        _mean(record, "M = 2048, rate of W4A16 over that of bf16, 8B to 32B", LARGE, 2048, record.gain, 0.85, "%"),
        _never_slower(record),
        *_decoding(record),
    ]
    return out


def _bandwidth(record: Latency, model: str, layers: tuple[str, ...], bar: float) -> Target:
    """The smallest share among ``layers``; a gate alone counts where the record has it."""
    there = [x for x in layers if x != "gate_proj" or x in record.layers(model)]
    shares = {layer: record.share(model, layer, 1, W4) for layer in there}
    detail = ", ".join(f"{layer} {100 * v:.0f} %" for layer, v in shares.items() if not math.isnan(v))
    what = f"M = 1, W4A16, {model}: {', '.join(there)}, share of the copy bandwidth"
    return Target(what, _least(list(shares.values())), bar, "%", detail)


def _mean(record: Latency, what: str, models, M: int, of, bar: float, unit: str = "×") -> Target:
    """The geometric mean over all fused products of ``models``, NaN if one is missing; the extremes as the detail."""
    values = {(m, layer): of(m, layer, M, W4) for m in models for layer in FUSED}
    if any(map(math.isnan, values.values())):
        return Target(what, math.nan, bar, unit, f"{sum(map(math.isnan, values.values()))} of {len(values)} missing")
    ends = [pick(values, key=values.get) for pick in (min, max)]
    detail = ", ".join(f"{end} {values[p]:.2f} ({p[0]} {p[1]})" for end, p in zip(("least", "most"), ends))
    return Target(what, geomean(list(values.values())), bar, unit, detail)


def _never_slower(record: Latency) -> Target:
    """1 where no 20th percentile of ours lies above bfloat16's 80th; else the share of products where none does."""
    checked, slower, lacking = 0, [], 0
    for (model, layer, M, k), row in record.kernels.items():
        if k[0] not in OWN or M > FEW:
            continue
        base = record.row(model, layer, M, BF16)
        if row["us"] is None or base is None or base["us"] is None:
            lacking += 1
            continue
        checked += 1
        if row["us_p20"] > base["us_p80"]:
            slower.append((row["us"] / base["us"], f"{label(k)} {model} {layer} M = {M}"))
    detail = f"{len(slower)} of {checked} products slower" + (f", {lacking} without a time" if lacking else "")
    if slower:
        detail += "; worst {1}: {0:.2f}× bf16's time".format(*max(slower))
    share = math.nan if not checked or (lacking and not slower) else 1 - len(slower) / checked
    return Target(f"M ≤ {FEW}, all bits: not slower than bf16 beyond p20 and p80", share, 1.0, "%", detail)


def _decoding(record: Latency) -> list[Target]:
    """Decoding with Qwen3-8B, batch 1: over bfloat16, and the share of the memory floor, which has no bar."""
    ours, full = record.decoder("qwen3-8b", W4), record.decoder("qwen3-8b", ("bfloat16", 16, None))
    gain = full["ms"] / ours["ms"] if ours and full and ours["context"] == full["context"] else math.nan
    floor = ours["floor_ms"] / ours["ms"] if ours and ours["floor_ms"] else math.nan
    detail = f"{ours['ms']:.3f} ms, {ours['context']} tokens in the cache" if ours else ""
    return [
        Target("decoding, Qwen3-8B, batch 1, W4A16 over bf16", gain, 2.2, "×", detail),
        Target("the same, share of the memory floor", floor, math.nan, "%", detail),
    ]


def _least(values: list[float]) -> float:
    """NaN if one is missing, or there is none."""
    return math.nan if not values or any(map(math.isnan, values)) else min(values)


def headlines(record: Latency) -> list[str]:
    """The main figures for a README, a line each, the GPU first."""
    verdicts = [t.verdict for t in all_targets(record) if not math.isnan(t.bar)]
    unknown = verdicts.count("not measured")
    text = f"**{record.provenance['gpu']}**: {verdicts.count('holds')} of {len(verdicts)} targets hold"
    out = [text + (f", {unknown} are not measured" if unknown else "")]
    for t in all_targets(record):
        if t.verdict != "not measured":
            bar = "" if math.isnan(t.bar) else f" (at least {t.text(t.bar)}: {t.verdict})"
            out.append(f"{t.what}: **{t.text(t.value)}**{bar}")
    return out
