"""A table of the paper beside ours as a sheet of text cells."""

import math
from itertools import groupby

from qbench.printed.published import DOUBTS, HEADERS, METRICS, NAMES, PERPLEXITIES
from qbench.render.sheet import Cell, Sheet
from qbench.report.reproduction.compare import Against, Line, Reproduction
from qbench.report.reproduction.measured_cells import Ours

CAPTIONS = {
    1: "base models, one scale per row",
    2: "post-trained models, one scale per row",
    3: "base models, groups of 128",
    4: "post-trained models, groups of 128",
}
LEGEND = (
    "Accuracies in per cent. ours: ± one standard error over the items. Δ: ours − printed. * marks a Δ that rounding "
    "and our standard error do not explain: for an unquantized model one beyond half a unit of the last printed "
    "digit, for a quantized model one beyond twice our standard error and the rounding together. Print and ours use "
    "the same items, so a quantized Δ without a mark does not prove agreement; the print does not say how much "
    "another sample of calibration data changes a number. Where the printed mean is not the mean of the six tasks, Δ "
    "is to the recomputed mean."
)
CSV = ["table", "protocol", "model", "method", "w_bits", "a_bits", "group_size", "metric", "printed", "reference"]
CSV += ["ours", "stderr", "difference", "tolerance", "beyond", "doubts"]
CSV += ["other_printed", "other_difference", "other_beyond"]  # the same cell as printed under the other group size


def sheet(t: Reproduction) -> Sheet:
    """Up to five rows per printed row: printed, ours, the difference, and the same for the other group size."""
    caption = f"Table {t.table} of arXiv 2505.02214v1 and ours: {CAPTIONS[t.table]}. Protocol: {t.protocol}"
    head = ["Model", "Method", "#W", "#A", "", *(HEADERS[m] + (" ↓" if m in PERPLEXITIES else " ↑") for m in METRICS)]
    s = Sheet(t.name, caption, head, "llrrl" + "r" * len(METRICS), lines=[*t.notes, LEGEND], csv_head=CSV)
    s.csv_rows = [_csv_row(t, line, metric) for line in t.lines for metric in METRICS]
    letters = {kind: s.mark(f"in doubt: {DOUBTS[kind].lower()}.") for kind in t.doubts}
    rows = [(line, *_parts(line, letters)) for line in t.lines]
    for _, same_model in groupby(rows, lambda row: row[0].row.model):
        block = []
        for _, who, parts in same_model:
            block += [(who if k == 0 else [Cell("")] * 4) + [Cell(part), *parts[part]] for k, part in enumerate(parts)]
        s.blocks.append(("", block))
    return s


def _parts(line: Line, letters: dict[str, str]) -> tuple[list[Cell], dict[str, list[Cell]]]:
    """Model, method, #W and #A of a printed row, and what is known of it: by name, one cell per metric.

    A doubt about the whole row is marked at its method and not again at its cells.
    """

    def printed(cells: dict[str, Against]) -> tuple[list[str], list[Cell]]:
        whole = set.intersection(*(set(a.doubts) for a in cells.values()))
        marks = {m: [letter for k, letter in letters.items() if k in set(cells[m].doubts) - whole] for m in METRICS}
        at_method = [letter for kind, letter in letters.items() if kind in whole]
        return at_method, [Cell(cells[m].text, marks[m]) for m in METRICS]

    r = line.row
    marks, shown = printed(line.printed)
    out = {"printed": shown}
    if line.ours:
        out["ours"] = [Cell(_ours(m, line.ours.get(m))) for m in METRICS]
        out["Δ"] = [_difference(m, line.printed[m]) for m in METRICS]
    if line.ours and line.other_row:
        name = line.other_row.grouping
        out[f"printed {name} (Table {line.other_row.table})"] = printed(line.other)[1]
        out[f"Δ {name}"] = [_difference(m, line.other[m]) for m in METRICS]
    return [Cell(r.size), Cell(NAMES[r.method], marks), Cell(f"{r.w_bits:g}"), Cell(str(r.a_bits))], out


def _ours(metric: str, ours: Ours | None) -> str:
    if ours is None or ours.failed:
        return "failed" if ours else "–"
    text = _like_print(metric, ours.value)
    digits = len(text.partition(".")[2])
    return f"{text} ± {ours.stderr:.{digits}f}" if math.isfinite(ours.stderr) and "e" not in text else text


def _difference(metric: str, a: Against) -> Cell:
    if math.isnan(a.difference):
        return Cell("–")
    sign = "−" if a.difference < 0 else "+"
    return Cell(sign + _like_print(metric, abs(a.difference)), ["*"] * a.beyond)


def _like_print(metric: str, value: float) -> str:
    """With one digit more than the print: 4 significant digits of a perplexity, 2 decimals of an accuracy."""
    if not math.isfinite(value):
        return str(value)
    if metric not in PERPLEXITIES:
        return f"{value:.2f}"
    if value >= 1e4:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def _csv_row(t: Reproduction, line: Line, metric: str) -> list:
    """One printed cell and all that is known of it."""
    r, a, ours, b = line.row, line.printed[metric], line.ours.get(metric), line.other.get(metric)
    value = ours and ("failed" if ours.failed else "nan" if math.isnan(ours.value) else ours.value)
    group = "" if r.method == "none" else r.group_size or "per-row"
    row = [t.table, t.protocol, r.model, r.method, f"{r.w_bits:g}", r.a_bits, group, metric, a.text, a.reference]
    row += [value, ours and ours.stderr, a.difference, a.tolerance, _beyond(a), " ".join(a.doubts)]
    return [*row, *([b.text, b.difference, _beyond(b)] if b else [None] * 3)]


def _beyond(a: Against) -> str:
    return "" if math.isnan(a.difference + a.tolerance) else "yes" if a.beyond else "no"
