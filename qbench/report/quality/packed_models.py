"""Records of how a quantized model runs on the kernels: whether it agrees with the dequantized one, and how fast it is.

They say nothing of how good a model is, so no table of quality has their metrics or counts them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from qbench.record import Measurement
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import write
from qbench.report.quality.columns import METHODS, method_order
from qbench.report.quality.variants import method_of


def short(value: float) -> str:
    return f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


@dataclass(frozen=True)
class Kind:
    """Records whose evaluation has this ``name``: {metric: (column, how it is shown)}, {column: field of the
    evaluation}, and what to know of them."""

    name: str
    table: str
    title: str
    metrics: dict[str, tuple[str, Callable[[float], str]]]
    settings: dict[str, str]
    lines: tuple[str, ...]


KINDS = (
    Kind(
        "agreement",
        "agreement",
        "Packed weights on the kernels against dequantized weights",
        {
            "agreement/error": ("logits", "{:.2g}".format),
            "agreement/rounding": ("one rounding", "{:.2g}".format),
            "agreement/worst_layer": ("worst linear", "{:.2g}".format),
            "agreement/top1": ("top-1, %", percent),
        },
        {"dtype": "dtype", "kernels": "kernels"},
        (
            "Relative differences (root mean square) of all logits, and of the outputs of the linear that differs "
            "most, each linear on the same input; top-1: positions at which both name the same token. One rounding: "
            "what noise of one rounding at every linear's output does to the logits; up to 4 times that is accepted.",
            "kernels: the GPU they ran on, or interpreted: the same kernels in Triton's interpreter on a CPU.",
        ),
    ),
    Kind(
        "latency",
        "quantized_latency",
        "A step of decoding with quantized weights, packed",
        {
            "latency/decode_ms": ("ms", short),
            "latency/tokens_per_s": ("tokens/s", short),
            "latency/bf16_ms": ("bf16 ms", short),
            "latency/speedup": ("speed-up", short),
            "latency/floor_share": ("of the floor, %", percent),
        },
        {"batch": "batch", "context": "context", "dtype": "dtype", "GPU": "gpu"},
        (
            "bf16: a step of the same decoder with bfloat16 weights, measured in the same run. The floor is what "
            "reading weights and cache takes at the measured copy bandwidth.",
        ),
    ),
)


def write_of_kernels(measurements: list[Measurement], failures: list[dict], out: Path) -> list[Path]:
    """``out``/tables/agreement and quantized_latency, as csv, md and tex, where there are records. The paths."""
    written = []
    for kind in KINDS:
        s = sheet(measurements, failures, kind)
        if s.csv_rows:
            written += write(s, out / "tables")
    return written


def sheet(measurements: Iterable[Measurement], failures: Iterable[dict] = (), kind: Kind = KINDS[0]) -> Sheet:
    """A row a quantized model and a place the kernels ran, in the order of the other tables."""
    s = Sheet(kind.table, kind.title, [], "llrrr" + "r" * len(kind.metrics) + "l" * len(kind.settings))
    s.head = ["Model", "Method", "#W", "#A", "#G", *(head for head, _ in kind.metrics.values()), *kind.settings]
    s.csv_head = ["model", "method", "w_bits", "a_bits", "group_size", *kind.metrics, *kind.settings.values(), "notes"]
    done, rows = set(), []
    for m in measurements:
        if _is(kind, m.science):
            done.add(m.id)
            rows.append((m.science, {k: x.value for k, x in m.metrics.items()}, m.model_bytes, ""))
    rows += [
        (f["science"], {}, 0, f"failed: {f['error'].strip().splitlines()[0]}")
        for f in failures
        if _is(kind, f["science"]) and f["id"] not in done
    ]
    sizes: dict[str, int] = {}
    for science, _, size, _ in rows:
        sizes[science["model"]["name"]] = max(size, sizes.get(science["model"]["name"], 0))
    table = []
    for science, values, _, failed in sorted(rows, key=lambda r: (sizes[r[0]["model"]["name"]], _order(r[0]), r[3])):
        settings, name = [science["eval"].get(key) for key in kind.settings.values()], science["model"]["name"]
        method, bits, acts, group = _who(science)
        found = [values.get(k) for k in kind.metrics]
        s.csv_rows.append([name, method, bits, acts, group, *found, *settings, failed])
        shown = [
            Cell("failed", [s.mark(failed)]) if failed else Cell("–" if v is None else text(v))
            for (_, text), v in zip(kind.metrics.values(), found)
        ]
        size = "–" if group is None else "row" if group < 0 else f"{group}"
        who = [name, METHODS.get(method, method), "–" if bits is None else f"{bits}", f"{acts}", size]
        table.append([*map(Cell, who), *shown, *(Cell("–" if x is None else f"{x}") for x in settings)])
    s.blocks, s.lines = [("", table)], list(kind.lines)
    return s


def _is(kind: Kind, science: dict) -> bool:
    return (science.get("eval") or {}).get("name") == kind.name


def _who(science: dict) -> tuple[str, int | None, int, int | None]:
    method, grid = method_of(science), science.get("grid") or {}
    acts = (method.get("acts") or {}).get("bits", 16)
    return method["name"], grid.get("bits"), acts, grid.get("group_size")


def _order(science: dict) -> tuple:
    method, bits, acts, group = _who(science)
    name = science["model"]["name"]
    return (name, *method_order(method), -(bits or 0), -acts, group or 0, str(sorted(science["eval"].items(), key=str)))
