"""A latency record as a few lines of text, printed at the end of the measurement."""

from collections import Counter

from qbench.latency.record import BF16, Kernel, KernelRow, LatencyRecord

MODELS = ("qwen3-8b", "qwen3-32b")
LAYERS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "gate_proj")


def summary(record: LatencyRecord, models: tuple[str, ...] = MODELS) -> str:
    """Ceilings; products of ``models`` with one token (microseconds, gain over cuBLAS bfloat16, share of the copy
    bandwidth); gains with more tokens; decoding with batch 1; what failed; notes."""
    rows = {row.key: row for row in record.kernels}
    kernels = list(dict.fromkeys(row.kernel for row in record.kernels))
    copy = record.ceilings.get("copy_gbps")

    def gain(row: KernelRow | None) -> str:
        base = row and rows.get((*row.key[:3], BF16))
        return f"{base.us / row.us:.2f}x" if base and base.us and row.us else "-"

    def one_token(row: KernelRow | None) -> str:
        if row is None or row.us is None:
            return "-"
        return f"{row.us:.1f} {gain(row)}" + (f" {100 * row.bytes / row.us / 1e3 / copy.value:.0f} %" if copy else "")

    lines = [f"{name} {c.value:.5g} ({c.p20:.5g} .. {c.p80:.5g})" for name, c in record.ceilings.items()]
    for model in models:
        lines.append(f"{model + ', 1 token':<24}" + "".join(f"{layer:>20}" for layer in LAYERS))
        for k in kernels:
            cells = (one_token(rows.get((model, layer, 1, k))) for layer in LAYERS)
            lines.append(f"{_name(k):<24}" + "".join(f"{cell:>20}" for cell in cells))
    for M in (16, 2048):
        lines.append(f"gain with {M} tokens: {', '.join(LAYERS)} of {' | '.join(models)}")
        for k in kernels:
            cells = ("".join(f"{gain(rows.get((model, layer, M, k))):>7}" for layer in LAYERS) for model in models)
            lines.append(f"{_name(k):<24}" + " |".join(cells))
    for r in record.models:
        if r.batch == 1 and r.ms:
            rate = f"{r.ms:.3f} ms, {r.tokens_per_s:.1f} tokens/s, floor {r.floor_ms:.3f} ms"
            lines.append(f"{r.model} {r.what} {r.kernel.name} {r.kernel.bits} bits: {rate}")
    untimed = Counter((_name(r.kernel), note) for r in record.kernels if r.us is None for note in r.notes)
    untimed.update((r.model, note) for r in record.models if r.ms is None for note in r.notes)
    lines += [f"no time: {name}: {note} ({count} rows)" for (name, note), count in untimed.most_common(10)]
    unsteady = sum(r.us is not None and any("unsteady" in n for n in r.notes) for r in record.kernels)
    lines.append(f"{len(rows)} products ({unsteady} unsteady), {len(record.models)} rows of decoders")
    return "\n".join(lines + [f"note: {note}" for note in record.notes])


def _name(k: Kernel) -> str:
    return f"{k.name} {k.bits}" + ("" if k.group in (None, 128) else " row")
