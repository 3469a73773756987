"""One record as text: all of it, how to measure it again, and where its quantized weights lie."""

import os
from pathlib import Path

from qbench.outcomes import table
from qbench.record import Failure, LayerReport, Measurement, digest
from qbench.redo import command, overrides
from qbench.report.quality.variants import flatten, quantization
from qbench.store import Store


def page(store: Store, record: Measurement | Failure) -> str:
    """Everything that a person asks of one record."""
    d = vars(record) if isinstance(record, Measurement) else record
    lines = [f"{d['id']}  in {store.where(d['id'])}", ""]
    lines += [f"  {key:<24} {value}" for key, value in flatten(d["science"]).items()]
    if isinstance(record, Measurement):
        lines += [table(record.metrics), "", *_sizes(record), ""]
        lines += [f"  {key:<24} {value}" for key, value in flatten(record.provenance).items()]
    else:
        lines += ["", f"failed at {record['time']}: {record['error']}", record["traceback"]]
    protocol = d.get("protocol") or {}
    lines += ["", f"protocol: {protocol.get('name', 'not stored')}"]
    words, left = overrides(d["science"], protocol.get("name", ""))
    lines += ["", "Measure it again:", f"  qbench records {store.root} {d['id']} --delete"]
    lines += [f"  {command([*words, f'machine.results_dir={store.root}'])}"]
    lines += [f"  (gives a new record: this one has {', '.join(left)}, which the code no longer has)"] * bool(left)
    if d["science"]["method"]["name"] != "none":
        lines += ["", *_weights(d["science"], words)]
    return "\n".join(lines)


def _sizes(record: Measurement) -> list[str]:
    layers: list[LayerReport] = record.layers
    bits = f"{record.nominal_bits:.4g} nominal and {record.stored_bits:.4g} stored bits per weight"
    lines = [f"{bits}, {record.model_bytes:,} bytes for the whole model"]
    if layers:
        worst = max(layers, key=lambda r: r.error)
        lines.append(
            f"{len(layers)} quantized linears; the largest relative error of an output is {worst.error:.4g}, of block "
            f"{worst.block} {worst.name}"
        )
    return lines + [f"note: {note}" for note in dict.fromkeys(note for r in layers for note in r.notes)]


def _weights(science: dict, words: list[str]) -> list[str]:
    """Where the quantized weights lie, and how they get into plain transformers."""
    cache = Path(os.environ.get("QBENCH_CACHE", Path.home() / ".cache" / "qbench"))
    folder = cache / "quantized" / digest(quantization(science))
    there = "are there" if folder.is_dir() else "are not there now: add machine.keep_weights=true to the command above"
    asked = ", ".join(f'"{word}"' for word in words)
    return [
        f"Its quantized weights belong in {folder} and {there}.",
        "In Python, as a transformers model, and as a checkpoint that AutoModelForCausalLM.from_pretrained reads:",
        f"  from qbench import load_quantized",
        f"  model, tokenizer = load_quantized({asked})",
        '  model.save_pretrained("FOLDER"); tokenizer.save_pretrained("FOLDER")',
    ]
