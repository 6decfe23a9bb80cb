"""What a repository holds, looked at from afar, or offline in the Hub cache."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, cast

from ggq.errors import HubProblem
from ggq.hub import answers, client
from ggq.hub.client import DEFAULT_RETRY, RepoKind, Retry
from ggq.progress import Listener, silent
from ggq.system.untrusted import shown

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoSibling

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 50


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub announces it.

    Large files have a ``sha256``, the others git's ``git_sha1`` (of ``blob <bytes>\\0<content>``); a file
    that was only seen in the cache has neither, unless it is a link to its blob. ``cached``: it is in the
    Hub cache with the announced size.
    """

    path: str
    file_bytes: int
    sha256: str | None
    git_sha1: str | None
    cached: bool

    @property
    def blob_name(self) -> str:
        """The name under which the Hub cache keeps the content: its digest."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True)
class RemoteModel:
    """A repository at one commit: a model's, or of the given ``kind``. ``license`` and ``base_models`` are
    what its card says (unknown when offline); ``revision`` is what was asked for."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    license: str | None = None
    gated: bool = False
    base_models: tuple[str, ...] = ()
    kind: RepoKind = "model"

    @property
    def typed(self) -> str:
        """How it is named on a command line."""
        return as_typed(self.repo_id, self.revision)

    @property
    def home(self) -> Path:
        """Where the Hub cache keeps the repository."""
        return client.repo_dir(self.repo_id, self.kind)

    @property
    def folder(self) -> Path:
        """The snapshot folder in the Hub cache, which exists once something was downloaded."""
        return self.home / "snapshots" / self.commit


