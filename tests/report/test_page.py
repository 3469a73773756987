"""index.html holds all records, also hostile ones, and works in a browser without a network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes.report_records import study

from qbench.report import load
from qbench.report.page import write_page
from qbench.store import Store

BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = study(tmp_path_factory.mktemp("study"), models=("nano-m", "nano-s"), bits=(4, 3, 1))
    failed = next(iter(Store(root).failures()))
    Store(root).put_failure(failed["id"], failed["science"], ValueError("</script><b id=injected>"), "Traceback ...")
    return write_page(*load(root), root / "index.html")


def embedded(page, name):
    return json.loads(re.search(rf'id="data-{name}">(.*?)</script>', page.read_text())[1])


def test_every_value_and_every_record_is_in_it(page):
    measurements, failures = load(page.parent)
    assert set(embedded(page, "records")) == {m.id for m in measurements} | {f["id"] for f in failures}
    rows = {(row["id"], row["metric"]): row for row in embedded(page, "rows")}
    assert len(rows) == sum(len(m.metrics) for m in measurements) + sum(
        r["shown"].startswith("failed") for r in rows.values()
    )
    (worst,) = {m.id for m in measurements if m.science["method"]["name"] == "smoothquant" and m.nominal_bits == 1
                and m.science["model"]["name"] == "nano-s" and "nano/ppl" in m.metrics}  # fmt: skip
    row = rows[worst, "nano PPL ↓"]
    assert (row["value"], row["shown"]) == ("nan", "nan")
    first = measurements[0]
    metric = next(iter(first.metrics.values()))
    row = next(row for (id, _), row in rows.items() if id == first.id and row["n"] == metric.n)
    assert row["model"] == first.science["model"]["name"]
    assert [row["model"] for row in rows.values()] == sorted((r["model"] for r in rows.values()), reverse=True)


def test_nothing_is_loaded_from_elsewhere_and_errors_are_text(page):
    text = page.read_text()
    assert "<b id=injected>" not in text
    assert not re.search(r"<(script|link)[^>]+(src|href)=", text)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome to open the page in")
def test_in_a_browser(page):
    id = load(page.parent)[0][0].id
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    command = [
        BROWSER,
        *options,
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
        f"--user-data-dir={page.parent / 'profile'}",
        f"{page.as_uri()}#{id}",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown, total, records = map(int, re.search(r"(\d+) of (\d+) values, (\d+) records", dom).groups())
    assert (total, records) == (len(embedded(page, "rows")), len(embedded(page, "records")))
    assert 0 < shown == dom.split('<tbody id="rows">')[1].split("</tbody>")[0].count("<tr")
    assert dom.count('aria-roledescription="point"') > 10
    assert f"Record {id}" in dom


def test_the_committed_page_has_the_committed_records():
    results = Path(__file__).parents[2] / "results"
    measurements, failures = load(results)
    ids = {m.id for m in measurements} | {f["id"] for f in failures}
    assert set(embedded(results / "index.html", "records")) == ids, "run qbench report results"
