"""The rows of a table, which are also the points of a figure: one quantized model each, in order."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from qbench.report.quality.columns import METHODS, Column, method_order
from qbench.report.quality.variants import UNQUANTIZED, eval_labels, quant_labels

_DTYPES = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}


@dataclass
class Cell:
    """``state``: ok, failed or missing; ``marks`` are footnote letters."""

    state: str = "missing"
    value: float = math.nan
    stderr: float = math.nan
    best: bool = False
    marks: list[str] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        return self.state == "ok" and math.isfinite(self.value)


@dataclass
class Row:
    """One quantized model. ``bits`` are the nominal ones where the method is outside the bits axis.

    ``size`` is the bytes of the largest form of its model, ``differs`` what sets its quantization apart from others
    of the table beyond its columns and ``how`` what sets its evaluation apart, ``notes`` counts the linears with each
    note, ``records`` are its rows of the long frame by metric; ``cells`` and ``marks`` are filled by ``table``.
    """

    quant: str
    model: str
    method: str
    bits: float
    act_bits: float
    group_size: float
    stored_bits: float
    model_bytes: float
    size: float
    dtype: str
    differs: str
    how: str
    on_axis: bool
    notes: Counter
    records: dict[str, dict]
    cells: dict[str, Cell] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)

    @property
    def variant(self) -> str:
        return "; ".join(v for v in (self.differs, self.how) if v)

    def found(self, c: Column) -> list[dict]:
        """Its rows of the long frame that the cell of ``c`` is made from."""
        keys = c.mean_of or (c.key,)
        return [r for r in (self.records.get(k) or self.records.get("") for k in keys) if r is not None]

    @property
    def name(self) -> str:
        """The method as printed; the number format where nothing is quantized."""
        return self.dtype if self.method == UNQUANTIZED else METHODS.get(self.method, self.method)

    @property
    def series(self) -> tuple:
        """What the rows of one curve over bits share beside the model."""
        group = self.group_size if self.on_axis and not math.isnan(self.group_size) else 0.0
        return (*method_order(self.method), -self.act_bits, group, self.variant)

    @property
    def legend(self) -> str:
        """The name of the curve: method, activation bits below 16, group size, variant."""
        acts = f" A{self.act_bits:.0f}" if self.act_bits < 16 else ""
        group = f" g{self.group_size:.0f}" if self.on_axis and self.group_size > 0 else ""
        return f"{self.name}{acts}{group}" + (f" {self.variant}" if self.variant else "")


def make_rows(df: pd.DataFrame) -> list[Row]:
    """One row a quantization, or several where its evaluations differ; by size, method, bits falling.

    A metric appears in the rows of its own evaluation; one that was evaluated in one way only in all rows.
    """
    if df.empty:
        return []
    df = df.assign(how=eval_labels(df))
    labels, sizes = quant_labels(list(df["science"])), df.groupby("model")["model_bytes"].max().fillna(0)
    rows = []
    for quant, part in df.groupby("quant"):
        first, notes = part.iloc[0], Counter()
        for n in part["notes"]:
            notes |= n
        off_axis = math.isnan(first["bits"])
        for how in sorted(set(part["how"]) - {""}) or [""]:
            rows.append(
                Row(
                    quant=quant,
                    model=first["model"],
                    method=first["method"],
                    bits=float(part["nominal_bits"].max() if off_axis else first["bits"]),
                    act_bits=first["act_bits"],
                    group_size=first["group_size"],
                    stored_bits=float(part["stored_bits"].max()),
                    model_bytes=float(part["model_bytes"].max()),
                    size=float(sizes[first["model"]]),
                    dtype=_dtype(first["science"]),
                    differs=labels[quant],
                    how=how,
                    on_axis=not off_axis and first["method"] != UNQUANTIZED,
                    notes=notes,
                    records={
                        r["metric"]: r
                        for r in part.sort_values("status").to_dict("records")  # failed, then ok, which stays
                        if r["how"] in ("", how)
                    },
                )
            )
    return sorted(rows, key=_order)


def _order(r: Row) -> tuple:
    bits, group = (0.0 if math.isnan(x) else x for x in (r.bits, r.group_size))
    return (r.size, r.model, *method_order(r.method), -bits, -r.act_bits, group, r.variant)


def _dtype(science: dict) -> str:
    dtype = science["model"].get("dtype") or "unquantized"
    return _DTYPES.get(dtype, dtype)
