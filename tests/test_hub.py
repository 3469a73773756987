"""The real clients of the Hub against a small Hub of our own: what is there, and what goes wrong."""

import json
import subprocess
import sys
from itertools import count

import pytest
from conftest import save_tiny
from fakes.hub_server import Hub

CLIENT = """
import gc, json, sys, time
gc.disable()  # imports are a quarter faster
time.sleep = lambda seconds: None  # between the client's tries
from qbench.models import checkpoint
for line in sys.stdin:
    repo, revision = json.loads(line)
    checkpoint._snapshot.cache_clear()
    try:
        said = checkpoint.Checkpoint("tiny", repo=repo, revision=revision, dtype="float32").open().revision
    except (OSError, ValueError) as e:
        said = f"{type(e).__name__} {e}"
    print(json.dumps(said), flush=True)
"""
NAMES = (f"org/tiny-{i}" for i in count())


class Client:
    """A process that opens models of ``hub``, with a cache of its own; its libraries are imported once."""

    def __init__(self, hub: Hub, cache, **more):
        command = [sys.executable, "-W", "ignore", "-c", CLIENT]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=hub.environment(cache, **more), **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(60) == 0

    def opened(self, repo: str, revision: str | None = None) -> str:
        """The revision of the model, or the error."""
        self.process.stdin.write(json.dumps([repo, revision]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def client(hub, cache):
    with Client(hub, cache) as client:
        yield client


@pytest.fixture
def model(hub, tiny_files):
    """The name of a model on the Hub that nobody has downloaded."""
    name = next(NAMES)
    hub.add("models", name, tiny_files)
    yield name
    hub.fault = None


def test_a_model_of_the_hub_online_then_offline(hub, cache, client, model):
    commit = hub.repos["models", model].commit
    assert client.opened(model) == commit
    with Client(hub, cache, HF_HUB_OFFLINE="1") as offline:
        assert offline.opened(model) == commit
        said = offline.opened("org/never-seen")
        assert said.startswith("FileNotFoundError")
        assert "HF_HUB_OFFLINE is set; unset it" in said
    hub.add("models", model, hub.repos["models", model].files | {"generation_config.json": b"{}"})
    assert client.opened(model) == hub.repos["models", model].commit != commit
    assert client.opened(model, commit) == commit


def test_weights_of_another_family_are_not_downloaded(hub, client):
    name = next(NAMES)
    hub.add("models", name, {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": bytes(10_000)})
    assert "is a gpt2; supported: qwen3, qwen2, llama, mistral" in client.opened(name)
    asked = [request for request in hub.requests if name in request]
    assert any("config.json" in request for request in asked)
    assert not any("model.safetensors" in request for request in asked)


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [
        ((401, "GatedRepo"), "PermissionError", "accept its licence at {page}, then run `hf auth login`"),
        ((403, "GatedRepo"), "PermissionError", "accept its licence at {page}, then run `hf auth login`"),
        ((403, ""), "PermissionError", "accept its licence at {page}, then run `hf auth login`"),
        ((401, "RepoNotFound"), "FileNotFoundError", "no public model {model} (401): check the name"),
        ((404, "RepoNotFound"), "FileNotFoundError", "no public model {model} (404): check the name"),
        ((404, "RevisionNotFound"), "FileNotFoundError", "has no revision v9; those that exist: {page}/commits"),
        ((500, ""), "ConnectionError", "could not be fetched from {url} (HfHubHTTPError: "),
    ],
)
def test_what_the_hub_refuses(hub, client, model, refuse, error, message):
    hub.repos["models", model].refuse = refuse
    said = client.opened(model, "v9")
    assert said.startswith(error)
    assert message.format(url=hub.url, page=f"{hub.url}/{model}", model=model) in said
    assert "\n" not in said


@pytest.mark.parametrize("fault", ["drop", "stall"])
def test_a_broken_connection_is_no_traceback_and_the_next_try_goes_on(hub, client, model, fault):
    hub.fault = fault
    said = client.opened(model)
    assert said.startswith(f"ConnectionError model {model} could not be fetched from")
    assert "run the same command again" in said
    assert "\n" not in said
    hub.fault = None
    assert client.opened(model) == hub.repos["models", model].commit
