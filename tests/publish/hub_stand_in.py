"""A stand-in for the Hub: what `HfApi` asks of it over HTTP when a model is pushed, and nothing more."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

USER, TOKEN, READ_TOKEN = "someone", "hf_standin", "hf_readonly"
ONE_COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """`files` is repository -> name -> content; `private` the repositories that are; `requests` what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.requests: list[str] = []
        self.commits: list[dict] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        """Tests read `requests` instead."""

    def do_GET(self) -> None:
        if not self._known():
            return
        if self.path == "/api/whoami-v2":
            return self._answer({"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}, "orgs": []})
        repo = self.path.removeprefix("/api/models/").split("/revision/")[0]
        if repo not in self.server.files:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self._answer({"id": repo, "private": repo in self.server.private, "sha": ONE_COMMIT, "siblings": []})

    def do_PUT(self) -> None:
        content = self._body()
        oid = PurePosixPath(self.path).name
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._known():
            return None
        if self.path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if self._token() != TOKEN:
            return self._answer({"error": "You need write access"}, 403)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        repo, _, action = self.path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        return self._preupload(repo, json.loads(body)) if action == "preupload" else self._commit(repo, body)

    def _validate(self, card: str) -> None:
        errors = [{"message": '"license" must be one of ...'}] if "license: no-such" in card else []
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self, wanted: dict) -> None:
        repo = f"{wanted['organization'] or USER}/{wanted['name']}"
        answer = {"url": f"{self.server.url}/{repo}"}
        if repo in self.server.files:
            return self._answer(answer | {"error": "You already created this model repo"}, 409)
        self.server.files[repo] = {}
        if wanted.get("visibility") == "private":
            self.server.private.add(repo)
        return self._answer(answer)

    def _preupload(self, repo: str, wanted: dict) -> None:
        there = self.server.files[repo]
        modes = []
        for file in wanted["files"]:
            mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
            oid = _oid(there[file["path"]], mode) if file["path"] in there else None
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": modes})

    def _batch(self, wanted: dict) -> None:
        objects = []
        for one in wanted["objects"]:
            action = {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}
            objects.append(one if one["oid"] in self.server.large else one | {"actions": action})
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        header, *lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        for line in lines:
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            content = self.server.large[value["oid"]] if is_large else base64.b64decode(value["content"])
            self.server.files[repo][value["path"]] = content
        self.server.commits.append(header["value"] | {"files": [line["value"]["path"] for line in lines]})
        self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/{ONE_COMMIT}", "commitOid": ONE_COMMIT})

    def _token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def _known(self) -> bool:
        known = self._token() in (TOKEN, READ_TOKEN)
        if not known:
            self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        return known

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: dict, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.server.requests.append(f"{self.command} {self.path} {status}")
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _oid(content: bytes, mode: str) -> str:
    """As git names a blob, and LFS a file."""
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
