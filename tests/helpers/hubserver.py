"""A Hub on 127.0.0.1: a threaded HTTP server that speaks the Hub's protocol as huggingface_hub 2.4 uses it.

It serves folders as repositories, of models and of datasets, with the faults that a test switches on, and
keeps a log of every request and of the bytes it sent; what is uploaded becomes a commit (``hubuploads``).
Like the real one it has two origins: the Hub itself (API, ``/resolve/``) and a content network, to which
``/resolve/`` redirects for files in LFS.

    with HubServer() as hub:
        repo = hub.add_repo("org/name", folder)
        hub.fault("model.safetensors", cut_after_bytes=1000)
        ...
        assert hub.bytes_sent("model.safetensors") == ...

Read off huggingface_hub 2.4: ``hf_api.py`` (model_info, dataset_info, list_models, list_repo_tree,
list_repo_refs),
``file_download.py`` (get_hf_file_metadata), ``utils/_http.py`` (hf_raise_for_status).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hubuploads import Storing, Writing

LFS = ("*.safetensors", "*.bin", "*.gguf", "*.h5", "*.msgpack", "*.pth", "*.onnx", "*.model", "*.zip")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class HubFile:
    """A file of a commit: its content in memory or on disk, and the digests that the Hub announces."""

    source: bytes | Path
    file_bytes: int
    sha256: str
    git_sha1: str
    lfs: bool

    @classmethod
    def of(cls, source: bytes | Path, lfs: bool) -> HubFile:
        file_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file_bytes)
        for block in _blocks(source, 0, file_bytes):
            sha256.update(block)
            sha1.update(block)
        return cls(source, file_bytes, sha256.hexdigest(), sha1.hexdigest(), lfs)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha1


@dataclass
class Repo:
    """A repository: commits, and the refs that point to them. ``readers``: tokens that may read it when it is
    private or gated; ``writers``: those that may write to it (empty: all that the Hub knows)."""

    repo_id: str
    kind: str = "models"
    card: dict[str, Any] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    #: What to change in the API's answer for a file, by path, to make the Hub lie: {"size": 3}.
    lies: dict[str, dict[str, Any]] = field(default_factory=dict)

    def commit(self, content: Path | Mapping[str, bytes | Path], branch: str = "main") -> str:
        """Make the content a new commit on a branch, and return its sha."""
        if isinstance(content, Path):
            content = {
                place.relative_to(content).as_posix(): place
                for place in sorted(content.rglob("*"))
                if place.is_file()
            }
        files = {
            path: HubFile.of(source, any(fnmatchcase(path, pattern) for pattern in LFS))
            for path, source in content.items()
        }
        return self.commit_files(files, branch)

    def commit_files(self, files: dict[str, HubFile], branch: str) -> str:
        """The same, of files that are known already."""
        listing = [branch, len(self.commits), self.repo_id, *((path, f.sha256) for path, f in files.items())]
        sha = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        known = {**self.tags, **self.refs}
        return known.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong with requests whose path contains ``where``, for the next ``times`` of them.

    ``status``: answer with it (and ``headers``). ``cut_after_bytes``: close the connection in the middle of
    the body; ``reset``: not orderly, but with a TCP reset. ``flip_byte``: send one byte wrong.
    ``ignore_range``: answer 200 with the whole file. ``stall_s``: be silent before the body.
    ``bytes_per_s``: be slow.
    """

    where: str
    times: float = 1
    method: str = "GET"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    reset: bool = False
    flip_byte: int | None = None
    ignore_range: bool = False
    stall_s: float = 0
    bytes_per_s: float | None = None


@dataclass
class Request:
    """A line of the log, written before the answer is sent, so that a client never knows more than the log.

    ``path`` is decoded, without the query; at the content network too it ends in the file's name. ``token``
    is what the client sent, ``body_bytes`` what was sent to it of a file.
    """

    method: str
    path: str
    status: int
    range: str | None
    token: str | None
    body_bytes: int
    at_cdn: bool


