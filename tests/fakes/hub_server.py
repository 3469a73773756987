"""A small Hub on 127.0.0.1 that the real clients talk to: models and data sets, and the faults of a real one.

    with Hub() as hub:
        hub.add("models", "org/name", {"config.json": b"{}"})
        environment = hub.environment(tmp_path / "cache")     # for a process that is to use it

``Repo.refuse`` is a pair of HTTP status and the Hub's error code; ``Hub.fault`` names what happens to the bodies of
files longer than a thousand bytes: "drop" closes the connection in their middle, "stall" sends no more.
"""

import hashlib
import json
import os
import threading
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SMALL = 1000  # bytes


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str
    refuse: tuple[int, str] | None = None


class Hub:
    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.fault: str | None = None
        self.requests: list[str] = []
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind: str, name: str, files: dict[str, bytes] | Path) -> Repo:
        """Puts files, or those of a folder, at ``name``; ``kind`` is models or datasets. Again: a new commit."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        told = repr(sorted((path, hashlib.sha1(body).hexdigest()) for path, body in files.items()))
        self.repos[kind, name] = Repo(files, hashlib.sha1(told.encode()).hexdigest())
        return self.repos[kind, name]

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """What a process needs to use this Hub and no other; it waits a second where others wait ten."""
        ours = dict(HF_ENDPOINT=self.url, HF_HOME=str(cache), HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")
        ours |= dict(HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return kept | ours | more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        words = path.split("/")
        if words[0] == "api":
            kind, name, rest = words[1], "/".join(words[2:4]), words[4:]
        else:
            kind = "datasets" if words[0] == "datasets" else "models"
            words = words[1:] if kind == "datasets" else words
            name, rest = "/".join(words[:2]), words[2:]
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._refuse(401, "RepoNotFound")  # what the Hub answers those who are not logged in
        if repo.refuse:
            return self._refuse(*repo.refuse)
        what, revision = (*rest, "main")[:2] if rest else ("revision", "main")
        if revision not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound")
        if words[0] != "api":
            return self._send_file(repo, "/".join(rest[2:]))
        listed = [self._entry(path, body) for path, body in sorted(repo.files.items())]
        if what == "tree":
            return self._send_json(listed)
        if what == "paths-info":
            form = urllib.parse.parse_qs(sent)
            wanted = json.loads(sent)["paths"] if sent.startswith("{") else form.get("paths", [])
            return self._send_json([entry for entry in listed if entry["path"] in wanted])
        about = {"id": name, "modelId": name, "sha": repo.commit, "private": False, "gated": False, "disabled": False}
        about |= {"downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": path} for path in repo.files]}
        return self._send_json(about)

    def _entry(self, path, body):
        return {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}

    def _send_json(self, found):
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status, code):
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send_file(self, repo, path):
        if path not in repo.files:
            return self._refuse(404, "EntryNotFound")
        body = repo.files[path]
        headers = {
            "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
            "X-Repo-Commit": repo.commit,
            "Accept-Ranges": "bytes",
        }
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(start[0] or 0), int(start[2] or len(body) - 1)
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        self._send(206 if "Range" in self.headers else 200, body[first : last + 1], headers)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = self.hub.fault if len(body) > SMALL and "ETag" in headers else None
        self.wfile.write(body[: len(body) // 2] if broken else body)
        if broken == "stall":
            self.hub.closing.wait(60)
        if broken:
            self.close_connection = True
