"""The long frame as a table of the paper's shape: model, method, #W, #A, #G, then one column a metric."""

import fnmatch
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from qbench.report.columns import Column, column
from qbench.report.frame import UNQUANTIZED, canon
from qbench.report.protocol import OWN, PROTOCOLS, protocol_of
from qbench.report.rows import Cell, Row, make_rows
from qbench.report.variants import flatten, is_hash


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
    """``footnotes`` maps a mark to its text; ``protocol`` are lines that hold for the whole table."""

    spec: TableSpec
    columns: list[Column]
    rows: list[Row]
    footnotes: dict[str, str]
    protocol: list[str]
    delta: bool = False

    def choose(self, patterns: tuple[str, ...], most: int) -> list[Column]:
        """At most ``most`` of the columns that have a value, in the order of ``patterns``."""
        columns = {c.key: c for c in self.columns if any(r.cells[c.key].state != "missing" for r in self.rows)}
        return [columns[k] for k in dict.fromkeys(k for p in patterns for k in fnmatch.filter(columns, p))][:most]


def make_table(spec: TableSpec, df: pd.DataFrame, delta: bool = False) -> Table:
    """The table of ``spec``, or with ``delta`` the paired differences to the unquantized models."""
    df = spec.select(df)
    columns = [c for c in spec.resolve(df) if c.delta or not delta]
    feet, rows = _Footnotes(), [r for r in make_rows(df) if not (delta and r.method == UNQUANTIZED)]
    unpaired = {c.key for c in columns if delta and not any(_paired(r, c) for r in rows)}
    protocol, columns = _protocol(df, columns), [c for c in columns if c.key not in unpaired]
    for r in rows:
        r.marks = sorted({feet.mark(text, n) for text, n in sorted(r.notes.items())})
        r.cells = {c.key: _cell(c, r.records, delta, feet) for c in columns}
    for group in rivals(rows, lambda r: r.group_size).values():
        for c in columns:
            for cell in best([r.cells[c.key] for r in group], c, c.text):
                cell.best = True
    if unpaired:
        protocol.append(f"Left out, as nothing is paired: {', '.join(sorted(unpaired))}.")
    return Table(spec, columns, rows, feet.texts(), protocol, delta)


def _paired(r: Row, c: Column) -> bool:
    found = [r.records.get(key) for key in c.mean_of or (c.key,)]
    return all(x is not None and x["status"] == "ok" and not x["delta_note"] for x in found)


def rivals(rows: list[Row], also: Callable[[Row], object] = lambda r: None) -> dict[str, list[Row]]:
    """The rows of one model at equal weight and activation bits, and at equal ``also``."""
    groups = defaultdict(list)
    for r in rows:
        groups[f"{r.model} {r.bits:.3g} {r.act_bits} {also(r)}"].append(r)
    return groups


def best(cells: list[Cell], c: Column, text: Callable[[float], str]) -> list[Cell]:
    """The cells that print like the best finite one; none where all print alike."""
    finite = [x for x in cells if x.finite]
    if not finite:
        return []
    top = (max if c.higher_is_better else min)(x.value for x in finite)
    first = [x for x in finite if text(x.value) == text(top)]
    return first if len(first) < len(cells) else []


def _cell(c: Column, records: dict[str, dict], delta: bool, feet: "_Footnotes") -> Cell:
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


class _Footnotes:
    """Letters for texts, in the order they are met; texts that differ in their numbers only share one."""

    def __init__(self):
        self._found: dict[str, dict] = {}

    def mark(self, text: str, count: int = 0) -> str:
        key = text if text.startswith("failed") else re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
        new = {"letter": _letter(len(self._found)), "texts": set(), "counts": []}
        entry = self._found.setdefault(key, new)
        entry["texts"].add(text)
        entry["counts"].append(count)
        return entry["letter"]

    def texts(self) -> dict[str, str]:
        out = {}
        for entry in self._found.values():
            texts, low, high = sorted(entry["texts"]), min(entry["counts"]), max(entry["counts"])
            text = texts[0] if len(texts) == 1 else f"{texts[0]} … {texts[-1]}"
            if high:
                span = f"{low}" if low == high else f"{low} to {high}"
                text += f" (in {span} linear{'s' * (high > 1)} of the model)"
            out[entry["letter"]] = text
        return out


def _letter(i: int) -> str:
    return chr(97 + i) if i < 26 else _letter(i // 26 - 1) + _letter(i % 26)


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
    records = {m: s for m, s in zip(df["id"], df["science"])}
    named = Counter(protocol_of(s) for s in records.values())
    which = [f"{p} ({named[p]} records)" if len(named) > 1 else p for p in (*PROTOCOLS, OWN) if named[p]]
    lines = [f"Protocol: {', '.join(which)}."] if which else []
    lines += [f"{', '.join(sorted(evals[text], key=order.index))} by {text}." for text in sorted(evals)]
    return lines + [f"Calibration: {say(calibs[k])}." for k in sorted(calibs)]
