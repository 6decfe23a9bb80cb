"""Putting files into a repository of the Hub: only what changed, resumed where it stopped, verified after.

huggingface_hub carries the bytes. A file that has arrived whole stays on the Hub even before there is a
commit of it, so that the next run sends only the others; with Xet the same holds for the parts of a file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ggq.errors import HubProblem, UsageProblem
from ggq.hub import client
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.hub.repository import RemoteModel, inspect
from ggq.progress import Listener, Notice, Step, silent

STEP = "upload"
T = TypeVar("T")
_CARD = "README.md"
_MOST_CARD_BYTES = 4 << 20


@dataclass(frozen=True)
class LocalFile:
    """A file that is to be ``path`` in the repository; its size and digest."""

    path: str
    source: Path
    file_bytes: int
    sha256: str

    def is_in(self, remote: RemoteModel | None) -> bool:
        """Whether the repository has this content under this name."""
        known = next((it for it in remote.files if it.path == self.path), None) if remote else None
        if known is None or known.file_bytes != self.file_bytes:
            return False
        return known.sha256 == self.sha256 if known.sha256 else known.git_sha1 == git_sha1(self.source)


@dataclass(frozen=True)
class Uploaded:
    """``commit``: that has all files now; ``sent``: names of what was uploaded for it (empty: nothing had
    changed); ``pull_request``: its address, where one was opened."""

    commit: str
    url: str
    sent: tuple[str, ...]
    sent_bytes: int
    pull_request: str | None = None


def git_sha1(path: Path) -> str:
    """git's digest of a small file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def current(repo_id: str, revision: str | None, listener: Listener = silent) -> RemoteModel | None:
    """What a repository holds now; None: there is no such repository or branch yet. Raises HubProblem."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return inspect(repo_id, revision, listener=listener)
    except HubProblem as problem:
        cause = problem.__cause__
        if isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError)):
            return None
        raise


def card_text(remote: RemoteModel) -> str | None:
    """The repository's model card; None: it has none. Raises HubProblem."""
    import tempfile

    known = next((it for it in remote.files if it.path == _CARD), None)
    if known is None:
        return None
    if known.file_bytes > _MOST_CARD_BYTES:
        return ""
    with client.explained(remote.repo_id), tempfile.TemporaryDirectory(prefix="ggq-card-") as folder:
        found = client.api().hf_hub_download(remote.repo_id, _CARD, revision=remote.commit, local_dir=folder)
        return Path(found).read_text(encoding="utf-8", errors="replace")