class HubServer:
    """The two servers, and what they know. Use as a context manager."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: set[str] = set()
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        # What was uploaded: whole objects by their digest, parts of unfinished ones; of more than
        # ``chunk_bytes`` an object is asked for in parts. ``arrived_bytes``: of all bodies.
        self.objects: dict[str, HubFile] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.chunk_bytes = 1 << 20
        self.arrived_bytes = 0
        self._hub = _Server(_HubHandler, self)
        self._cdn = _Server(_CdnHandler, self)

    def __enter__(self) -> HubServer:
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._cdn.server_port}"

    def add_repo(
        self, repo_id: str, content: Path | Mapping[str, bytes | Path] | None = None, **options: Any
    ) -> Repo:
        """Add a repository, with its first commit. Options are those of ``Repo``."""
        repo = Repo(repo_id, **options)
        if content is not None:
            repo.commit(content)
        self.repos[repo.kind, repo_id] = repo
        return repo

    def store(self, sha256: str, content: bytes) -> bool:
        """Keep an uploaded object; False: it is not what it was announced as."""
        if hashlib.sha256(content).hexdigest() != sha256:
            return False
        with self.lock:
            self.objects[sha256] = HubFile.of(content, lfs=True)
        return True

    def fault(self, where: str, **options: Any) -> Fault:
        """Switch a fault on. Options are those of ``Fault``."""
        fault = Fault(where, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def requests(self, where: str = "", method: str = "GET") -> list[Request]:
        """The log, filtered by a part of the path."""
        with self.lock:
            return [seen for seen in self.log if where in seen.path and seen.method == method]

    def resumed_at(self, where: str) -> list[int]:
        """Where the requests for a part of a file began, in bytes."""
        ranges = [seen.range for seen in self.requests(where) if seen.range]
        return [int(asked.removeprefix("bytes=").split("-")[0]) for asked in ranges]

    def bytes_sent(self, where: str = "") -> int:
        """Bytes of files (not of API answers) that were sent for paths that contain ``where``."""
        return sum(seen.body_bytes for seen in self.requests(where) if not seen.path.startswith("/api/"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler], hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-answer (a killed download) is no news."""


class _Handler(BaseHTTPRequestHandler, ABC):
    """What both servers share: routing by method, faults, ranges, the log."""

    protocol_version = "HTTP/1.1"
    server: _Server
    at_cdn = False

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the log is HubServer.log."""

    def do_GET(self) -> None:
        self._begin()

    def do_HEAD(self) -> None:
        self._begin()

    @abstractmethod
    def route(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer a request."""

    def _start(self) -> None:
        self.hub = self.server.hub
        self.logged_path = unquote(urlsplit(self.path).path)
        self.active = self._take_fault()

    def _begin(self) -> None:
        self._start()
        split = urlsplit(self.path)
        if self.active.status is not None:
            self.answer(self.active.status, headers=self.active.headers)
            return
        self.route(split.path, parse_qs(split.query))

    def _take_fault(self) -> Fault:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and fault.where in self.logged_path and fault.method == self.command:
                    # A redirect has no body to spoil: such a fault waits for the content network.
                    if fault.status is None and not self.at_cdn and self.has_no_body():
                        continue
                    fault.times -= 1
                    return dataclasses.replace(fault)
        return Fault("")

    def has_no_body(self) -> bool:
        return False

    @property
    def token(self) -> str | None:
        sent = self.headers.get("Authorization", "")
        return sent.removeprefix("Bearer ") if sent else None

    def record(self, status: int) -> Request:
        asked = self.headers.get("Range")
        line = Request(self.command, self.logged_path, status, asked, self.token, 0, self.at_cdn)
        with self.hub.lock:
            self.hub.log.append(line)
        return line

    def answer(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        """A short answer: JSON, or nothing."""
        self.record(status)
        payload = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def answer_file(self, file: HubFile, headers: Mapping[str, str]) -> None:
        """A file, or the range of it that was asked for, with the fault in force."""
        start, end = 0, file.file_bytes
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not self.active.ignore_range:
            start, end = int(asked[1]), min(int(asked[2] or end - 1) + 1, end)
            if start >= file.file_bytes:
                self.answer(416, headers={"Content-Range": f"bytes */{file.file_bytes}"})
                return
        else:
            asked = None
        line = self.record(206 if asked else 200)
        self.send_response(line.status)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{file.file_bytes}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for block in self._spoiled(file, start, end):
                line.body_bytes += len(block)
                self.wfile.write(block)

    def _spoiled(self, file: HubFile, start: int, end: int) -> Iterator[bytes]:
        fault = self.active
        if fault.stall_s:
            self.hub.closing.wait(fault.stall_s)
        stop = end if fault.cut_after_bytes is None else min(end, start + fault.cut_after_bytes)
        at = start
        for block in _blocks(file.source, start, stop):
            if fault.flip_byte is not None and at <= fault.flip_byte < at + len(block):
                spoiled = bytearray(block)
                spoiled[fault.flip_byte - at] ^= 0xFF
                block = bytes(spoiled)
            if fault.bytes_per_s:
                time.sleep(len(block) / fault.bytes_per_s)
            at += len(block)
            yield block
        if stop < end:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        if self.active.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # an orderly close by the server would send FIN first
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class _HubHandler(Writing, _Handler):
    _API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/([^/]+))?)?")
    _RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

    def has_no_body(self) -> bool:
        resolve = self._RESOLVE.fullmatch(urlsplit(self.path).path)
        return resolve is not None and any(fnmatchcase(unquote(resolve[4]), pattern) for pattern in LFS)

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        if self.token is not None and self.token not in self.hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/models":
            self._list(query.get("author", [""])[0], query.get("search", [""])[0])
        elif api := self._API.fullmatch(path):
            kind, repo_id, what, revision = api.groups()
            self._api(kind, repo_id, what or "revision", unquote(revision or "main"), "blobs" in query)
        elif resolve := self._RESOLVE.fullmatch(path):
            kind, repo_id, revision, name = resolve.groups()
            self._resolve(kind or "models", repo_id, unquote(revision), unquote(name))
        else:
            self._refuse(404, "", "Not found")

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer(status, {"error": message}, headers)

    def _list(self, author: str, search: str) -> None:
        """Search is in the whole name, whatever the case; what is private is not listed."""
        found = [
            repo_id
            for (kind, repo_id), repo in self.hub.repos.items()
            if kind == "models" and not repo.private
            and repo_id.split("/")[0].lower() == author.lower() and search.lower() in repo_id.lower()
        ]  # fmt: skip
        self.answer(200, [{"id": repo_id, "modelId": repo_id} for repo_id in found])

    def _find(self, kind: str, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and self.token not in repo.readers):
            # Without a token the Hub does not say whether it exists.
            self._refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _api(self, kind: str, repo_id: str, what: str, revision: str, blobs: bool) -> None:
        repo = self._find(kind, repo_id)
        if repo is None:
            return
        commit = repo.resolve(revision)
        if what == "refs":
            self.answer(200, _refs(repo))
        elif commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "tree":
            self.answer(200, [_tree_entry(path, file) for path, file in repo.commits[commit].items()])
        else:
            self.answer(200, _info(repo, commit, blobs))

    def _resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repo = self._find(kind, repo_id)
        if repo is None:
            return
        if repo.gated and self.token not in repo.readers:
            self._refuse(403 if self.token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
            return
        commit = repo.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        file = repo.commits[commit].get(name)
        if file is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if not file.lfs:
            self.answer_file(file, headers)
            return
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.file_bytes)}
        self.answer(302, headers={
            **headers, **linked, "Location": f"{self.hub.cdn_url}/{kind}/{repo_id}/{commit}/{quote(name)}",
        })  # fmt: skip


