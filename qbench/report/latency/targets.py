"""The targets of the kernels, and whether a record reaches them. A target with missing rows is "not measured"."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qbench.latency.record import BF16, Kernel
from qbench.render.sheet import Cell, Sheet
from qbench.report.latency.speeds import FUSED, LARGE, W4, Speeds, geomean, label

MLP = ("gate_proj", "gate_up_proj", "down_proj")
FEW = 32  # tokens up to which no kernel may be slower than bfloat16
PACKED = ("wna16", "wna8", "binary")  # our kernels that multiply with packed weights


@dataclass(frozen=True)
class Target:
    """``value`` is NaN where it was not measured; without a ``bar`` the value is only shown. ``unit``: "%" or "×"."""

    what: str
    value: float
    bar: float | None
    unit: str
    detail: str = ""

    @property
    def verdict(self) -> str:
        if math.isnan(self.value):
            return "not measured"
        return "–" if self.bar is None else "holds" if self.value >= self.bar else "missed"

    def text(self, x: float | None) -> str:
        if x is None or math.isnan(x):
            return "–"
        return f"{100 * x:.1f} %" if self.unit == "%" else f"{x:.2f}{self.unit}"

    @property
    def at_least(self) -> str:
        return "–" if self.bar is None else f"≥ {self.text(self.bar)}"


def targets(s: Speeds, lines: list[str]) -> Sheet:
    """One row per target: its bar, what was measured, and whether it holds. ``lines`` go below the table."""
    found = all_targets(s)
    rows = [[*map(Cell, (t.what, t.text(t.value), t.at_least, t.verdict, t.detail))] for t in found]
    return Sheet(
        f"latency_{s.name}_targets",
        f"Targets of the kernels on an {s.gpu}",
        ["Target", "Measured", "Bar", "", "From"],
        "lrrll",
        [("", rows)],
        csv_head=["target", "measured", "bar", "verdict", "from"],
        csv_rows=[[t.what, t.value, t.bar, t.verdict, t.detail] for t in found],
        lines=[
            "Means are geometric, over the fused products; bf16: cuBLAS; W4A16 has groups of 128. Best peer: the "
            "fastest kernel of another library, except bf16, with at least as many bits per weight. Not measured: a "
            "row that the target needs is missing or failed.",
            *lines,
        ],
        tex_align=r"p{.34\linewidth}rrlp{.34\linewidth}",
    )


def headlines(s: Speeds) -> list[str]:
    """The main numbers for a README, one line each; the first names the GPU and counts the targets that hold."""
    found = all_targets(s)
    verdicts = [t.verdict for t in found if t.bar is not None]
    unknown = verdicts.count("not measured")
    text = f"**{s.gpu}**: {verdicts.count('holds')} of {len(verdicts)} targets hold"
    out = [text + (f", {unknown} are not measured" if unknown else "")]
    for t in (t for t in found if t.verdict != "not measured"):
        bar = "" if t.bar is None else f" (at least {t.text(t.bar)}: {t.verdict})"
        out.append(f"{t.what}: **{t.text(t.value)}**{bar}")
    return out


def all_targets(s: Speeds) -> list[Target]:
    def over_w4(bits: int):
        return lambda *product: s.us(*product) / s.us(*product[:3], Kernel("wna16", bits, 128))

    large, largest = "8B to 32B", ("qwen3-32b",)
    return [
        _bandwidth(s, "qwen3-8b", MLP, 0.70),
        _bandwidth(s, "qwen3-32b", MLP, 0.80),
        _bandwidth(s, "qwen3-8b", ("qkv_proj",), 0.50),
        _mean(f"M = 1, W4A16 over the best peer, {large}", LARGE, 1, s.over_peer, 1.0),
        _mean(f"M = 1, W4A16 over bf16, {large}", LARGE, 1, s.gain, 2.5),
        *(_mean(f"M = 1, W{b}A16 over W4A16, 32B", largest, 1, over_w4(b), 1.0) for b in (3, 2, 1)),
        _mean("M = 16, W4A16 over bf16, 32B", largest, 16, s.gain, 2.0),
        _mean(f"M = 2048, rate of W4A16 over that of bf16, {large}", LARGE, 2048, s.gain, 0.85, "%"),
        _never_slower(s),
        *_decoding(s),
    ]


def _bandwidth(s: Speeds, model: str, layers: Iterable[str], bar: float) -> Target:
    """The smallest share of the copy bandwidth among ``layers``; a gate alone counts where the record has it."""
    layers = [x for x in layers if x != "gate_proj" or x in s.layers.get(model, ())]
    shares = {layer: s.share(model, layer, 1, W4) for layer in layers}
    measured = {layer: v for layer, v in shares.items() if not math.isnan(v)}
    detail = ", ".join(f"{layer} {100 * v:.0f} %" for layer, v in measured.items())
    least = min(shares.values()) if len(measured) == len(shares) else math.nan
    return Target(f"M = 1, W4A16, {model}: {', '.join(layers)}, share of the copy bandwidth", least, bar, "%", detail)


def _mean(what: str, models: Iterable[str], M: int, of, bar: float, unit: str = "×") -> Target:
    """The geometric mean over the fused products of ``models``, NaN if one is missing; the extremes as the detail."""
    values = {(m, layer): of(m, layer, M, W4) for m in models for layer in FUSED}
    if missing := sum(map(math.isnan, values.values())):
        return Target(what, math.nan, bar, unit, f"{missing} of {len(values)} missing")
    ends = {"least": min(values, key=values.get), "most": max(values, key=values.get)}
    detail = ", ".join(f"{end} {values[p]:.2f} ({p[0]} {p[1]})" for end, p in ends.items())
    return Target(what, geomean(list(values.values())), bar, unit, detail)


def _never_slower(s: Speeds) -> Target:
    """The share of our products that are not slower: their 20th percentile is at most bfloat16's 80th."""
    checked, slower, lacking = 0, [], 0
    for row in s.products.values():
        if row.kernel.name not in PACKED or row.M > FEW:
            continue
        base = s.row(row.model, row.layer, row.M, BF16)
        if row.us is None or base is None or base.us is None:
            lacking += 1
            continue
        checked += 1
        if row.us_p20 > base.us_p80:
            slower.append((row.us / base.us, f"{label(row.kernel)} {row.model} {row.layer} M = {row.M}"))
    detail = f"{len(slower)} of {checked} products slower" + (f", {lacking} without a time" if lacking else "")
    if slower:
        detail += "; worst {1}: {0:.2f}× bf16's time".format(*max(slower))
    share = math.nan if not checked or (lacking and not slower) else 1 - len(slower) / checked
    return Target(f"M ≤ {FEW}, all bits: not slower than bf16 beyond p20 and p80", share, 1.0, "%", detail)


def _decoding(s: Speeds) -> list[Target]:
    """Decoding with Qwen3-8B, batch 1: the gain over bfloat16, and the share of the memory floor, without a bar."""
    ours, full = s.decoding("qwen3-8b", W4), s.decoding("qwen3-8b", BF16)
    gain = full.ms / ours.ms if ours and full and ours.context == full.context else math.nan
    floor = ours.floor_ms / ours.ms if ours and ours.floor_ms else math.nan
    detail = f"{ours.ms:.3f} ms, {ours.context} tokens in the cache" if ours else ""
    return [
        Target("decoding, Qwen3-8B, batch 1, W4A16 over bf16", gain, 2.2, "×", detail),
        Target("the same, share of the memory floor", floor, None, "%", detail),
    ]
