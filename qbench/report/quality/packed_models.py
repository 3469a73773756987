"""Tables of how quantized models run on the kernels: whether they agree with the dequantized ones, and how fast.

These say nothing of how good a model is, so no table of quality has their metrics or counts them.
"""

from dataclasses import dataclass

import pandas as pd

from qbench.render.sheet import Cell, Sheet
from qbench.report.quality.columns import METHODS, column
from qbench.report.quality.rows import bits_text, row_order
from qbench.report.quality.text import model_cell


@dataclass(frozen=True)
class KernelTable:
    """The table ``name`` of the records of one evaluation.

    ``metrics``: {metric: (header, format)}; one that is not listed gets a column behind them. ``settings``: {header:
    field of the evaluation}. ``lines`` explain the headers.
    """

    evaluation: str
    name: str
    caption: str
    metrics: dict[str, tuple[str, str]]
    settings: dict[str, str]
    lines: tuple[str, ...]


KERNEL_TABLES = (
    KernelTable(
        "agreement",
        "agreement",
        "Packed weights on the kernels against dequantized weights",
        {
            "agreement/error": ("logits", ".2g"),
            "agreement/rounding": ("one rounding", ".2g"),
            "agreement/worst_layer": ("worst linear", ".2g"),
            "agreement/top1": ("top-1, %", ".1%"),
        },
        {"dtype": "dtype", "kernels": "kernels"},
        (
            "Relative differences (root mean square) between the packed and the dequantized model. logits: of all "
            "logits. one rounding: of the logits, when noise of one rounding is added to every linear's output; up to "
            "4 times that is accepted. worst linear: of the outputs of the linear that differs most, each linear given "
            "the same input. top-1: positions at which both models name the same token as the most likely one.",
            "kernels: the GPU they ran on; interpreted: the same kernels in Triton's interpreter on a CPU.",
        ),
    ),
    KernelTable(
        "latency",
        "quantized_latency",
        "A step of decoding with quantized weights, packed",
        {
            "latency/decode_ms": ("ms", ".3g"),
            "latency/tokens_per_s": ("tokens/s", ".3g"),
            "latency/bf16_ms": ("bf16 ms", ".3g"),
            "latency/speedup": ("speed-up", ".3g"),
            "latency/floor_share": ("of the floor, %", ".1%"),
        },
        {"batch": "batch", "context": "context", "dtype": "dtype", "GPU": "gpu"},
        (
            "bf16: a step of the same decoder with bfloat16 weights, measured in the same run. of the floor: the time "
            "to read weights and cache once at the measured copy bandwidth, as a share of the step's time.",
        ),
    ),
)


def kernel_sheet(df: pd.DataFrame, table: KernelTable) -> Sheet:
    """A row per quantized model and place where the kernels ran; ``df`` is ``frame(..., kernels=True)``."""
    df = df[df["science"].map(lambda s: s["eval"]["name"]) == table.evaluation]
    others = sorted(set(df["metric"]) - {table.evaluation, *table.metrics})
    metrics = table.metrics | {key: (column(key).header, ".3g") for key in others}
    s = Sheet(table.name, table.caption, [], "llrrr" + "r" * len(metrics) + "l" * len(table.settings))
    s.head = ["Model", "Method", "#W", "#A", "#G", *(head for head, _ in metrics.values()), *table.settings]
    s.csv_head = ["model", "method", "w_bits", "a_bits", "group_size", *metrics, *table.settings.values(), "notes"]
    sizes, rows = df.groupby("model")["model_bytes"].max().fillna(0), []

    def order(part: pd.DataFrame) -> tuple:
        r = part.iloc[0]
        return (sizes[r.model], r.model, *row_order(r), str(sorted(r.science["eval"].items(), key=str)), r.error)

    for part in sorted((part for _, part in df.groupby("id")), key=order):
        r, found = part.iloc[0], dict(zip(part["metric"], part["value"]))
        failed = f"failed: {r.error}" * (r.status == "failed")
        values, settings = [*map(found.get, metrics)], [*map(r.science["eval"].get, table.settings.values())]
        s.csv_rows.append([r.model, r.method, r.bits, r.act_bits, r.group_size, *values, *settings, failed])
        shown = ["–" if v is None else f"{v:{digits}}".rstrip("%") for v, (_, digits) in zip(values, metrics.values())]
        cells = [Cell("failed", [s.mark(failed)]) for _ in metrics] if failed else map(Cell, shown)
        who = [METHODS.get(r.method, r.method), *bits_text(r)]
        rows.append([model_cell(s, r.model, r.science), *map(Cell, who), *cells])
        rows[-1] += [Cell("–" if x is None else f"{x}") for x in settings]
    s.blocks, s.lines = [("", rows)], list(table.lines)
    return s