class _CdnHandler(Storing, _Handler):
    at_cdn = True

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        kind, owner, name, commit, file = unquote(path)[1:].split("/", 4)
        found = self.hub.repos[kind, f"{owner}/{name}"].commits[commit][file]
        self.answer_file(found, {"ETag": f'"{found.sha256}"', "Content-Type": "binary/octet-stream"})


def _info(repo: Repo, commit: str, blobs: bool) -> dict[str, Any]:
    siblings = []
    for path, file in repo.commits[commit].items():
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry |= {"size": file.file_bytes, "blobId": file.git_sha1}
            if file.lfs:
                entry["lfs"] = {"size": file.file_bytes, "sha256": file.sha256, "pointerSize": 134}
        siblings.append(entry | repo.lies.get(path, {}))
    return {
        "id": repo.repo_id, "modelId": repo.repo_id, "sha": commit, "private": repo.private,
        "gated": "manual" if repo.gated else False, "cardData": repo.card, "siblings": siblings,
    }  # fmt: skip


def _tree_entry(path: str, file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.file_bytes, "oid": file.git_sha1}
    if file.lfs:
        entry["lfs"] = {"size": file.file_bytes, "oid": file.sha256, "pointerSize": 134}
    return entry


def _refs(repo: Repo) -> dict[str, Any]:
    def listed(names: Mapping[str, str], folder: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": sha} for n, sha in names.items()]

    return {"branches": listed(repo.refs, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}


def _blocks(source: bytes | Path, start: int, end: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for at in range(start, end, _BLOCK):
            yield source[at : min(at + _BLOCK, end)]
        return
    with source.open("rb") as stream:
        stream.seek(start)
        while start < end and (block := stream.read(min(_BLOCK, end - start))):
            start += len(block)
            yield block
