"""A latency record as a few lines of text, to be read when the measurement ends."""

from collections import Counter

MODELS = ("qwen3-8b", "qwen3-32b")
LAYERS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "gate_proj")


def summary(record: dict, models: tuple[str, ...] = MODELS) -> str:
    """Ceilings; one token on the products of ``models`` (microseconds, gain over cuBLAS bfloat16, share of the copy
    bandwidth); gains with more tokens; decoding with batch 1; what failed; notes."""
    copy = record["ceilings"].get("copy_gbps", {}).get("value")
    rows = {(_name(r), r["model"], r["layer"], r["M"]): r for r in record["kernels"]}
    names = list(dict.fromkeys(_name(r) for r in record["kernels"]))
    lines = [f"{name} {c['value']:.5g} ({c['p20']:.5g} .. {c['p80']:.5g})" for name, c in record["ceilings"].items()]
    for model in models:
        lines.append(f"{model + ', 1 token':<24}" + "".join(f"{layer:>20}" for layer in LAYERS))
        for name in names:
            cells = (_cell(rows, (name, model, layer, 1), copy) for layer in LAYERS)
            lines.append(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells))
    for M in (16, 2048):
        lines.append(f"gain with {M} tokens: {', '.join(LAYERS)} of {' | '.join(models)}")
        for name in names:
            cells = ("".join(f"{_gain(rows, (name, model, layer, M)):>7}" for layer in LAYERS) for model in models)
            lines.append(f"{name:<24}" + " |".join(cells))
    for r in record["models"]:
        if r["batch"] == 1 and r["ms"]:
            rate = f"{r['tokens_per_s']:.1f} tokens/s, floor {r['floor_ms']:.3f} ms"
            lines.append(f"{r['model']} {r['what']} {r['weights']} {r['bits']} bits: {r['ms']:.3f} ms, {rate}")
    untimed = Counter((_name(r), note) for r in record["kernels"] if r["us"] is None for note in r["notes"])
    untimed.update((r["model"], note) for r in record["models"] if r["ms"] is None for note in r["notes"])
    lines += [f"no time: {name}: {note} ({count} rows)" for (name, note), count in untimed.most_common(10)]
    unsteady = sum(r["us"] is not None and any("unsteady" in n for n in r["notes"]) for r in record["kernels"])
    lines.append(f"{len(rows)} products ({unsteady} unsteady), {len(record['models'])} rows of decoders")
    return "\n".join(lines + [f"note: {note}" for note in record["notes"]])


def _name(row) -> str:
    return f"{row['kernel']} {row['bits']}" + ("" if row["group"] in (None, 128) else " row")


def _cell(rows, key, copy) -> str:
    row = rows.get(key)
    if row is None or row["us"] is None:
        return "-"
    share = f"{100 * row['bytes'] / row['us'] / 1e3 / copy:.0f} %" if copy else ""
    return f"{row['us']:.1f} {_gain(rows, key)} {share}"


def _gain(rows, key) -> str:
    ours, base = rows.get(key), rows.get(("cublas_bf16 16", *key[1:]))
    return f"{base['us'] / ours['us']:.2f}x" if ours and base and ours["us"] and base["us"] else "-"
