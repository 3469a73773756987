"""A table of the paper beside ours, as csv, Markdown and LaTeX; same records, same bytes."""

import csv
import io
import math

from qbench.printed.finding import HEADERS, KINDS, NAMES, short
from qbench.printed.published import PERPLEXITIES, Printed
from qbench.render.escape import tex
from qbench.report.reproduction.compare import Against, Line, Ours, Reproduction

CAPTIONS = {
    1: "Base models, one scale a row",
    2: "Post-trained models, one scale a row",
    3: "Base models, groups of 128",
    4: "Post-trained models, groups of 128",
}
LEGEND = (
    "Accuracies in per cent. ours: ± one standard error over the items; Δ: ours − printed. * marks a Δ of an "
    "unquantized model beyond the rounding of the print (half a unit of its last digit), and one of a quantized model "
    "beyond twice our standard error and the rounding. Print and ours share their items, so that a quantized Δ without "
    "a mark is no proof of agreement; how far another draw of calibration data moves it, the print does not tell. The "
    "Δ of a mean that is not the mean of the six is to the recomputed one."
)


CSV = ("table", "protocol", "model", "method", "w_bits", "a_bits", "group_size", "metric", "printed", "reference")
CSV += ("ours", "stderr", "difference", "tolerance", "beyond", "doubts")
CSV += ("other_printed", "other_difference", "other_beyond")


def to_csv(t: Reproduction) -> str:
    """One line a printed cell; ``other_*`` is the same cell as printed under the other group size."""
    out = io.StringIO()
    w = csv.writer(out, lineterminator="\n")
    w.writerow(CSV)
    for line in t.lines:
        r = line.row
        who = [t.table, t.protocol, r.model, r.method, f"{r.w_bits:g}", r.a_bits, _group(r)]
        for m in t.metrics:
            a, ours, b = line.printed[m], line.ours.get(m), (line.other or {}).get(m)
            mine = [_ours_csv(ours), _number(ours.stderr) if ours else ""]
            apart = [_number(a.difference), _number(a.tolerance), _beyond(a)]
            other = [b.text, _number(b.difference), _beyond(b)] if b else ["", "", ""]
            w.writerow([*who, m, a.text, _number(a.reference), *mine, *apart, " ".join(a.doubts), *other])
    return out.getvalue()


def to_markdown(t: Reproduction) -> str:
    """Up to five lines a row: printed, ours, their difference, and the print under the other group size."""
    heads = [HEADERS[m] + (" ↓" if m in PERPLEXITIES else " ↑") for m in t.metrics]
    lines = [f"**{caption(t)}**", "", *(f"- {line}" for line in t.head), ""]
    lines.append(f"| {' | '.join(['Model', 'Method', '#W', '#A', '', *heads])} |")
    lines.append("|" + "---|" * 2 + "---:|" * 2 + "---|" + "---:|" * len(heads))
    for line in t.lines:
        for i, (what, cells) in enumerate(lines_of(t, line)):
            who = who_of(line.row) if i == 0 else [""] * 4
            who[1] += f"<sup>{row_marks(t, line)}</sup>" if i == 0 and row_marks(t, line) else ""
            shown = [text + (f"<sup>{marks}</sup>" if marks else "") for text, marks in cells]
            lines.append(f"| {' | '.join([*who, what, *shown])} |")
    feet = [
        LEGEND,
        *(f"<sup>{mark}</sup> in doubt: {KINDS[kind].title.lower()}." for kind, mark in marks_of(t).items()),
    ]
    return "\n".join([*lines, "", *(f"- {foot}" for foot in feet)]) + "\n"


