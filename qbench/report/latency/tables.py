"""The tables of a GPU: products with one token, with more tokens, and whole decoders."""

import math
from collections.abc import Callable

from qbench.latency.record import BF16, Kernel, KernelRow, ModelRow
from qbench.render.sheet import Cell, Sheet
from qbench.report.latency.speeds import FUSED, LARGE, Speeds, geomean, label

KERNEL_CSV = ["model", "layer", "N", "K", "M", "kernel", "bits", "group", "us", "us_p20", "us_p80", "runs", "bytes"]
KERNEL_CSV += ["flops", "error", "gbps", "copy_share", "gain_over_bf16", "gain_over_best_peer", "best_peer", "notes"]
MODEL_CSV = ["model", "what", "kernel", "bits", "group", "batch", "context", "ms", "ms_p20", "ms_p80", "runs"]
MODEL_CSV += ["tokens_per_s", "gain_over_bf16", "floor_ms", "floor_share", "weight_bytes", "cache_bytes", "peak_bytes"]
MODEL_CSV += ["notes"]
MODEL_HEAD = ["Model", "Step", "Weights", "Batch", "Tokens", "ms", "p20 to p80", "tokens/s", "× bf16", "% of floor"]
MODEL_HEAD += ["weights GB", "cache GB", "peak GB"]
NAMES = "W4A16: 4-bit weights in groups of 128, 16-bit activations; W8A8: 8-bit activations and one scale per row."
PEER = "Best peer: the fastest kernel of another library, except bf16, that reads at least as many bits per weight."


def sheets(s: Speeds) -> list[Sheet]:
    """All tables; those for which the record lacks rows have none."""
    return [one_token(s), more_tokens(s), decoders(s)]


def conditions(s: Speeds) -> list[str]:
    """The lines below every table of the record: machine, measured ceilings, notes."""
    p = s.record.provenance
    settings = {"power_limit_w": "W", "sm_clock_mhz": "MHz"}
    parts = [s.gpu, *(f"{p[name]:.0f} {unit}" for name, unit in settings.items() if p.get(name))]
    parts += [f"{name} {p[name]}" for name in ("driver", "torch", "triton", "cuda", "commit") if p.get(name)]
    units = {"copy_gbps": ("copy", "GB/s"), "read_gbps": ("read", "GB/s"), "bf16_tflops": ("bf16 product", "TFLOP/s")}
    units |= {"launch_us": ("empty launch", "µs")}
    measured = [f"{what} {s.ceiling(k):.4g} {unit}" for k, (what, unit) in units.items() if k in s.record.ceilings]
    out = [f"Measured on {', '.join(parts)}, {p.get('time', '')[:10]}."]
    out += [f"The same run's ceilings: {', '.join(measured)}."] if measured else []
    return out + [f"Note of the record: {note}" for note in s.record.notes]


def one_token(s: Speeds) -> Sheet:
    """One block per quantity, one row per product, one column per kernel."""
    rows = {key: row for key, row in s.products.items() if row.M == 1}
    kernels = [k for k in s.kernels if any(row.kernel == k for row in rows.values())]
    products = dict.fromkeys((row.model, row.layer, row.N, row.K) for row in rows.values())
    sheet = Sheet(
        f"latency_{s.name}_m1",
        f"Products with one token on an {s.gpu}",
        ["Model", "Layer", "N × K", *map(label, kernels)],
        "lll" + "r" * len(kernels),
        csv_head=KERNEL_CSV,
        csv_rows=[_kernel_csv(s, row) for row in rows.values()],
        lines=[PEER, NAMES, *conditions(s)],
    )
    quantities: dict[str, tuple[Callable, str]] = {
        "microseconds, median": (s.us, "#.3g"),
        "GB/s: counted bytes over time": (s.gbps, ".0f"),
        "% of the measured copy bandwidth": (lambda *product: 100 * s.share(*product), ".0f"),
        "times as fast as cuBLAS in bfloat16": (s.gain, ".2f"),
        "times as fast as the best peer": (s.over_peer, ".2f"),
    }
    for title, (of, digits) in quantities.items() if rows else ():
        block = []
        for model, layer, N, K in products:
            found = [rows.get((model, layer, 1, k)) for k in kernels]
            cells = [Cell("–") if r is None else _cell(sheet, r.notes, r.us and of(*r.key), digits) for r in found]
            block.append([Cell(model), Cell(layer), Cell(f"{N} × {K}"), *cells])
        sheet.blocks.append((title, block))
    return sheet


