"""Which tables of a GPU there are: one token, more tokens, whole decoders, and whether the targets hold."""

import math
from collections.abc import Callable

from qbench.render.sheet import Field, Sheet
from qbench.report.latency.rows import (
    BASE,
    FUSED,
    LARGE,
    OURS,
    Kind,
    Latency,
    geomean,
    kind_of_model,
    label,
    model_key,
    size_order,
)
from qbench.report.latency.targets import targets

KERNEL_CSV = ["model", "layer", "N", "K", "M", "kernel", "bits", "group", "us", "us_p20", "us_p80", "runs", "bytes"]
KERNEL_CSV += ["flops", "error", "gbps", "copy_share", "gain_over_bf16", "gain_over_best_peer", "best_peer", "notes"]
MODEL_CSV = ["model", "what", "weights", "bits", "group", "batch", "context", "ms", "ms_p20", "ms_p80", "runs"]
MODEL_CSV += ["tokens_per_s", "gain_over_bf16", "floor_ms", "floor_share", "weight_bytes", "cache_bytes", "peak_bytes"]
NAMES = "W4A16: 4-bit weights in groups of 128, 16-bit activations; W8A8: 8-bit activations and one scale a row."
MEANS = f"Means: geometric, over {', '.join(FUSED)} (what a decoder runs; other layers are parts of these)."


def sheets(record: Latency) -> list[Sheet]:
    """All tables for which the record has rows."""
    out = [one_token(record), more_tokens(record)] if record.kernels else []
    out += [decoders(record)] if record.models else []
    return [s for s in out if s.blocks] + ([targets(record, lines(record))] if out else [])


def lines(record: Latency) -> list[str]:
    """Under every table of the record: where it was measured, against what, and what it says of itself."""
    p = record.provenance
    parts = [p["gpu"], f"{p['power_limit_w']:.0f} W" if p.get("power_limit_w") else ""]
    parts += [f"{p['sm_clock_mhz']:.0f} MHz" if p.get("sm_clock_mhz") else ""]
    parts += [f"{name} {p[name]}" for name in ("driver", "torch", "triton", "cuda") if p.get(name)]
    parts += [f"commit {p['commit'][:8]}" if p.get("commit") else "", (p.get("time") or "")[:10]]
    c = record.ceilings
    units = {"copy_gbps": ("copy", "GB/s"), "read_gbps": ("read", "GB/s"), "bf16_tflops": ("bf16 product", "TFLOP/s")}
    units |= {"launch_us": ("empty launch", "µs")}
    measured = [f"{what} {c[k]['value']:.4g} {unit}" for k, (what, unit) in units.items() if k in c]
    out = [f"Measured on {', '.join(x for x in parts if x)}."]
    out += [f"The same run's ceilings: {', '.join(measured)}."] if measured else []
    return out + [f"Note of the record: {note}" for note in record.notes]


def one_token(record: Latency) -> Sheet:
    """A block a quantity; a row a product, a column a kernel."""
    kinds = [k for k in record.kinds if any(M == 1 and q == k for _, _, M, q in record.kernels)]
    s = _kernel_sheet(record, "m1", f"Products with one token on an {record.provenance['gpu']}", (1,))
    s.head, s.align = ["Model", "Layer", "N × K", *map(label, kinds)], "lll" + "r" * len(kinds)
    quantities: list[tuple[str, Callable, str, list[Kind]]] = [
        ("microseconds, median", record.us, "#.3g", kinds),
        ("GB/s: counted bytes over time", record.gbps, ".0f", kinds),
        ("per cent of the measured copy bandwidth", lambda *p: 100 * record.share(*p), ".0f", kinds),
        ("times as fast as cuBLAS in bfloat16", record.gain, ".2f", kinds),
        ("times as fast as the best peer", record.over_peer, ".2f", kinds),
    ]
    for title, of, digits, mine in quantities if kinds else []:
        rows = []
        for model in record.names:
            for layer in record.layers(model):
                shape = next((r for k in mine if (r := record.row(model, layer, 1, k))), None)
                if shape:
                    cells = [_cell(s, record, (model, layer, 1, k), of, digits) for k in mine]
                    rows.append([*map(Field, (model, layer, f"{shape['N']} × {shape['K']}")), *cells])
        s.blocks.append((title, rows))
    s.lines.insert(0, "Best peer: the fastest kernel of others (bf16 apart) that reads at least as many bits a weight.")
    return s


def more_tokens(record: Latency) -> Sheet:
    """A block a model, and first the large ones together; a row a kernel, a column a number of tokens."""
    s = _kernel_sheet(record, "tokens", f"Speed-up over cuBLAS in bfloat16 on an {record.provenance['gpu']}", None)
    s.head, s.align = ["Kernel", *(f"M = {M}" for M in record.tokens)], "l" + "r" * len(record.tokens)
    large = [m for m in LARGE if m in record.names]
    groups = [(" and ".join([", ".join(large[:-1]), large[-1]]) + " together", large)] if len(large) > 1 else []
    for title, models in groups + [(m, [m]) for m in record.names]:
        products = [(m, layer) for m in models for layer in FUSED]
        rows = []
        for k in (k for k in record.kinds if k[0] != BASE):
            cells = [_mean(s, record, products, M, k) for M in record.tokens]
            if any(c.text != "–" for c in cells):
                rows.append([Field(label(k)), *cells])
        s.blocks += [(title, rows)] if rows else []
    s.lines.insert(0, MEANS)
    return s


