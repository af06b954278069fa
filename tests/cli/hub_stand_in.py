"""A server that answers what huggingface_hub asks of a hub: who one is, repositories, files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40
TOKEN = "hf_StandInOfATokenThatNobodyMaySee"
OWNER = "somebody"


@dataclass
class Repository:
    """Its files by name."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """Large files by digest, before a commit names them."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""


class Refused(Exception):
    """An answer that is an error: status, the name that the hub gives it, an address that goes with it."""


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A hub on this machine while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on the console."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  as the base class calls them

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        status, headers, content = 200, {}, b""
        try:
            found = self._found(path, body)
            if isinstance(found, bytes):
                etag = hashlib.sha256(found).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                content = found
            else:
                content = json.dumps(found).encode()
                headers = {"Content-Type": "application/json"}
        except Refused as refused:
            status, name, *more = refused.args
            content = json.dumps({"error": name, "url": more[0] if more else ""}).encode()
            headers = {"X-Error-Code": name, "X-Error-Message": name} if name else {}
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, path: str, body: bytes) -> Any:
        if path == "/":
            return b""
        if path == "/api/whoami-v2":
            if not self._is_owner:
                raise Refused(401, "Invalid credentials in Authorization header")
            return {"type": "user", "name": OWNER, "orgs": [{"name": "some-lab"}]}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, answer in (
            (r"/api/models/([\w.-]+/[\w.-]+)", self._info),
            (r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", self._modes),
            (r"/api/models/([\w.-]+/[\w.-]+)/commit/main", self._commit),
            (r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self._file),
            (r"/large/(\w+)", self._store),
        ):
            if match := re.fullmatch(pattern, path):
                return answer(body, *match.groups())
        raise Refused(404, "")

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._is_owner):
            raise Refused(404 if self._is_owner else 401, "RepoNotFound")
        return found

    def _create(self, wanted: dict[str, Any]) -> Any:
        if not self._is_owner:
            raise Refused(401, "Invalid credentials in Authorization header")
        name = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        private = wanted.get("private") or wanted.get("visibility") == "private"
        if name in self.hub.repositories:
            raise Refused(409, "", f"{self.hub.address}/{name}")
        self.hub.repositories[name] = Repository(bool(private))
        return {"url": f"{self.hub.address}/{name}", "name": name}

    def _info(self, _: bytes, name: str) -> Any:
        found = self._repository(name)
        files = [{"rfilename": file} for file in found.files]
        return {"id": name, "modelId": name, "private": found.private, "sha": COMMIT, "siblings": files}

    def _modes(self, body: bytes, name: str) -> Any:
        self._repository(name)
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in files}
        return {
            "files": [{"path": f, "uploadMode": mode, "shouldIgnore": False} for f, mode in modes.items()]
        }

    def _batch(self, body: bytes, _: str) -> Any:
        objects = json.loads(body)["objects"]
        upload = {one["oid"]: {"href": f"{self.hub.address}/large/{one['oid']}"} for one in objects}
        return {
            "transfer": "basic",
            "objects": [{**one, "actions": {"upload": upload[one["oid"]]}} for one in objects],
        }

    def _store(self, body: bytes, digest: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.uploaded[digest] = body
        return {}

    def _commit(self, body: bytes, name: str) -> Any:
        found = self._repository(name)
        if not self._is_owner:
            raise Refused(403, "Forbidden")
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.uploaded[value["oid"]]
        return {
            "success": True,
            "commitOid": COMMIT,
            "commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}",
        }

    def _file(self, _: bytes, name: str, revision: str, file: str) -> Any:
        found = self._repository(name)
        if revision not in ("main", COMMIT):
            raise Refused(404, "RevisionNotFound")
        if file not in found.files:
            raise Refused(404, "EntryNotFound")
        return found.files[file]
