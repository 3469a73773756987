"""A table of the paper beside ours as text for a terminal."""

from qbench.printed.finding import HEADERS, KINDS
from qbench.report.quality.summary import _raised as raised
from qbench.report.reproduction.compare import Line, Reproduction
from qbench.report.reproduction.write import LEGEND, caption, lines_of, marks_of, row_marks, who_of

_SHORT = {"wikitext2_ppl": "Wiki2", "c4_ppl": "C4", "hellaswag": "HellaS", "winogrande": "WinoG"}
_SHORT |= {"zeroshot_mean": "mean"}


def to_text(t: Reproduction) -> str:
    """For a terminal, marks behind the numbers: the lines of Markdown, or of one metric a line for each row."""
    rows = _one_metric(t) if len(t.metrics) == 1 else _all_metrics(t)
    width = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    left = 1 if len(t.metrics) == 1 else 2
    table = ["  ".join(x.ljust(w) if i < left else x.rjust(w) for i, (x, w) in enumerate(zip(r, width))) for r in rows]
    feet = [f"{raised(mark)} in doubt: {KINDS[kind].title.lower()}" for kind, mark in marks_of(t).items()]
    lines = [caption(t), *t.head, "", *(line.rstrip() for line in table), "", LEGEND, *feet]
    return "\n".join(lines) + "\n"


def _all_metrics(t: Reproduction) -> list[list[str]]:
    rows = [["", "", *(_SHORT.get(m, HEADERS[m]) for m in t.metrics)]]
    for line in t.lines:
        for i, (what, cells) in enumerate(lines_of(t, line)):
            rows.append(["" if i else _name(t, line), what, *(text + raised(marks) for text, marks in cells)])
    return rows


def _one_metric(t: Reproduction) -> list[list[str]]:
    heads = list(dict.fromkeys(what for line in t.lines for what, _ in lines_of(t, line)))
    rows = [[HEADERS[t.metrics[0]], *heads]]
    for line in t.lines:
        found = {what: text + raised(marks) for what, ((text, marks),) in lines_of(t, line)}
        rows.append([_name(t, line), *(found.get(what, "") for what in heads)])
    return rows


def _name(t: Reproduction, line: Line) -> str:
    model, method, w, a = who_of(line.row)
    return f"{model} {method}" + (f" W{w}A{a}" if line.row.method != "none" else "") + raised(row_marks(t, line))
