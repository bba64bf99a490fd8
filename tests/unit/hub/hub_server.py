"""A hub on the loopback interface: the file endpoints that huggingface_hub 2.4 uses, and a store apart.

It answers as huggingface.co does: model info with file metadata, HEAD and GET of `resolve` with ETag and
X-Repo-Commit, a redirect to another origin for large files, ranges there. Faults are ordered in advance.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".pt", ".safetensors", ".model")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files by commit, commits by branch.

    Attributes:
        token: Needed to see the repository at all.
        is_gated: Files are for those who accepted the terms; info is for everyone.
    """

    files: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    licence: str | None = None
    token: str | None = None
    is_gated: bool = False
    is_disabled: bool = False

    def push(self, files, branch="main"):
        """A commit that holds just `files`."""
        commit = hashlib.sha1(
            repr(sorted((path, sha256(files[path])) for path in files)).encode()
        ).hexdigest()
        self.files[commit] = dict(files)
        self.branches[branch] = commit
        return commit


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of `method` whose path ends with `path`.

    Attributes:
        method: HEAD or GET at the hub, or STORE for a GET at the store.
        status: Answered instead of the file.
        keep: Bytes sent before the connection is cut.
        change: Changes the bytes that are sent, and not what is said of them.
        ignores_range: The whole file is sent.
        stalls: Nothing more is sent after `keep` bytes until the server ends.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict = field(default_factory=dict)
    keep: int | None = None
    change: object = None
    ignores_range: bool = False
    stalls: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


class HubServer:
    """The hub at `endpoint`, until `close`."""

    def __init__(self):
        self.repositories = {}
        self.faults = []
        self.requests = []
        self.stored = {}
        self.is_open = threading.Event()
        self.is_stalling = threading.Event()
        self._servers = [_listen(self, is_store=False), _listen(self, is_store=True)]
        self.endpoint, self.store = (f"http://127.0.0.1:{each.server_address[1]}" for each in self._servers)

    def repository(self, name, files, **settings):
        repository = self.repositories[name] = Repository(**settings)
        repository.push(files)
        return repository

    def fault(self, method, path, **settings):
        self.faults.append(Fault(method, path, **settings))

    def take_fault(self, method, path):
        for fault in self.faults:
            if fault.times and fault.method == method and path.endswith(fault.path):
                fault.times -= 1
                return fault
        return None

    def asked(self, method, path):
        return [each for each in self.requests if each.method == method and each.path.endswith(path)]

    def close(self):
        self.is_open.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _listen(hub, *, is_store):
    class Handler(_Handler):
        pass

    Handler.hub, Handler.is_store = hub, is_store
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers wait for nothing.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.fault = None
        method = "STORE" if self.is_store else self.command
        self.hub.requests.append(
            Request(method, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        fault = self.hub.take_fault(method, path)
        if fault is not None and fault.status is not None:
            self._send(fault.status, b"", fault.headers)
            return
        self.fault = fault
        parts = path.strip("/").split("/")
        if self.is_store:
            self._send_range(self.hub.stored[parts[0]])
        elif parts[:2] == ["api", "models"]:
            self._send_info("/".join(parts[2:4]), "/".join(parts[5:]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._send(404, b"", {})

    def _repository(self, name):
        """The repository, if whoever asks may know of it."""
        repository = self.hub.repositories.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == "hf_ended":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.token and token != repository.token):
            self._send(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository.is_disabled:
            self._send(403, b"", {"X-Error-Message": "Access to this resource is disabled."})
        else:
            return repository
        return None

    def _commit(self, repository, revision):
        commit = repository.branches.get(revision, revision)
        if commit in repository.files:
            return commit
        self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _send_info(self, name, revision):
        repository = self._repository(name)
        commit = repository and self._commit(repository, revision)
        if not commit:
            return
        siblings = []
        for path, content in repository.files[commit].items():
            sibling = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            if path.endswith(LARGE_SUFFIXES):
                sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        card = {"license": repository.licence} if repository.licence else {}
        info = {
            "id": name,
            "modelId": name,
            "sha": commit,
            "siblings": siblings,
            "cardData": card,
            "tags": [],
        }
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name, revision, path):
        repository = self._repository(name)
        commit = repository and self._commit(repository, revision)
        if not commit:
            return
        if repository.is_gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        content = repository.files[commit].get(path)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit}
        if not path.endswith(LARGE_SUFFIXES):
            self._send_range(content, {**headers, "ETag": f'"{git_sha1(content)}"'})
            return
        self.hub.stored[sha256(content)] = content
        headers["X-Linked-Etag"] = f'"{sha256(content)}"'
        headers["X-Linked-Size"] = str(len(content))
        headers["Location"] = f"{self.hub.store}/{sha256(content)}/{path}"
        self._send(302, b"", headers)

    def _send_range(self, content, headers=None):
        headers = {**(headers or {}), "Accept-Ranges": "bytes"}
        fault = self.fault
        asked = self.headers.get("Range")
        if fault is not None and fault.change is not None:
            content = fault.change(content)
        if asked is None or (fault is not None and fault.ignores_range):
            self._send(200, content, headers)
            return
        start = int(asked.removeprefix("bytes=").split("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, content[start:], headers)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is None or self.fault.keep is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: self.fault.keep])
        self.wfile.flush()
        if self.fault.stalls:
            self.hub.is_stalling.set()
            self.hub.is_open.wait()
        self.close_connection = True
