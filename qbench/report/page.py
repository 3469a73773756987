"""All records of a results folder as one page, index.html: filters, a chart with error bars, a table, single records.

The page needs no network: Vega-Lite, which draws the chart, is inside it (from the package vl-convert-python, extra
``page``), and so are the records, without the outcomes of single items and layers.
"""

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template

import pandas as pd

from qbench.files import plain, write_atomic
from qbench.record import Failure, Measurement
from qbench.report.quality.columns import METHODS, column, method_order
from qbench.report.quality.frame import frame

WHOLE = ("id", "protocol", "nominal_bits", "stored_bits", "model_bytes", "science", "provenance")


def can_write() -> bool:
    """Whether Vega-Lite is installed (``pip install qbench[page]``)."""
    return importlib.util.find_spec("vl_convert") is not None


def write_page(measurements: Sequence[Measurement], failures: Sequence[Failure], path: Path) -> Path:
    """Writes the page; its path."""
    import vl_convert

    rows = pd.concat([frame(measurements, failures, kernels) for kernels in (False, True)])
    records = {m.id: {key: getattr(m, key) for key in WHOLE} for m in measurements}
    records |= {f["id"]: dict(f) for f in failures if f["id"] not in records}
    template = Template((Path(__file__).parent / "page.html").read_text())
    javascript = vl_convert.javascript_bundle(None).replace("</script", "<\\/script")
    text = template.substitute(vega=javascript, rows=_json(_rows(rows)), records=_json(records))
    write_atomic(path, text)
    return path


def _rows(df: pd.DataFrame) -> list[dict]:
    """What the page shows of each row of a frame, small models first; a number that is not finite is text."""
    size = df.groupby("model")["model_bytes"].max()
    df = df.assign(size=df["model"].map(size), place=df["method"].map(method_order))
    df = df.sort_values(["size", "model", "place", "act_bits", "bits", "label", "evaluation"], kind="stable")
    found = []
    for row in df.itertuples():
        c = column(
            row.metric, *(None if pd.isna(x) else x for x in (row.unit, row.header, row.higher_is_better, row.chance))
        )
        half = 1.96 * row.stderr
        found.append(
            dict(id=row.id, model=row.model, method=METHODS.get(row.method, row.method), weights=row.label)
            | dict(variant=row.variant, metric=c.titled, evaluation=row.evaluation, log=c.log)
            | dict(bits=row.bits if math.isfinite(row.bits) else row.nominal_bits, stored=row.stored_bits)
            | dict(mib=row.model_bytes / 2**20, value=row.value * c.scale, n=row.n)
            | dict(low=(row.value - half) * c.scale, high=(row.value + half) * c.scale)
            | dict(shown=c.text(row.value, row.stderr) if row.status == "ok" else f"failed: {row.error}")
            | dict(delta="" if math.isnan(row.delta) else c.text(row.delta, row.delta_stderr, signed=True))
            | dict(notes="; ".join(f"{note} ({n} linears)" for note, n in row.notes.items()))
        )
    return found


def _json(x) -> str:
    """JSON that may stand inside a <script>."""
    text = json.dumps(plain(x), separators=(",", ":"), allow_nan=False, default=int)  # int: NumPy's integers
    return text.replace("<", "\\u003c")