def to_latex(t: Reproduction) -> str:
    """A longtable that breaks over pages; needs booktabs, longtable and, for its width, a landscape page."""
    head = ["Model", "Method", "\\#W", "\\#A", "", *(tex(HEADERS[m].removesuffix(" PPL")) for m in t.metrics)]
    head = " & ".join(head) + r" \\"
    lines = [
        r"% \usepackage{booktabs,longtable}",
        r"\begingroup\scriptsize\setlength{\tabcolsep}{3pt}",
        r"\begin{longtable}{llrrl" + "r" * len(t.metrics) + "}",
        rf"\caption{{{tex(caption(t))}}}\label{{tab:{t.name}}}\\",
        *(r"\toprule", head, r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
    ]
    last = t.lines[0].row.model
    for line in t.lines:
        lines += [r"\midrule"] * (line.row.model != last)
        last = line.row.model
        for i, (what, cells) in enumerate(lines_of(t, line)):
            who = [tex(x) for x in who_of(line.row)] if i == 0 else [""] * 4
            who[1] += f"$^{{{row_marks(t, line)}}}$" if i == 0 and row_marks(t, line) else ""
            shown = [tex(text) + (f"$^{{{marks}}}$" if marks else "") for text, marks in cells]
            lines.append(" & ".join([*who, tex(what), *shown]) + r" \\")
    feet = [*map(tex, (*t.head, LEGEND))]
    feet += [f"$^{{{mark}}}$ in doubt: {tex(KINDS[kind].title.lower())}." for kind, mark in marks_of(t).items()]
    return "\n".join([*lines, r"\end{longtable}", r"\noindent " + "\\\\\n".join(feet), r"\par\endgroup"]) + "\n"


def caption(t: Reproduction) -> str:
    return f"Table {t.table} as printed (arXiv 2505.02214v1) and ours: {CAPTIONS[t.table]}. Protocol: {t.protocol}"


def lines_of(t: Reproduction, line: Line) -> list[tuple[str, list[tuple[str, str]]]]:
    """(what, cells as (text, marks)) of each line of a row; those without a number are not there."""
    out = [("printed", [(line.printed[m].text, _doubt(t, line.printed, m)) for m in t.metrics])]
    if line.ours:
        out.append(("ours", [(_ours(m, line.ours.get(m), line.printed[m]), "") for m in t.metrics]))
        out.append(("Δ", [_difference(m, line.printed[m]) for m in t.metrics]))
    if line.ours and line.other:
        r = line.other_row
        name = "per row" if r.group_size is None else f"g{r.group_size}"
        cells = [(line.other[m].text, _doubt(t, line.other, m)) for m in t.metrics]
        out.append((f"printed {name} (Table {r.table})", cells))
        out.append((f"Δ {name}", [_difference(m, line.other[m]) for m in t.metrics]))
    return out


def marks_of(t: Reproduction) -> dict[str, str]:
    """A letter for each kind of finding in the table."""
    return {kind: chr(97 + i) for i, kind in enumerate(t.doubts)}


def _doubt(t: Reproduction, cells: dict[str, Against], metric: str) -> str:
    """The marks of a cell, without those of its whole row."""
    return ",".join(mark for kind, mark in marks_of(t).items() if kind in set(cells[metric].doubts) - _whole(cells))


def row_marks(t: Reproduction, line: Line) -> str:
    """The marks of a whole printed row."""
    return ",".join(mark for kind, mark in marks_of(t).items() if kind in _whole(line.printed))


def _whole(cells: dict[str, Against]) -> set[str]:
    """The kinds that doubt every cell of a row."""
    return set.intersection(*(set(a.doubts) for a in cells.values())) if len(cells) > 1 else set()


def _ours(metric: str, ours: Ours | None, a: Against) -> str:
    if ours is None:
        return "–"
    if ours.failed:
        return "failed"
    text = _like_print(metric, ours.value)
    if not math.isfinite(ours.stderr) or "e" in text:
        return text
    return f"{text} ± {ours.stderr:.{len(text.partition('.')[2])}f}"


def _difference(metric: str, a: Against) -> tuple[str, str]:
    if math.isnan(a.difference):
        return "–", ""
    text = _like_print(metric, abs(a.difference))
    return ("−" if a.difference < 0 else "+") + text, "*" * a.beyond


def _like_print(metric: str, value: float) -> str:
    """With one digit more than the print: perplexities 4 significant digits, accuracies 2 decimals."""
    if not math.isfinite(value):
        return str(value)
    if metric not in PERPLEXITIES:
        return f"{value:.2f}"
    if value >= 1e4:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:.{max(0, 2 if value < 100 else 1 if value < 1000 else 0)}f}"


def who_of(row: Printed) -> list[str]:
    """Model, method, #W and #A as printed."""
    return [short(row.model), NAMES[row.method], f"{row.w_bits:g}", str(row.a_bits)]


def _group(row: Printed) -> str:
    if row.method == "none":
        return ""
    return "per-row" if row.group_size is None else str(row.group_size)


def _ours_csv(ours: Ours | None) -> str:
    return "" if ours is None else "failed" if ours.failed else _number(ours.value) or "nan"


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.6g}"


def _beyond(a: Against) -> str:
    return "" if math.isnan(a.difference) or math.isnan(a.tolerance) else "yes" if a.beyond else "no"
