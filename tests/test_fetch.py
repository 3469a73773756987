"""The paper's data through the real clients: fetched from a small Hub, read offline, and what a broken Hub gives."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from fakes import forked
from fakes.hub_data import add_data_sets
from fakes.hub_server import Hub
from huggingface_hub import constants
from transformers import AutoTokenizer

import qbench.nano
from qbench.data import corpus as data
from qbench.data.corpus import Calibration, Corpus
from qbench.data.sources import PINS, connect, pinned
from qbench.measure.lm_eval.local_files import pinned_data_sets

NANO = Path(qbench.nano.__file__).parent / "models" / "nano-s"
SWEEP = ["model=qwen3-0.6b", "method=rtn", "calib.n=4", "calib.length=64", "eval=paper", "eval.mmlu.limit=1"]
SWEEP += ["eval.mmlu.num_fewshot=1", "eval.zeroshot.limit=2"]
SWEEP += [f"eval.{text}.{field}" for text in ("wikitext2", "c4") for field in ("window=128", "limit=2")]
READ = """
import datasets
from qbench.measure.lm_eval.local_files import pinned_data_sets
with pinned_data_sets(None) as commits:
    print(len(datasets.load_dataset("org/set")["train"]), *commits.values())
"""


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        add_data_sets(hub)
        hub.add("models", "Qwen/Qwen3-0.6B", NANO)
        yield hub


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """This process takes ``hub`` for the Hub, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 5)
    connect.cache_clear()
    yield monkeypatch
    connect.cache_clear()


def test_the_papers_evaluations_run_offline_after_a_fetch(hub, client, tmp_path):
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        client.setattr(constants, name, 20)
    ours = dict(QBENCH_CACHE=str(tmp_path / "kept"), QBENCH_RESULTS=str(tmp_path / "results"))
    said = forked.qbench("fetch", *SWEEP, cwd=tmp_path, env=os.environ | ours)
    assert said.returncode == 0, said.stderr
    assert "Qwen/Qwen3-0.6B" in said.stdout
    assert f"cais/mmlu                           {PINS['cais/mmlu'][0][:8]}  114 files" in said.stdout
    before = len(hub.requests)
    offline = hub.environment(tmp_path, HF_HUB_CACHE=constants.HF_HUB_CACHE, HF_HUB_OFFLINE="1", **ours)
    command = [sys.executable, "-m", "qbench.cli", "run", *SWEEP]
    done = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(hub.requests) == before
    records = [json.loads(file.read_text()) for file in (tmp_path / "results/measurements").glob("*.json")]
    assert len(records) == 4
    assert {repo: commit for r in records for repo, commit in r["science"]["eval"]["data_sets"].items()} == {
        repo: commit for repo, (commit, _) in PINS.items() if repo != "EleutherAI/wikitext_document_level"
    }
    calibrated = [r["provenance"]["calib_data"] for r in records if "calib_data" in r["provenance"]]
    assert calibrated == [{"allenai/c4": PINS["allenai/c4"][0]}] * 4
    again = forked.qbench("fetch", "--dry-run", *SWEEP, cwd=tmp_path, env=os.environ | ours)
    assert "To download: 0.0 MiB" in again.stdout


def test_texts_online_then_offline(client, tokenizer):
    def tokens():
        c4 = Calibration("c4", n=4, length=64).tokens(tokenizer).tolist()
        return c4, Corpus("c4").tokens(tokenizer).tolist(), Corpus("wikitext2").tokens(tokenizer).tolist()

    found = tokens()
    client.setattr(constants, "HF_HUB_OFFLINE", True)
    data._tokens.cache_clear()
    assert tokens() == found
    with pytest.raises(FileNotFoundError, match=r"wikitext at revision b086.* HF_HUB_OFFLINE is set; .*fetch`"):
        Calibration("wikitext2", n=4, length=64).tokens(tokenizer)


def test_a_training_split_is_downloaded_for_examples_only(hub, client):
    with pinned_data_sets(None) as commits:
        found = datasets.load_dataset("baber/piqa")
        assert (len(found["train"]), len(found["validation"])) == (0, 5)
    with pinned_data_sets(None, shots=1):
        assert len(datasets.load_dataset("baber/piqa")["train"]) == 5
    assert commits == {"baber/piqa": PINS["baber/piqa"][0]}


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [
        ((401, "GatedRepo"), PermissionError, "accept its licence at .*/datasets/baber/piqa, then run `hf auth login`"),
        ((404, "RevisionNotFound"), FileNotFoundError, "dataset baber/piqa has no revision 142f6d7367fd"),
    ],
)
def test_what_the_hub_refuses(hub, client, refuse, error, message):
    client.setattr(hub.repos["datasets", "baber/piqa"], "refuse", refuse)
    with pytest.raises(error, match=message):
        pinned("baber/piqa", "validation").get()


@pytest.mark.parametrize("fault", ["drop", "stall"])
def test_a_broken_connection(hub, client, fault):
    client.setattr(hub, "fault", fault)
    client.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    file = pinned("Salesforce/wikitext", "test", "wikitext-2-raw-v1")
    with pytest.raises(ConnectionError, match=r"could not be fetched from .* which resumes the download"):
        file.get()
    assert file.cached() is None
    client.setattr(hub, "fault", None)
    assert file.get().read_bytes() == hub.repos["datasets", file.repo].files[file.path]


def test_without_a_network_the_answer_comes_at_once(client):
    client.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"Without a network, set machine.data_dir .* or run `qbench fetch`"):
        pinned("baber/piqa", "validation").get()
    assert time.monotonic() - started < 3


def test_other_data_sets_come_with_the_commit_they_had(hub, tmp_path):
    """By `datasets`, whose cache knows no revision: the record tells which one it was."""

    def commits(**env):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", READ],
            capture_output=True,
            text=True,
            env=hub.environment(tmp_path, **env),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = hub.add("datasets", "org/set", {"train.csv": b"a,b\n1,2\n", "README.md": b"---\n---\n"}).commit
    assert commits() == commits(HF_HUB_OFFLINE="1") == f"1 {first}"
