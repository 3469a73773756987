"""The long frame as a table of the paper's shape: model, method, #W, #A, #G, then one column a metric."""

import fnmatch
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pandas as pd

from qbench.protocol import NOT_STORED, OWN, PROTOCOLS
from qbench.render.footnotes import Footnotes
from qbench.report.quality.columns import Column, column
from qbench.report.quality.rows import Cell, Row, make_rows
from qbench.report.quality.variants import UNQUANTIZED, canon, flatten, is_hash


@dataclass(frozen=True)
class TableSpec:
    """One family of tables and figures: a table of the paper is one of these.

    ``keep`` takes a science dict. ``columns`` are metric keys, globs over them or ``Column``s; a glob stands
    for the metrics that exist, a plain key keeps its column even without a record. ``summary`` and
    ``figures`` choose among them (by globs) for the compact table and the panels of the figures; without
    them there is none. ``delta``: whether the table of paired differences is written.
    """

    name: str
    caption: str
    keep: Callable[[dict], bool]
    columns: tuple[str | Column, ...]
    summary: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    delta: bool = True

    def select(self, df: pd.DataFrame) -> pd.DataFrame:
        return df[[self.keep(s) for s in df["science"]]] if len(df) else df

    def resolve(self, df: pd.DataFrame) -> list[Column]:
        """The columns that the spec's patterns stand for among the metrics of ``df``."""
        found, out = sorted(set(df["metric"]) - {""}), {}
        for p in self.columns:
            if isinstance(p, Column):
                out.setdefault(p.key, p)
            else:
                for key in fnmatch.filter(found, p) if set("*?[") & set(p) else [p]:
                    out.setdefault(key, column(key))
        return list(out.values())


@dataclass
class Table:
    """``footnotes`` maps a mark to its text; ``protocol`` are lines that hold for the whole table.

    ``chosen`` is of ``one_evaluation``: {metric: (the evaluation that is shown, {others: their records})}.
    """

    spec: TableSpec
    columns: list[Column]
    rows: list[Row]
    footnotes: dict[str, str]
    protocol: list[str]
    delta: bool = False
    chosen: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)

    def left_out(self, columns: list[Column]) -> list[str]:
        """Which evaluations of ``columns`` this view shows and leaves out."""
        texts = defaultdict(list)
        for c in columns:
            if c.key in self.chosen:
                how, others = self.chosen[c.key]
                lost = ", ".join(f"{n} record{'s' * (n > 1)} by {other}" for other, n in sorted(others.items()))
                texts[f"by {how}; left out: {lost}, which are in tables/{self.spec.name}.md"].append(c.header)
        return [f"{', '.join(headers)} {text}" for text, headers in texts.items()]

    def choose(self, patterns: tuple[str, ...], most: int) -> list[Column]:
        """At most ``most`` of the columns that have a value, in the order of ``patterns``."""
        columns = {c.key: c for c in self.columns if any(r.cells[c.key].state != "missing" for r in self.rows)}
        return [columns[k] for k in dict.fromkeys(k for p in patterns for k in fnmatch.filter(columns, p))][:most]


def make_table(spec: TableSpec, df: pd.DataFrame, delta: bool = False) -> Table:
    """The table of ``spec``, or with ``delta`` the paired differences to the unquantized models."""
    df, unpaired = spec.select(df), []
    columns = spec.resolve(df)
    if delta:
        paired = df[(df["status"] == "ok") & (df["delta_note"] == "") & (df["method"] != UNQUANTIZED)]
        comparable, paired = [c for c in columns if c.delta], set(paired["metric"])
        columns = [c for c in comparable if paired.issuperset(c.mean_of or (c.key,))]
        unpaired = sorted({c.key for c in comparable} - {c.key for c in columns})
    shown = {"", *(key for c in columns for key in c.mean_of or (c.key,))}
    feet, rows = Footnotes(), make_rows(df[df["metric"].isin(shown)])
    rows = [r for r in rows if not (delta and r.method == UNQUANTIZED)]
    protocol = _protocol(df, columns)
    for r in rows:
        r.marks = sorted({feet.mark(text, n) for text, n in sorted(r.notes.items())})
        r.cells = {c.key: _cell(c, r.records, delta, feet) for c in columns}
    for c in columns:
        for cell in winners(rows, c, c.text, lambda r: r.group_size):
            cell.best = True
    if unpaired:
        protocol.append(f"Left out, as nothing is paired: {', '.join(unpaired)}.")
    return Table(spec, columns, rows, feet.texts(), protocol, delta)