def more_tokens(s: Speeds) -> Sheet:
    """One block per model after one for all large models; one row per kernel, one column per number of tokens."""
    sheet = Sheet(
        f"latency_{s.name}_tokens",
        f"Speed-up over cuBLAS in bfloat16 on an {s.gpu}",
        ["Kernel", *(f"M = {M}" for M in s.tokens)],
        "l" + "r" * len(s.tokens),
        csv_head=KERNEL_CSV,
        csv_rows=[_kernel_csv(s, row) for row in s.products.values()],
        lines=[f"Geometric means over {', '.join(FUSED)}, the products that a decoder runs.", NAMES, *conditions(s)],
    )
    large = [m for m in LARGE if m in s.sizes]
    together = {f"{', '.join(large[:-1])} and {large[-1]} together": large} if len(large) > 1 else {}
    for title, models in (together | {m: [m] for m in s.sizes}).items():
        products = [(m, layer) for m in models for layer in FUSED]
        rows = [[Cell(label(k)), *(_mean(sheet, s, products, M, k) for M in s.tokens)] for k in s.kernels if k != BF16]
        rows = [row for row in rows if any(c.text != "–" for c in row[1:])]
        sheet.blocks += [(title, rows)] if rows else []
    return sheet


def decoders(s: Speeds) -> Sheet:
    """One row per decoder, kind of weight and batch."""
    sheet = Sheet(f"latency_{s.name}_models", f"Whole decoders on an {s.gpu}", MODEL_HEAD, "lll" + "r" * 10)
    sheet.csv_head = MODEL_CSV
    tokens = "Tokens: in the cache of each sequence, or of the prompt."
    sheet.lines = [f"{tokens} Floor: weights and cache read once at the measured copy bandwidth."]
    sheet.lines += [NAMES, *conditions(s)]
    base = {(r.model, r.what, r.batch, r.context): r.ms for r in s.models if r.kernel == BF16}
    blocks: dict[str, list] = {}
    for r in s.models:
        full = base.get((r.model, r.what, r.batch, r.context))
        gain = full / r.ms if r.ms and full else math.nan
        floor = r.floor_ms / r.ms if r.ms and r.floor_ms else math.nan
        values = _flat(r) | {"gain_over_bf16": gain, "floor_share": floor}
        sheet.csv_rows.append([values[name] for name in MODEL_CSV])
        spread = "–" if r.ms is None else f"{r.ms_p20:.3f} to {r.ms_p80:.3f}"
        gigabytes = [_number(x and x / 1e9, ".2f") for x in (r.weight_bytes, r.cache_bytes, r.peak_bytes)]
        texts = [spread, _number(r.tokens_per_s, ".0f"), _number(gain, ".2f"), _number(100 * floor, ".0f"), *gigabytes]
        name = [r.model, r.what, label(r.kernel), f"{r.batch}", f"{r.context}"]
        row = [*map(Cell, name), _cell(sheet, r.notes, r.ms, ".3f"), *map(Cell, texts)]
        blocks.setdefault(r.model, []).append(row)
    sheet.blocks = [("", rows) for rows in blocks.values()]
    return sheet


def _flat(row: KernelRow | ModelRow) -> dict:
    """The row's fields, those of its kernel among them."""
    kernel = {"kernel": row.kernel.name, "bits": row.kernel.bits, "group": row.kernel.group}
    return vars(row) | kernel | {"notes": "; ".join(row.notes)}


def _kernel_csv(s: Speeds, row: KernelRow) -> list:
    peer = s.best_peer(*row.key)
    gains = {"gain_over_bf16": s.gain(*row.key), "gain_over_best_peer": s.over_peer(*row.key)}
    rates = {"gbps": s.gbps(*row.key), "copy_share": s.share(*row.key), "best_peer": label(peer) if peer else ""}
    values = _flat(row) | gains | rates
    return [values[name] for name in KERNEL_CSV]


def _cell(sheet: Sheet, notes: list[str], x: float | None, digits: str) -> Cell:
    """A measured number, None where the measurement failed; the notes of its row are footnotes."""
    return Cell("failed" if x is None else _number(x, digits), _marks(sheet, notes))


def _mean(sheet: Sheet, s: Speeds, products: list[tuple[str, str]], M: int, k: Kernel) -> Cell:
    """Geometric mean of the gains; a footnote where some of the products have none."""
    rows = [s.products.get((model, layer, M, k)) for model, layer in products]
    gains = [s.gain(model, layer, M, k) for model, layer in products]
    found, failed = sum(not math.isnan(g) for g in gains), [r for r in rows if r and r.us is None]
    marks = _marks(sheet, [n for r in failed for n in r.notes])
    if not found:
        return Cell("failed" if failed else "–", marks)
    if found < len(products):
        marks.append(sheet.mark(f"mean of {found} of {len(products)} products; the others failed or were not measured"))
    return Cell(f"{geomean(gains):.2f}", marks)


def _marks(sheet: Sheet, notes: list[str]) -> list[str]:
    return [sheet.mark(note) for note in dict.fromkeys(notes)]


def _number(x: float | None, digits: str) -> str:
    return "–" if x is None or math.isnan(x) else f"{x:{digits}}".rstrip(".")
