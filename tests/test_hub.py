"""The real clients of the Hub against a small Hub of our own: what is there, and what goes wrong."""

import subprocess
import sys

import pytest
from conftest import save_tiny
from fakes.hub_server import Hub

MODEL = "org/tiny"
OPEN = """
import sys
from qbench.models.checkpoint import Checkpoint
try:
    print(Checkpoint("tiny", repo=sys.argv[1], revision=sys.argv[2] or None, dtype="float32").open().revision)
except OSError as e:
    print(type(e).__name__, str(e))
"""


@pytest.fixture
def hub(tmp_path):
    with Hub() as hub:
        hub.add("models", MODEL, save_tiny(tmp_path / "model"))
        yield hub


def opened(hub, cache, repo=MODEL, revision="", **more) -> str:
    """What opening a model prints in a process of its own: its revision or the error."""
    command = [sys.executable, "-W", "ignore", "-c", OPEN, repo, revision]
    done = subprocess.run(command, capture_output=True, text=True, env=hub.environment(cache, **more), timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_of_the_hub_online_then_offline(hub, tmp_path):
    commit = hub.repos["models", MODEL].commit
    assert opened(hub, tmp_path / "cache") == commit
    assert opened(hub, tmp_path / "cache", HF_HUB_OFFLINE="1") == commit
    hub.add("models", MODEL, hub.repos["models", MODEL].files | {"generation_config.json": b"{}"})
    assert opened(hub, tmp_path / "cache") == hub.repos["models", MODEL].commit != commit
    assert opened(hub, tmp_path / "cache", revision=commit) == commit


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [
        ((401, "GatedRepo"), "PermissionError", "accept its licence at {url}/org/tiny, then run `hf auth login`"),
        ((403, "GatedRepo"), "PermissionError", "accept its licence at {url}/org/tiny, then run `hf auth login`"),
        ((403, ""), "PermissionError", "accept its licence at {url}/org/tiny, then run `hf auth login`"),
        ((401, "RepoNotFound"), "FileNotFoundError", "no public model org/tiny (401): check the name"),
        ((404, "RepoNotFound"), "FileNotFoundError", "no public model org/tiny (404): check the name"),
        (
            (404, "RevisionNotFound"),
            "FileNotFoundError",
            "has no revision v9; those that exist: {url}/org/tiny/commits",
        ),
        ((500, ""), "ConnectionError", "could not be fetched from {url} (HfHubHTTPError: "),
    ],
)
def test_what_the_hub_refuses(hub, tmp_path, refuse, error, message):
    hub.repos["models", MODEL].refuse = refuse
    said = opened(hub, tmp_path / "cache", revision="v9")
    assert said.startswith(error)
    assert message.format(url=hub.url) in said
    assert "\n" not in said


@pytest.mark.parametrize("fault", ["drop", "stall"])
def test_a_broken_connection_is_no_traceback_and_the_next_try_goes_on(hub, tmp_path, fault):
    hub.fault = fault
    said = opened(hub, tmp_path / "cache")
    assert said.startswith("ConnectionError model org/tiny could not be fetched from")
    assert "run the same command again" in said
    assert "\n" not in said
    hub.fault = None
    assert opened(hub, tmp_path / "cache") == hub.repos["models", MODEL].commit


def test_half_a_model_offline(hub, tmp_path):
    said = opened(hub, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert said.startswith("FileNotFoundError")
    assert "HF_HUB_OFFLINE is set; unset it" in said
