"""The writing half of the Hub on loopback: repositories that are made, files that are uploaded, commits.

Read off huggingface_hub 2.4 with Xet disabled (HF_HUB_DISABLE_XET=1): ``_commit_api.py`` (preupload, commit),
``lfs.py`` (batch, single and multipart uploads, completion, verification), ``hf_api.py`` (create_repo,
create_branch, validate-yaml).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from hubserver import Fault, HubServer, Repo

_REGULAR_BYTES = 10 << 20
_BLOCK = 1 << 16


class Receiving:
    """What both servers share: a body that arrives, is cut off by a fault, or is left unread."""

    hub: HubServer
    active: Fault

    def received(self: Any) -> bytes | None:
        """The body of the request; None: the connection was cut in the middle of it."""
        most = self.active.cut_after_bytes
        body = bytearray()
        for block in _arriving(self):
            body += block
            self.hub.arrived_bytes += len(block)
            if self.active.bytes_per_s:
                self.hub.closing.wait(len(block) / self.active.bytes_per_s)
            if most is not None and len(body) >= most:
                line = self.record(499)
                line.body_bytes = len(body)
                self.cut()
                return None
        return bytes(body)

    def cut(self: Any) -> None:
        self.close_connection = True
        if self.active.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


def _arriving(handler: Any) -> Any:
    """The blocks of a body, by its length or chunked."""
    if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
        while size := int(handler.rfile.readline().split(b";")[0] or b"0", 16):
            yield handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return
    left = int(handler.headers.get("Content-Length") or 0)
    while left > 0 and (block := handler.rfile.read1(min(left, _BLOCK))):
        left -= len(block)
        yield block
    if left > 0:  # the client went away in the middle
        raise ConnectionError


class Writing(Receiving):
    """The Hub itself: its API."""

    _ROUTES = (
        (r"/api/repos/create", "_create_repo"),
        (r"/api/validate-yaml", "_validate_yaml"),
        (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "_preupload"),
        (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "_commit"),
        (r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "_branch"),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "_batch"),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/verify", "_verify"),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/complete", "_complete"),
    )

    def do_POST(self: Any) -> None:
        self._start()
        body = self.received()
        if body is None:
            return
        if self.active.status is not None:
            self.answer(self.active.status, headers=self.active.headers)
            return
        # The address of a completion is its own permission: the client sends no token there.
        of_itself = self.path.endswith("/complete")
        if not of_itself and (self.token is None or self.token not in self.hub.tokens):
            self._refuse(401, "", "Invalid username or password.")
            return
        for pattern, name in self._ROUTES:
            if found := re.fullmatch(pattern, urlsplit(self.path).path):
                getattr(self, name)(body, *map(unquote, found.groups()))
                return
        self._refuse(404, "", "Not found")

    def _writable(self: Any, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get(("models", repo_id))
        if repo is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif repo.writers and self.token not in repo.writers:
            self._refuse(403, "", "You don't have the rights to write to this repository.")
        else:
            return repo  # type: ignore[no-any-return]
        return None

    def _create_repo(self: Any, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if ("models", repo_id) in self.hub.repos:
            self.answer(409, {"error": "You already created this model repo"})
            return
        repo = self.hub.add_repo(repo_id, {".gitattributes": b"*.gguf filter=lfs\n"})
        repo.private = asked.get("visibility") == "private"
        repo.readers.add(self.token)
        self.answer(200, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def _validate_yaml(self: Any, body: bytes) -> None:
        """As the Hub: a card without front matter, or with keys of the wrong kind, is refused."""
        values = _front_matter(json.loads(body)["content"])
        errors = [] if isinstance(values, dict) else [{"message": "there is no front matter"}]
        if isinstance(values, dict):
            if not isinstance(values.get("tags", []), list):
                errors.append({"message": '"tags" must be an array'})
            if values.get("license") == "other" and "license_name" not in values:
                errors.append({"message": '"license_name" is required when "license" is "other"'})
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self: Any, body: bytes, repo_id: str, revision: str) -> None:
        from hubserver import LFS

        repo = self._writable(repo_id)
        if repo is None:
            return
        commit = repo.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        answers = []
        for asked in json.loads(body)["files"]:
            known = repo.commits[commit].get(asked["path"])
            large = asked["size"] > _REGULAR_BYTES or any(fnmatchcase(asked["path"], it) for it in LFS)
            answers.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        self.answer(200, {"files": answers})

    def _batch(self: Any, body: bytes, repo_id: str) -> None:
        if self._writable(repo_id) is None:
            return
        objects = []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                entry["actions"] = self._actions(repo_id, asked["oid"], asked["size"])
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _actions(self: Any, repo_id: str, oid: str, size: int) -> dict[str, Any]:
        git = f"{self.hub.url}/{repo_id}.git/info/lfs/objects"
        verify = {"href": f"{git}/verify"}
        chunk = self.hub.chunk_bytes
        if size <= chunk:
            return {"upload": {"href": f"{self.hub.cdn_url}/upload/{oid}"}, "verify": verify}
        count = -(-size // chunk)
        self.hub.parts[oid] = {}
        parts = {str(n): f"{self.hub.cdn_url}/upload/{oid}/{n}" for n in range(1, count + 1)}
        return {
            "upload": {"href": f"{git}/complete", "header": {"chunk_size": str(chunk), **parts}},
            "verify": verify,
        }

    def _complete(self: Any, body: bytes, repo_id: str) -> None:
        asked = json.loads(body)
        held = self.hub.parts.get(asked["oid"], {})
        wanted = [(part["partNumber"], part["etag"]) for part in asked["parts"]]
        if wanted != [(number, _etag(held.get(number, b""))) for number in range(1, len(wanted) + 1)]:
            self.answer(400, {"error": "the parts are not those that were sent"})
            return
        content = b"".join(held[number] for number, _ in wanted)
        self.answer(200 if self.hub.store(asked["oid"], content) else 400, {})

    def _verify(self: Any, body: bytes, repo_id: str) -> None:
        asked = json.loads(body)
        known = self.hub.objects.get(asked["oid"])
        self.answer(200 if known and known.file_bytes == asked["size"] else 404, {})

    def _branch(self: Any, body: bytes, repo_id: str, branch: str) -> None:
        repo = self._writable(repo_id)
        if repo is None:
            return
        if branch in repo.refs:
            self.answer(409, {"error": "Reference already exists"})
            return
        repo.refs[branch] = repo.refs["main"]
        self.answer(200, {})

    def _commit(self: Any, body: bytes, repo_id: str, revision: str) -> None:
        from hubserver import HubFile

        repo = self._writable(repo_id)
        if repo is None:
            return
        files = dict(repo.commits[repo.resolve(revision)])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = HubFile.of(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self.answer(400, {"error": f"{value['path']} was not uploaded"})
                    return
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        if (card := files.get("README.md")) and isinstance(card.source, bytes):
            repo.card = _front_matter(card.source.decode()) or {}
        create_pr = "create_pr=1" in urlsplit(self.path).query
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        sha = repo.commit_files(files, f"refs/pr/{number}" if create_pr else revision)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}
        if create_pr:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        self.answer(200, answer)


class Storing(Receiving):
    """The content network: where objects and their parts are put."""

    def do_PUT(self: Any) -> None:
        self._start()
        body = self.received()
        if body is None:
            return
        if self.active.status is not None:
            self.answer(self.active.status, headers=self.active.headers)
            return
        _, _, oid, *number = urlsplit(self.path).path.split("/")
        if number:
            self.hub.parts.setdefault(oid, {})[int(number[0])] = body
            self.answer(200, headers={"ETag": _etag(body)})
        else:
            self.answer(200 if self.hub.store(oid, body) else 400)


def _front_matter(card: str) -> Any:
    """The head of a card; None: it has none."""
    import yaml

    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def _etag(content: bytes) -> str:
    return quote(hashlib.md5(content).hexdigest())