def one_evaluation(t: Table) -> Table:
    """``t`` with one row per quantization, for views that have no room for several evaluations of a metric.

    Of those the one with the most rows is kept, among equals the one over the most items; ``chosen`` names the rest.
    """
    size = {r.how: (0, 0.0) for r in t.rows}
    for r in t.rows:
        items = [x["n"] for x in r.records.values() if x["how"] and x["status"] == "ok"]
        if items:
            size[r.how] = (size[r.how][0] + 1, max(size[r.how][1], *items))
    chosen = {}
    for c in t.columns:
        ids = defaultdict(set)
        for x in (x for r in t.rows for x in r.found(c) if x["how"]):
            ids[x["how"]].add(x["id"])
        if ids:
            how = max(ids, key=lambda how: (size[how], how))
            chosen[c.key] = (how, {other: len(found) for other, found in ids.items() if other != how})
    rows: dict[str, Row] = {}
    for r in t.rows:
        row = rows.setdefault(r.quant, replace(r, how="", cells={c.key: Cell() for c in t.columns}, records={}))
        for c in t.columns:
            if c.key not in chosen or r.how == chosen[c.key][0]:
                row.cells[c.key] = r.cells[c.key]
                row.records |= {x["metric"]: x for x in r.found(c)}
    return replace(t, rows=list(rows.values()), chosen={k: v for k, v in chosen.items() if v[1]})


def winners(
    rows: list[Row], c: Column, text: Callable[[float], str], also: Callable[[Row], object] = lambda r: None
) -> list[Cell]:
    """The cells of ``c`` that are ``best`` among their rivals: one model, equal weight and activation bits, equal
    ``also``, and the same calibration and evaluation."""
    rivals = defaultdict(list)
    for r in rows:
        if found := r.found(c):
            science = found[0]["science"]
            same = (canon(science["model"]), canon(science.get("calib")), *(x["how"] for x in found))
            rivals[f"{r.bits:.3g}", r.act_bits, str(also(r)), *same].append(r.cells[c.key])
    return [cell for cells in rivals.values() for cell in best(cells, c, text)]


def best(cells: list[Cell], c: Column, text: Callable[[float], str]) -> list[Cell]:
    """The cells that print like the best finite one; none where all print alike."""
    finite = [x for x in cells if x.finite]
    if not finite:
        return []
    top = (max if c.higher_is_better else min)(x.value for x in finite)
    first = [x for x in finite if text(x.value) == text(top)]
    return first if len(first) < len(cells) else []


def _cell(c: Column, records: dict[str, dict], delta: bool, feet: Footnotes) -> Cell:
    if c.mean_of:
        parts = [_cell(column(key), records, delta, feet) for key in c.mean_of]
        state = next((s for s in ("failed", "missing") if any(p.state == s for p in parts)), "ok")
        stderr = math.sqrt(sum(p.stderr**2 for p in parts)) / len(parts)
        return Cell(state, sum(p.value for p in parts) / len(parts), stderr)
    r = records.get(c.key) or records.get("")
    if r is None:
        return Cell()
    if r["status"] == "failed":
        return Cell("failed", marks=[feet.mark(f"failed: {r['error']}")])
    if not delta:
        return Cell("ok", r["value"], r["stderr"])
    if r["delta_note"]:
        return Cell(marks=[feet.mark(f"no paired difference: {r['delta_note']}")])
    return Cell("ok", r["delta"], r["delta_stderr"])


def _protocol(df: pd.DataFrame, columns: list[Column]) -> list[str]:
    """One line for each evaluation and calibration in use: its columns and fields, digests shortened."""

    def say(d: dict) -> str:
        short = {k: f"{len(v)} items" if isinstance(v, dict | list) and len(v) > 3 else v for k, v in d.items()}
        fields = sorted((k, v) for k, v in flatten(short).items() if k != "name" and v is not None)
        return ", ".join(f"{k}={v[:8] if is_hash(v) else v}" for k, v in fields)

    headers = {k: c.header for c in columns for k in (c.mean_of or (c.key,))}
    evals, calibs = defaultdict(set), {}
    for metric, science in zip(df["metric"], df["science"]):
        if science.get("calib"):
            calibs[canon(science["calib"])] = science["calib"]
        if metric in headers and science.get("eval"):
            evals[f"{science['eval'].get('name', 'eval')}: {say(science['eval'])}"].add(headers[metric])
    order = list(headers.values())
    named = Counter(dict(zip(df["id"], df["protocol"])).values())
    which = [f"{p} ({named[p]} records)" if len(named) > 1 else p for p in (*PROTOCOLS, OWN, NOT_STORED) if named[p]]
    lines = [f"Protocol: {', '.join(which)}."] if which else []
    lines += [f"{', '.join(sorted(evals[text], key=order.index))} by {text}." for text in sorted(evals)]
    return lines + [f"Calibration: {say(calibs[k])}." for k in sorted(calibs)]