def require_name(repo_id: str) -> None:
    """Raises UsageProblem for what cannot be a repository's name with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("It has no owner.")
    except HFValidationError as error:
        raise UsageProblem(
            f"{repo_id!r} cannot be a repository.", str(error), "Write it as you/Model-GGUF."
        ) from error


def require_token() -> None:
    """Raises HubProblem where nothing says who is uploading."""
    client.headers()
    if not client.token_present():
        raise HubProblem(
            "Publishing needs a token of the Hub.",
            "None was found: neither HF_TOKEN nor one stored by `hf auth login`.",
            "Make one with write access in the Hub's settings, then run `hf auth login` or set HF_TOKEN.",
        )


@dataclass(frozen=True)
class Target:
    """Where files go. ``private``: of a repository that is made now; ``revision``: a branch, made where it is
    missing; ``create_pr``: as a pull request."""

    repo_id: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False


def upload(
    target: Target,
    files: Sequence[LocalFile],
    *,
    message: str,
    bars: bool = False,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> Uploaded:
    """Make a repository hold these files, besides what it has, in one commit, and compare all digests after.

    ``bars``: huggingface_hub draws its own, on stderr.
    Raises HubProblem, also where a digest differs afterwards; UsageProblem.
    """
    from huggingface_hub import CommitOperationAdd

    _show_bars(bars)
    repo_id, revision, create_pr = target.repo_id, target.revision, target.create_pr
    with _explained(repo_id):
        _make_repository(repo_id, target.private, revision, retry, listener)
        before = current(repo_id, revision, listener)
        wanted = [it for it in files if not it.is_in(before)]
        if not wanted:
            commit = before.commit if before else ""
            return Uploaded(commit, f"{client.endpoint()}/{repo_id}", (), 0)
        operations = []
        done, total = 0, sum(it.file_bytes for it in wanted)
        api = client.api()
        for it in wanted:
            listener(Step(STEP, done, total))
            operation = CommitOperationAdd(path_in_repo=it.path, path_or_fileobj=str(it.source))
            operation.upload_info.sha256 = bytes.fromhex(it.sha256)
            send = functools.partial(
                api.preupload_lfs_files,
                repo_id,
                [operation],
                revision=revision,
                create_pr=create_pr,
                free_memory=False,
            )
            _again(send, retry, listener)
            operations.append(operation)
            done += it.file_bytes
        listener(Step(STEP, done, total))
        made = _again(
            lambda: api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr
            ),
            retry,
            listener,
        )
    where = made.pr_revision if create_pr else made.oid
    _verify(repo_id, where or made.oid, files, listener)
    return Uploaded(
        commit=made.oid,
        url=f"{client.endpoint()}/{repo_id}",
        sent=tuple(it.path for it in wanted),
        sent_bytes=sum(it.file_bytes for it in wanted),
        pull_request=made.pr_url,
    )


def _make_repository(
    repo_id: str, private: bool, revision: str | None, retry: Retry, listener: Listener
) -> None:
    api = client.api()
    if current(repo_id, None, listener) is None:
        _again(lambda: api.create_repo(repo_id, private=private, exist_ok=True), retry, listener)
        listener(Notice(f"Made {'the private' if private else 'the'} repository {repo_id}."))
    if revision not in (None, "main") and current(repo_id, revision, listener) is None:
        _again(lambda: api.create_branch(repo_id, branch=str(revision), exist_ok=True), retry, listener)


def _verify(repo_id: str, revision: str, files: Sequence[LocalFile], listener: Listener) -> None:
    """Ask the Hub what it has now. Raises HubProblem where that is not what was sent."""
    after = inspect(repo_id, revision, listener=listener)
    wrong = [it.path for it in files if not it.is_in(after)]
    if wrong:
        raise HubProblem(
            f"{repo_id} does not hold what was uploaded: {', '.join(wrong[:5])}.",
            "The Hub announces another size or digest for them.",
            "Run the same command again: it sends what differs.",
        )


def _again(call: Callable[[], T], retry: Retry, listener: Listener) -> T:
    """A call that is repeated while the Hub or the network stumbles."""
    from huggingface_hub.utils import httpx

    def unwrapped() -> T:
        try:
            return call()
        except RuntimeError as error:  # huggingface_hub's, around that of an upload
            if isinstance(error.__cause__, httpx.HTTPError):
                raise error.__cause__ from error
            raise

    return client.ask(unwrapped, retry, listener)


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    with client.explained(repo_id):
        try:
            yield
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise HubProblem(
                    f"This token may not write to {repo_id}.",
                    f"The Hub answered {error.response.status_code}.",
                    "Give it write access in the Hub's settings, or choose a repository of your own.",
                ) from error
            raise
        except ValueError as error:
            if "yaml" in str(error).lower() or "metadata" in str(error).lower():
                raise HubProblem(
                    f"The Hub refuses the model card for {repo_id}.", str(error), "Report this to ggq."
                ) from error
            raise


# --- front matter ----------------------------------------------------------------------------------------


def front_matter(values: Mapping[str, object]) -> str:
    """The head of a model card, written and read back by huggingface_hub's own class.

    Raises UsageProblem for values that it does not take.
    """
    from huggingface_hub import ModelCard, ModelCardData

    given = {key: value for key, value in values.items() if value not in (None, [], ())}
    text = f"---\n{ModelCardData(**given).to_yaml()}\n---\n"  # type: ignore[arg-type]
    read = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    lost = [key for key, value in given.items() if read.get(key) != value]
    if lost:
        raise UsageProblem(
            f"The model card cannot hold {', '.join(lost)}.",
            "",
            "Give plain words without special characters.",
        )
    return text


def _show_bars(visible: bool) -> None:
    """Whether huggingface_hub draws its own bars of an upload, from now on in this process."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if visible:
        enable_progress_bars()
    else:
        disable_progress_bars()
