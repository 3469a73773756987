"""The rows of a table, which are also the points of a figure: one per quantized model."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from qbench.report.quality.columns import METHODS, Column, curve_name, method_order
from qbench.report.quality.variants import UNQUANTIZED, eval_labels, quant_labels

_DTYPES = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}


@dataclass(frozen=True)
class Value:
    """One metric of one row. ``state``: ok, failed or missing; ``note`` says why there is no number.

    ``record`` is its row of the long frame, empty where there is none.
    """

    state: str = "missing"
    value: float = math.nan
    stderr: float = math.nan
    note: str = ""
    record: dict = field(default_factory=dict)

    @classmethod
    def of(cls, record: dict, delta: bool) -> "Value":
        """What ``record`` says, or with ``delta`` its paired difference to the unquantized model."""
        if record["status"] == "failed":
            return cls("failed", note=f"failed: {record['error']}", record=record)
        if delta and record["delta_note"]:
            return cls(note=f"no paired difference: {record['delta_note']}", record=record)
        value, stderr = ("delta", "delta_stderr") if delta else ("value", "stderr")
        return cls("ok", record[value], record[stderr], record=record)

    @property
    def finite(self) -> bool:
        return self.state == "ok" and math.isfinite(self.value)

    def text(self, c: Column, signed: bool = False) -> str:
        return {"failed": "failed", "missing": "–"}.get(self.state) or c.text(self.value, self.stderr, signed)


@dataclass
class Row:
    """One quantized model.

    ``bits``          the nominal ones where the method is outside the bits axis (``on_axis``)
    ``name``          the method as printed; the number format where nothing is quantized
    ``variant``       what sets its quantization or evaluation apart from others of the table, beyond its columns
    ``notes``         how many linears have each note
    ``cells``         a Value per metric
    """

    model: str
    method: str
    bits: float
    act_bits: float
    group_size: float
    stored_bits: float
    model_bytes: float
    name: str
    variant: str
    on_axis: bool
    notes: Counter
    cells: dict[str, Value]

    @property
    def series(self) -> tuple:
        """What the rows of one curve over bits have in common, besides the model."""
        group = self.group_size if self.on_axis and not math.isnan(self.group_size) else 0.0
        return (*method_order(self.method), -self.act_bits, group, self.variant)

    @property
    def legend(self) -> str:
        """The name of its curve; the group size only of a method on the bits axis."""
        return curve_name(self.name, self.act_bits, self.group_size if self.on_axis else -1, self.variant)


def make_rows(df: pd.DataFrame, metrics: list[str], delta: bool = False) -> list[Row]:
    """One row per quantization, or several where its evaluations of ``metrics`` differ; by size, method, falling bits.

    A metric appears in the rows of its own evaluation; one that was evaluated in one way only, in all rows.
    """
    df = df[df["metric"].isin(metrics)]
    if df.empty:
        return []
    df, labels = df.assign(how=eval_labels(df)), quant_labels(df["science"])
    sizes = df.groupby("model")["model_bytes"].max().fillna(0)
    rows = []
    for quant, part in df.sort_values("status", kind="stable").groupby("quant"):  # failed, then ok, which stays
        first, most, notes = part.iloc[0], part[["nominal_bits", "stored_bits", "model_bytes"]].max(), Counter[str]()
        for n in part["notes"]:
            notes |= n
        dtype = first["science"]["model"].get("dtype") or "unquantized"
        unquantized, off_axis = first["method"] == UNQUANTIZED, math.isnan(first["bits"])
        shared = first[["model", "method", "act_bits", "group_size"]].to_dict() | dict(
            bits=float(most["nominal_bits"] if off_axis else first["bits"]),
            stored_bits=float(most["stored_bits"]),
            model_bytes=float(most["model_bytes"]),
            name=_DTYPES.get(dtype, dtype) if unquantized else METHODS.get(first["method"], first["method"]),
            on_axis=not off_axis and not unquantized,
            notes=notes,
        )
        for how in sorted(set(part["how"]) - {""}) or [""]:
            records = part[part["how"].isin(["", how])].to_dict("records")
            cells = dict.fromkeys(metrics, Value()) | {r["metric"]: Value.of(r, delta) for r in records}
            rows.append(Row(**shared, variant="; ".join(filter(None, (labels[quant], how))), cells=cells))
    return sorted(rows, key=lambda r: (sizes[r.model], r.model, *row_order(r)))


def row_order(r: Row | pd.Series) -> tuple:
    """Within one model: by method, falling bits, group size."""
    bits, group = (0.0 if math.isnan(x) else x for x in (r.bits, r.group_size))
    return (*method_order(r.method), -bits, -r.act_bits, group, r.variant)


def bits_text(r: Row | pd.Series) -> list[str]:
    """#W, #A and #G as printed; "row" is one scale per row."""
    group = "–" if math.isnan(r.group_size) else "row" if r.group_size < 0 else f"{r.group_size:.0f}"
    return ["–" if math.isnan(r.bits) else f"{r.bits:.3g}", f"{r.act_bits:.3g}", group]
