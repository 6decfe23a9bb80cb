"""The checkpoint of a run: a folder here, a download, or headers whose weights are streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ggq import hub
from ggq.checkpoint import checkpoint
from ggq.conversion import SourceInfo
from ggq.conversion.source import model_name as folder_name
from ggq.errors import CheckpointProblem, NeedsWeights
from ggq.model_ref import ModelRef
from ggq.progress import Listener, Notice
from ggq.records.manifest import is_ours
from ggq.session import Session
from ggq.system import files, scratch
from ggq.system.unchanged import Unchanged


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this disk; from the Hub, with its source and the digests that the Hub announced.
    ``remote``: the weights that the folder has only the headers of."""

    folder: Path
    source: SourceInfo | None = None
    announced: Mapping[str, str] | None = None
    remote: hub.RemoteWeights | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What a manifest says of its model."""
        return {"folder": str(self.folder.resolve())} if self.source is None else asdict(self.source)

    @cached_property
    def unchanged(self) -> Unchanged:
        """What a conversion reads of it, as it is when this is first asked for."""
        return checkpoint.unchanged(checkpoint.read(self.folder))

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """File name -> digest of everything in the folder that a conversion may read."""
        if self.announced is not None:
            return dict(self.announced)
        return {
            path.name: files.sha256_file(path)
            for path in sorted(self.folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and not is_ours(path.name)
        }


def downloaded_checkpoint(ref: ModelRef, session: Session) -> LocalCheckpoint:
    """The checkpoint of a repository, downloaded if it is not here. Raises HubProblem, DiskFull."""
    fetched = hub.download(ref, offline=session.offline, listener=session.listener)
    return LocalCheckpoint(
        fetched.folder,
        SourceInfo(fetched.repo_id, fetched.commit),
        announced(fetched.files),
    )


@contextmanager
def streamed_checkpoint(ref: ModelRef, session: Session) -> Iterator[LocalCheckpoint]:
    """The checkpoint of a repository as far as a stream needs it on the disk: without its weights, unless
    they are in the Hub cache anyway. Raises HubProblem, CheckpointProblem, DiskFull, OutputProblem."""
    model = hub.inspect(ref.repo_id, ref.revision, offline=session.offline, listener=session.listener)
    source = SourceInfo(model.repo_id, model.commit)
    digests = announced(hub.select_files(model.files))
    with scratch.folder("headers") as work:
        folder = work / "model"
        folder.mkdir()
        files.require_holes(folder, "set TMPDIR to another folder")
        try:
            found = hub.gather(
                model, folder, for_stream=True, offline=session.offline, listener=session.listener
            )
        except NeedsWeights as problem:
            raise CheckpointProblem(
                f"{model.repo_id} cannot be streamed.",
                problem.why,
                "Leave --stream out: it is downloaded then.",
            ) from problem
        if found.with_values:
            session.listener(Notice(f"{model.repo_id} is in the Hub cache already: nothing is streamed."))
            yield LocalCheckpoint(found.folder, source, digests)
            return
        with closing(hub.RemoteWeights(model, found.folder, listener=session.listener)) as remote:
            yield LocalCheckpoint(found.folder, source, digests, remote)


def model_name(ref: ModelRef) -> str:
    """The model's name as files carry it: the repository's, or the folder's."""
    return ref.repo_id.rsplit("/", 1)[-1] if ref.path is None else folder_name(ref.path)


def parameters_ahead(found: hub.Preview) -> int:
    """How many parameters a repository has, as its weights' bytes tell, at 16 bits each."""
    weights = hub.weight_files([file.path for file in found.files])
    return sum(file.file_bytes for file in found.files if file.path in weights) // 2


def announced(found: Sequence[hub.RemoteFile]) -> dict[str, str] | None:
    """The files' digests; None where the cache of a Hub that is out of reach does not tell them all."""
    digests = {file.path: file.blob_name for file in found}
    return digests if all(digests.values()) else None


def tell_digests(weights: hub.RemoteWeights, listener: Listener) -> None:
    """Which weight files are known to be what the Hub announces."""
    count = len(weights.proven) + len(weights.unproven)
    listener(Notice(f"{files.human_bytes(weights.received_bytes)} of weights were read, and none kept."))
    if weights.unproven:
        listener(
            Notice(
                f"The digests of {len(weights.unproven)} of {count} weight files could not be checked: they"
                " were not read from front to back in one go.",
                "warning",
            )
        )
    else:
        words = "The weight file has the digest"
        if count > 1:
            words = f"All {count} weight files have the digests"
        listener(Notice(f"{words} that the Hub announces."))
