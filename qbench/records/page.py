"""One record as text: all of it, how to measure it again, and where its quantized weights lie."""

import os
import shlex
from pathlib import Path

from qbench.outcomes import table
from qbench.protocol import name_of
from qbench.record import Failure, Measurement, digest
from qbench.report.quality.variants import flatten, quantization
from qbench.store import Store


def page(store: Store, record: Measurement | Failure) -> str:
    """All of one record; its quantized weights are looked for in $QBENCH_CACHE or ~/.cache/qbench."""
    d = dict(vars(record) if isinstance(record, Measurement) else record)
    lines = [f"{d['id']}  in {store.where(d['id'])}", "", *_fields(d["science"])]
    if isinstance(record, Measurement):
        lines += [table(record.metrics), "", *_sizes(record), "", *_fields(record.provenance)]
    else:
        lines += ["", f"failed at {record['time']}: {record['error']}", record["traceback"]]
    lines += ["", f"protocol: {name_of(d.get('protocol') or {})}"]
    lines += ["", "Measure it again:", f"  qbench records {store.root} {d['id']} --delete"]
    words = (d.get("provenance") or d).get("overrides")
    if words is None:
        lines.append("  The command that measured it was not stored.")
    else:
        lines.append(f"  {shlex.join(['qbench', 'run', *words, f'machine.results_dir={store.root}'])}")
    if d["science"]["method"]["name"] != "none":
        lines += ["", *_weights(d["science"])]
    return "\n".join(lines)


def _fields(d: dict) -> list[str]:
    return [f"  {key:<24} {value}" for key, value in flatten(d).items()]


def _sizes(record: Measurement) -> list[str]:
    bits = f"{record.nominal_bits:.4g} nominal and {record.stored_bits:.4g} stored bits per weight"
    lines = [f"{bits}, {record.model_bytes:,} bytes for the whole model"]
    if record.layers:
        worst = max(record.layers, key=lambda r: r.error)
        what = f"the largest relative error of an output is {worst.error:.4g}, of block {worst.block} {worst.name}"
        lines.append(f"{len(record.layers)} quantized linears; {what}")
    return lines + [f"note: {note}" for note in dict.fromkeys(note for r in record.layers for note in r.notes)]


def _weights(science: dict) -> list[str]:
    """Where the quantized weights lie, and the Python that makes a checkpoint for plain transformers of them."""
    cache = Path(os.environ.get("QBENCH_CACHE", Path.home() / ".cache" / "qbench"))
    folder, model = cache / "quantized" / digest(quantization(science)), science["model"]
    is_there = "there now" if folder.is_dir() else "not there now; add machine.keep_weights=true to the command"
    where = f'repo="{model["repo"]}", revision="{model["revision"]}"'
    if model["repo"] == "local" or "from" in model:
        made = cache.glob(f"models/*-{model['revision'][:12]}-*")
        where = f'path="{next(made, "FOLDER")}"'
    where = f'nano="{model["name"]}"' if model["repo"].startswith("qbench/") else where
    return [
        f"Its quantized weights go to {folder} ({is_there}).",
        "From there to a folder with dequantized weights, which AutoModelForCausalLM.from_pretrained reads:",
        "  from qbench.models.checkpoint import Checkpoint",
        "  from qbench.models.quantized import QuantizedFolder",
        f'  ckpt = Checkpoint("{model["name"]}", {where}, dtype="{model["dtype"]}").open()',
        f'  QuantizedFolder("{folder}").load(ckpt, None, "cpu").save_pretrained("NEW_FOLDER")',
        '  ckpt.tokenizer.save_pretrained("NEW_FOLDER")',
    ]