def inspect(
    repo_id: str,
    revision: str | None = None,
    *,
    kind: RepoKind = "model",
    offline: bool = False,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> RemoteModel:
    """Resolve a revision to its commit and list what it holds: one request, no file is downloaded.

    Raises HubProblem (not found, gated, bad token, no network, unknown revision, a lying listing; offline:
    not in the cache) and UsageProblem.
    """
    wanted = revision or "main"
    if client.is_offline(offline):
        return _from_cache(repo_id, wanted, kind)
    client.headers()
    with client.explained(repo_id, wanted, kind):
        try:
            info = client.ask(
                lambda: client.api().repo_info(
                    repo_id, revision=wanted, repo_type=kind, files_metadata=True, timeout=retry.silence_s
                ),
                retry,
                listener,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if type(error).__module__.startswith("huggingface_hub"):
                raise
            raise _not_a_hub(f"{type(error).__name__}: {str(error)[:200]}") from error
    return _from_hub(repo_id, wanted, kind, cast("ModelInfo | DatasetInfo", info))


def _from_hub(repo_id: str, revision: str, kind: RepoKind, info: ModelInfo | DatasetInfo) -> RemoteModel:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise _not_a_hub(f"it names the commit {shown(info.sha)}")
    commit = str(info.sha)
    files = tuple(_announced(repo_id, kind, commit, sibling) for sibling in info.siblings or ())
    # huggingface_hub makes an object of an answer's object, and passes on what is none.
    card: dict[str, Any] = getattr(info.card_data, "__dict__", {})
    license_name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    bases = card.get("base_model") or []
    bases = bases if isinstance(bases, list) else [bases]
    return RemoteModel(
        repo_id=repo_id,
        revision=revision,
        commit=commit,
        files=tuple(sorted(files, key=lambda file: file.path)),
        license=license_name if isinstance(license_name, str) else None,
        gated=bool(info.gated),
        base_models=tuple(base for base in bases if isinstance(base, str) and base),
        kind=kind,
    )


def _announced(repo_id: str, kind: RepoKind, commit: str, sibling: RepoSibling) -> RemoteFile:
    path = sibling.rfilename
    if not isinstance(path, str):
        raise _not_a_hub("it lists a file without a name")
    if not is_safe(path):
        raise HubProblem(
            f"{repo_id} lists a file with a dangerous name: {shown(path)}.",
            "Names must stay inside the repository's folder. Nothing was downloaded.",
            "Do not use this repository; tell its owner, or the Hub.",
        )
    file_bytes = sibling.lfs.size if sibling.lfs else sibling.size
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    git_sha1 = None if sibling.lfs else sibling.blob_id
    named = _SHA256.fullmatch(str(sha256 or "")) or _COMMIT.fullmatch(str(git_sha1 or ""))
    if not named or type(file_bytes) is not int or not 0 <= file_bytes < _MOST_BYTES:
        raise _not_a_hub(f"it gives no size or digest for {path}")
    found = _is_whole(client.repo_dir(repo_id, kind), commit, path, named[0], file_bytes)
    return RemoteFile(path, file_bytes, sha256, git_sha1, found)


def is_safe(path: str) -> bool:
    """Whether a name from a repository stays in its folder, on every system, and can be shown and stored."""
    if "\\" in path or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        return False
    return all(
        part not in ("", ".", "..") and not PureWindowsPath(part).anchor and len(part.encode()) <= 255
        for part in path.split("/")
    )


def snapshot_of(folder: Path) -> tuple[str, str] | None:
    """The repository and the commit of a snapshot folder, by its place in a Hub cache; else None."""
    for place in (folder.absolute(), folder.resolve()):
        root, snapshots, commit = (place.parent.parent.name, place.parent.name, place.name)
        kind, *names = root.split("--")
        # A name has no "--" in it, and an old one has no owner.
        if (
            kind == "models"
            and snapshots == "snapshots"
            and _COMMIT.fullmatch(commit)
            and len(names) in (1, 2)
        ):
            return "/".join(names), commit
    return None


def as_typed(repo_id: str, revision: str | None) -> str:
    """A repository at a revision, as a shell reads it."""
    return shlex.quote(repo_id if revision in (None, "main") else f"{repo_id}@{revision}")


def _is_whole(repo: Path, commit: str, path: str, blob_name: str, file_bytes: int) -> bool:
    places = (repo / "snapshots" / commit / path, repo / "blobs" / blob_name)
    return any(place.is_file() and place.stat().st_size == file_bytes for place in places)


def _from_cache(repo_id: str, revision: str, kind: RepoKind) -> RemoteModel:
    repo = client.repo_dir(repo_id, kind)
    ref = repo / "refs" / revision
    commit = revision
    if not _COMMIT.fullmatch(revision):
        commit = ref.read_text().strip() if ref.is_file() else ""
    snapshot = repo / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise HubProblem(
            f"{repo_id} (revision {revision}) is not in the Hub cache.",
            f"The network is off, and {_held(repo)}.",
            f"Run `ggq download {as_typed(repo_id, revision)}` once with the network."
            if kind == "model"
            else "Run the same command once with the network.",
        )
    held = tuple(sorted(_held_files(snapshot), key=lambda file: file.path))
    return RemoteModel(repo_id, revision, commit, held, kind=kind)


def _held_files(snapshot: Path) -> Iterator[RemoteFile]:
    for place in snapshot.rglob("*"):
        if place.is_file():
            path = place.relative_to(snapshot).as_posix()
            blob = place.resolve().name
            sha256 = blob if _SHA256.fullmatch(blob) else None
            git_sha1 = blob if _COMMIT.fullmatch(blob) else None
            yield RemoteFile(path, place.stat().st_size, sha256, git_sha1, cached=True)


def _held(repo: Path) -> str:
    refs = repo / "refs"
    names = sorted(ref.relative_to(refs).as_posix() for ref in refs.rglob("*") if ref.is_file())
    if names:
        return f"the cache holds only {', '.join(names)} of it"
    begun = any((repo / "blobs").glob("*"))
    return f"{repo.parent} holds {'only an unfinished download' if begun else 'nothing'} of it"


def _not_a_hub(why: str) -> HubProblem:
    return answers.not_a_hub(client.endpoint(), why)
