"""``qbench records``: lists the records of a folder, shows one, deletes it, or moves many into one file."""

import argparse
import os
import sys
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from qbench.outcomes import columns, numbers
from qbench.protocol import name_of
from qbench.record import Failure, Measurement
from qbench.records.folding import delete, fold, order
from qbench.records.page import page
from qbench.report import load
from qbench.report.quality.variants import canon, eval_labels, grid_of, method_of, quant_labels, quantization
from qbench.store import Store

FIELDS = ("model", "method", "bits", "group", "eval", "protocol")
USAGE = """
  qbench records [FOLDER] [FILTER ...]               one line per record
  qbench records [FOLDER] ID                         all of one record, with the command that measured it
  qbench records [FOLDER] ID --delete                removes it, so that it can be measured again
  qbench records [FOLDER] [FILTER ...] --fold NAME   moves single files into FOLDER/NAME.jsonl"""
ABOUT = """FOLDER is ./runs, or $QBENCH_RESULTS, where none is named. An ID may be cut short while it stays unique. A
FILTER is model=, method=, bits=, group=, eval= or protocol=, with commas between several values. eval= takes the name
of an evaluation, its data, a task or a metric, as in eval=ppl or eval=mmlu."""


@dataclass(frozen=True)
class Entry:
    """A measurement or a failure, as it is listed and found; ``json`` has its fields."""

    record: Measurement | Failure

    @cached_property
    def json(self) -> dict:
        return vars(self.record) if isinstance(self.record, Measurement) else dict(self.record)

    @cached_property
    def fields(self) -> dict[str, str]:
        """The text of each of FIELDS."""
        science = self.json["science"]
        grid, method, ev = grid_of(science), method_of(science), science["eval"]
        weights = "16" if method["name"] == "none" else grid.get("bits", "–")
        group = {-1: "row"}.get(size := grid.get("group_size", "–"), str(size))
        data = ev.get("source") or ",".join(ev.get("tasks") or ())
        bits, protocol = f"W{weights}A{(method.get('acts') or {}).get('bits', 16)}", self.json.get("protocol") or {}
        names = (science["model"]["name"], method["name"], bits, group, f"{ev['name']} {data}".strip())
        return dict(zip(FIELDS, (*names, name_of(protocol))))

    @property
    def result(self) -> str:
        """The main numbers, or the error."""
        if error := self.json.get("error"):
            return textwrap.shorten(f"failed: {error}", 80, placeholder=" ...")
        return numbers(self.json["metrics"], most=3)

    @property
    def when(self) -> str:
        return str(self.json.get("time") or self.json["provenance"].get("time", ""))[:16].replace("T", " ")

    def fits(self, filters: dict[str, str]) -> bool:
        """Whether each filter names one of this record's values."""
        known = {field: {text} for field, text in self.fields.items()}
        known["bits"].add(self.fields["bits"][1:].partition("A")[0])
        known["eval"].update(self.fields["eval"].replace(",", " ").split())
        known["eval"].update(word for key in self.json.get("metrics", ()) for word in key.split("/"))
        return all(known[field] & set(wanted.split(",")) for field, wanted in filters.items())


def main(args: list[str]) -> int:
    """Runs the command; 1 where there is no such record, 2 where the command line cannot be read."""
    parser = argparse.ArgumentParser(prog="qbench records", usage=USAGE, description=ABOUT)
    parser.add_argument("words", nargs="*", metavar="FOLDER, ID or FILTER")
    parser.add_argument("--fold", metavar="NAME")
    parser.add_argument("--delete", action="store_true")
    options = parser.parse_args(args)
    filters = dict(word.split("=", 1) for word in options.words if "=" in word)
    words = [word for word in options.words if "=" not in word]
    folders = [word for word in words if Path(word).is_dir()]
    ids = [word for word in words if word not in folders]
    store = Store(folders[0] if folders else os.environ.get("QBENCH_RESULTS", "runs"))
    try:
        if unknown := sorted(filters.keys() - set(FIELDS)):
            raise ValueError(f"there is no filter {unknown[0]}=; there are {', '.join(FIELDS)}")
        if len(folders) > 1 or len(ids) > 1 or (ids and (filters or options.fold)):
            raise ValueError(f"{' '.join(words)}: give one folder that exists, and either one ID or filters")
        if options.fold:
            path, moved = fold(store, options.fold, lambda record: not filters or Entry(record).fits(filters))
            print(f"{moved} records moved into {path}")
        elif options.delete:
            entry = find(store, *ids)
            delete(store, entry.json["id"])
            print(f"{entry.json['id']} is deleted")
        elif ids:
            print(page(store, find(store, *ids).record))
        else:
            found = [entry for entry in entries(store) if entry.fits(filters)]
            print("\n".join(lines(found)) if found else f"{store.root} holds no such record")
            return int(not found)
    except ValueError as e:
        print(f"qbench records: {e}", file=sys.stderr)
        return 2
    return 0


def entries(store: Store) -> list[Entry]:
    """All records that a report shows, in the order of folded ones; others are left out with a warning."""
    measurements, failures = load(store.root)
    found = [*map(Entry, measurements), *map(Entry, failures)]
    return sorted(found, key=lambda entry: order(entry.json))


def find(store: Store, id: str = "") -> Entry:
    """The one record whose id starts with ``id``; ValueError where there is none, or several."""
    found = [entry for entry in entries(store) if id and entry.json["id"].startswith(id)]
    if len(found) != 1:
        several = ", ".join(entry.json["id"] for entry in found[:5])
        raise ValueError(f"{id or 'no ID'}: {f'several records, {several}' if found else f'no record in {store.root}'}")
    return found[0]


def lines(found: list[Entry]) -> list[str]:
    """A head and one line per record, in aligned columns."""
    df = pd.DataFrame({"science": [entry.json["science"] for entry in found]})
    df["model"], df["metric"] = ([entry.fields[key] for entry in found] for key in ("model", "eval"))
    labels = zip(df["science"].map(lambda s: canon(quantization(s))).map(quant_labels(df["science"])), eval_labels(df))
    rows = [("id", *FIELDS, "result", "measured", "differs in")]
    for entry, pair in zip(found, labels):
        differs = ", ".join(filter(None, pair))
        rows.append((entry.json["id"], *entry.fields.values(), entry.result, entry.when, differs))
    return ["  ".join(row).rstrip() for row in columns(rows, left=len(rows[0]))]
