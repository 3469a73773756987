"""One record as text: all of it, how to measure it again, and how to write its quantized weights for other engines."""

import shlex

from qbench.outcomes import table
from qbench.protocol import name_of
from qbench.record import Failure, Measurement
from qbench.report.quality.variants import flatten
from qbench.store import Store


def page(store: Store, record: Measurement | Failure) -> str:
    """All of one record, and the commands that make it and its weights again."""
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
        words = [*words, f"machine.results_dir={store.root}"]
        lines.append(f"  {shlex.join(['qbench', 'run', *words])}")
        if d["science"]["method"]["name"] != "none":
            export = shlex.join(["qbench", "export", *words, "format=hf", "out=NEW_FOLDER"])
            lines += ["", "Write its weights for transformers (other formats: docs/formats.md):", f"  {export}"]
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