def decoders(record: Latency) -> Sheet:
    """A row a decoder, its weights and a batch."""
    s = Sheet(f"latency_{record.name}_models", f"Whole decoders on an {record.provenance['gpu']}", [], "lll" + "r" * 10)
    s.head = ["Model", "Step", "Weights", "Batch", "Tokens", "ms", "p20 to p80", "tokens/s", "× bf16", "% of floor"]
    s.head += ["weights GB", "cache GB", "peak GB"]
    s.csv_head = [*MODEL_CSV, "notes"]
    base = {model_key(r)[:-1]: r["ms"] for r in record.models if r["weights"] == "bfloat16"}
    for model in sorted({r["model"] for r in record.models}, key=size_order):
        rows = []
        for r in sorted((r for r in record.models if r["model"] == model), key=_decoder_order):
            full = base.get(model_key(r)[:-1])
            gain = full / r["ms"] if r["ms"] and full else math.nan
            floor = r["floor_ms"] / r["ms"] if r["ms"] and r["floor_ms"] else math.nan
            s.csv_rows.append([*(_of(r, f, gain, floor) for f in MODEL_CSV), "; ".join(r["notes"])])
            who = [model, r["what"], label(kind_of_model(r)), f"{r['batch']}", f"{r['context']}"]
            if r["ms"] is None:
                failed = Field("failed" if any("failed" in n for n in r["notes"]) else "–", _marks(s, r["notes"]))
                rows.append([*map(Field, who), failed, *[Field("–")] * 7])
                continue
            sizes = [_number(r[f] and r[f] / 1e9, ".2f") for f in ("weight_bytes", "cache_bytes", "peak_bytes")]
            between = f"{r['ms_p20']:.3f} to {r['ms_p80']:.3f}"
            cells = [Field(f"{r['ms']:.3f}", _marks(s, r["notes"])), *map(Field, (between, f"{r['tokens_per_s']:.0f}"))]
            cells += map(Field, (_number(gain, ".2f"), _number(100 * floor, ".0f"), *sizes))
            rows.append([*map(Field, who), *cells])
        s.blocks.append(("", rows))
    s.lines = ["Tokens: in the cache of each sequence, or of the prompt. Floor: weights and cache read once at the "
               "measured copy bandwidth.", NAMES, *lines(record)]  # fmt: skip
    return s


def _kernel_sheet(record: Latency, name: str, caption: str, tokens: tuple[int, ...] | None) -> Sheet:
    """Without blocks: the long form of all rows, or those with so many tokens, and the lines below."""
    s = Sheet(f"latency_{record.name}_{name}", caption, [], "", csv_head=KERNEL_CSV, lines=[NAMES, *lines(record)])
    layers = {(m, layer): i for m in record.names for i, layer in enumerate(record.layers(m))}
    place = {k: i for i, k in enumerate(record.kinds)}
    for key in sorted(record.kernels, key=lambda p: (size_order(p[0]), layers[p[:2]], p[2], place[p[3]])):
        r, (model, layer, M, k) = record.kernels[key], key
        if tokens is None or M in tokens:
            peer = record.peer(model, layer, M, k[1])[1] if k[0] in OURS else None
            derived = [record.gbps(*key), record.share(*key), record.gain(*key), record.over_peer(*key)]
            derived += [label(peer) if peer else "", "; ".join(r["notes"])]
            s.csv_rows.append([*(r[f] for f in KERNEL_CSV[:15]), *derived])
    return s


def _cell(s: Sheet, record: Latency, product: tuple, of: Callable, digits: str) -> Field:
    row = record.row(*product)
    if row is None:
        return Field("–")
    return Field("failed" if row["us"] is None else _number(of(*product), digits), _marks(s, row["notes"]))


def _mean(s: Sheet, record: Latency, products: list[tuple[str, str]], M: int, k: Kind) -> Field:
    """Geometric mean of the gains; a footnote where some of the products have none."""
    rows = [record.row(model, layer, M, k) for model, layer in products]
    gains = [record.gain(model, layer, M, k) for model, layer in products]
    found, failed = sum(not math.isnan(g) for g in gains), [r for r in rows if r and r["us"] is None]
    marks = _marks(s, [n for r in failed for n in r["notes"]])
    if not found:
        return Field("failed" if failed else "–", marks)
    if found < len(products):
        marks.append(s.mark(f"mean of {found} of {len(products)} products; the others were not measured or failed"))
    return Field(f"{geomean(gains):.2f}", marks)


def _marks(s: Sheet, notes: list[str]) -> list[str]:
    return [s.mark(note) for note in dict.fromkeys(notes)]


def _number(x: float | None, digits: str) -> str:
    return "–" if x is None or math.isnan(x) else f"{x:{digits}}".rstrip(".")


def _of(r: dict, name: str, gain: float, floor: float):
    return {"gain_over_bf16": gain, "floor_share": floor}.get(name, r.get(name))


def _decoder_order(r: dict) -> tuple:
    names = ("bfloat16", *OURS)
    rank = names.index(r["weights"]) if r["weights"] in names else len(names)
    return (r["what"], rank, -r["bits"], -(r["group"] or 0), r["batch"], r["context"])
