"""The base of a run: a GGUF of the user's own, or one that is converted from a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ggq import hub, model_ref
from ggq.checkpoint import checkpoint
from ggq.conversion import (
    BITS_PER_WEIGHT,
    SourceInfo,
    StreamedBase,
    Verification,
    convert,
    default_name,
    needed_bytes,
    resolve_outtype,
)
from ggq.errors import CheckpointProblem, NeedsWeights
from ggq.gguf import file as gguf_file
from ggq.operations.workspace import Job
from ggq.progress import Listener, Notice
from ggq.records.manifest import Manifest, OutputFile, StepRecord, base_model, is_ours
from ggq.system import files, scratch
from ggq.system.unchanged import Unchanged

CONVERT = "convert"  # the step of the manifest
KEPT = "base_kept"
_UNPROVEN = {"unproven": True}


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

    def unchanged(self) -> Unchanged:
        """What a conversion reads of it, as it is now."""
        return checkpoint.unchanged(checkpoint.read(self.folder))

    def digests(self) -> dict[str, str]:
        """File name -> digest of everything in the folder that a conversion may read."""
        if self.announced is not None:
            return dict(self.announced)
        return {
            path.name: files.sha256_file(path)
            for path in sorted(self.folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and not is_ours(path.name)
        }


def downloaded_checkpoint(ref: model_ref.ModelRef, offline: bool, listener: Listener) -> LocalCheckpoint:
    """The checkpoint of a repository, downloaded if it is not here. Raises HubProblem, DiskFull."""
    fetched = hub.download(ref, offline=offline, listener=listener)
    return LocalCheckpoint(
        fetched.folder,
        SourceInfo(fetched.repo_id, fetched.commit),
        announced(fetched.files),
    )


@contextmanager
def streamed_checkpoint(
    ref: model_ref.ModelRef, offline: bool, listener: Listener
) -> Iterator[LocalCheckpoint]:
    """The checkpoint of a repository as far as a stream needs it on the disk: without its weights, unless
    they are in the Hub cache anyway. Raises HubProblem, CheckpointProblem, DiskFull, OutputProblem."""
    model = hub.inspect(ref.repo_id, ref.revision, offline=offline, listener=listener)
    source = SourceInfo(model.repo_id, model.commit)
    digests = announced(hub.select_files(model.files))
    with scratch.folder("headers") as work:
        folder = work / "model"
        folder.mkdir()
        files.require_holes(folder, "set TMPDIR to another folder")
        try:
            found = hub.gather(model, folder, for_stream=True, offline=offline, listener=listener)
        except NeedsWeights as problem:
            raise CheckpointProblem(
                f"{model.repo_id} cannot be streamed.",
                problem.why,
                "Leave --stream out: it is downloaded then.",
            ) from problem
        if found.with_values:
            listener(Notice(f"{model.repo_id} is in the Hub cache already: nothing is streamed."))
            yield LocalCheckpoint(found.folder, source, digests)
            return
        with closing(hub.RemoteWeights(model, found.folder, listener=listener)) as remote:
            yield LocalCheckpoint(found.folder, source, digests, remote)


def announced(found: Sequence[hub.RemoteFile]) -> dict[str, str] | None:
    """The files' digests; None where the cache of a Hub that is out of reach does not tell them all."""
    digests = {file.path: file.blob_name for file in found}
    return digests if all(digests.values()) else None


class Base(Protocol):
    """The base of a run."""

    def known(self) -> tuple[str, ...]:
        """What records may call it: its digest, if one is known, before anything that stands in for it."""

    def ensure(self) -> tuple[Path, str]:
        """The file, made when first needed, and its digest. Raises GgqError."""

    def unchanged(self) -> Unchanged:
        """What the presets are made from, as it was before any of it was read: the file, or else what is
        converted in a stream."""


class GivenBase:
    """A base GGUF of the user's own, perhaps in shards."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self.path = path
        self._listener = listener
        self._unchanged = Unchanged(gguf_file.shards(path), lambda: self._digests)

    @cached_property
    def _digests(self) -> Mapping[Path, str]:
        parts = gguf_file.shards(self.path)
        return {part: files.sha256_file(part, self._listener, "read the base") for part in parts}

    @property
    def sha256(self) -> str:
        """Of all its shards."""
        with self._unchanged.explaining():
            return "+".join(self._digests.values())

    def known(self) -> tuple[str, ...]:
        return (self.sha256,)

    def ensure(self) -> tuple[Path, str]:
        return self.path, self.sha256

    def unchanged(self) -> Unchanged:
        return self._unchanged


def own_base(manifest: Manifest, given: GivenBase, *, force: bool) -> None:
    """Say in the manifest that the files are of this base, unless an earlier run made the base here, whose
    source is the better answer. Raises OutputProblem."""
    if not manifest.model or not manifest.knows(given.sha256):
        manifest.own(base_model(given.path), force=force)


@dataclass(frozen=True)
class Work:
    """What a conversion is made of and how, by which its records are told from others'. ``unproven``: what
    was never compared with its digest is good enough, too (for a stream, which does no better)."""

    inputs: Mapping[str, str]
    outtype: str
    verify: str
    tool: str
    unproven: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"outtype": self.outtype, "verify": self.verify}

    def record(self, manifest: Manifest) -> StepRecord | None:
        """The record of an earlier conversion, if nothing changed since."""
        for options in (self.options, self.options | _UNPROVEN)[: 1 + self.unproven]:
            if manifest.current(CONVERT, self.inputs, options, self.tool):
                return manifest.steps[CONVERT]
        return None

    def known(self, manifest: Manifest) -> tuple[str, ...]:
        """What records may call the base: its digest, then what stands in for it."""
        record = self.record(manifest)
        if record is None:
            return ()
        return (*(output.sha256 for output in record.outputs), self.stand_in(record.options))

    def stand_in(self, options: Mapping[str, Any]) -> str:
        """The name of a base that is never a file: a digest of all that it is made of."""
        unproven = [key for key in _UNPROVEN if key in options]
        work = json.dumps([self.inputs, self.outtype, self.tool, *unproven], sort_keys=True)
        return f"of-{hashlib.sha256(work.encode()).hexdigest()}"


class ConvertedBase:
    """The base that this run converts from a checkpoint, unless an earlier run did and nothing changed.

    Where it is never a file (see ``streamed``), a digest of what it is converted from stands in for its own.
    """

    def __init__(self, job: Job, given: LocalCheckpoint, outtype: str, verify: str, *, keep: bool) -> None:
        self._job = job
        self._given = given
        found = checkpoint.read(given.folder)
        self._unchanged = checkpoint.unchanged(found)
        self._outtype = resolve_outtype(found, outtype)
        self.bits_per_weight = BITS_PER_WEIGHT[self._outtype]
        self.parameter_count = found.likely_parameter_count
        self.needed_bytes = needed_bytes(found, self._outtype)
        self._verify = verify
        self._keep = keep
        self._name = default_name(job.name, self._outtype)
        # Without a record there is nothing to compare with, so the checkpoint is digested during the work.
        self._inputs = given.digests() if CONVERT in job.manifest.steps else None
        self._digesting: Future[dict[str, str]] | None = None
        self._ensured = self.converted = False  # by this run

    @property
    def path(self) -> Path:
        return self._job.outdir / self._name

    @property
    def is_remote(self) -> bool:
        """Whether the weights are not on this disk: they can be streamed, and nothing else."""
        return self._given.remote is not None

    @property
    def findings(self) -> Mapping[str, Any]:
        """What the conversion was checked for, and what was seen."""
        return self._job.manifest.steps[CONVERT].findings

    @property
    def kept(self) -> Path | None:
        """The file, if it stays."""
        return self.path if self.findings.get(KEPT) and self.path.is_file() else None

    def known(self) -> tuple[str, ...]:
        return () if self._inputs is None else self._work().known(self._job.manifest)

    def ensure(self) -> tuple[Path, str]:
        if not self._ensured:
            there = Unchanged([self.path]) if self.path.is_file() else None
            if there is None or not self.is_there():
                self._make()
                there = Unchanged([self.path])
            self._unchanged, self._ensured = there, True
        return self.path, self.known()[0]

    def unchanged(self) -> Unchanged:
        return self._unchanged

    def is_there(self) -> bool:
        """Whether an earlier run made the file, and it is still whole."""
        record = self._record()
        return record is not None and bool(record.outputs) and self._job.manifest.outputs_whole(CONVERT)

    def streamed(self) -> StreamedBase:
        """The base as the source of a sweep, without a file. Raises GgqError."""
        self._begin_digests()
        return StreamedBase(
            self._given.folder, self._job.staging, self.name, outtype=self._outtype,
            source=self._given.source, session=self._job.session, weights=self._given.remote,
        )  # fmt: skip

    def name(self) -> str:
        """What new records call it."""
        self._end_digests()
        return (*self.known(), self._work().stand_in({}))[0]

    def record_streamed(self, source: StreamedBase) -> None:
        """Write a conversion without a file down; of an earlier one with a file there is more to say."""
        self.converted = True
        unproven = self._given.remote.unproven if self._given.remote else ()
        if self._record() is None:
            self._write_down(
                (), source.seconds, source.peak_memory_bytes, source.verification, source.completed, unproven,
                stays=self._stays(),
            )  # fmt: skip
        if self._given.remote is not None:
            _tell_digests(self._given.remote, self._job.listener)

    def keep(self) -> None:
        """Leave the base beside the outputs, for good: later runs that would not keep it spare it."""
        self.ensure()
        if not self.findings.get(KEPT):
            record = self._job.manifest.steps[CONVERT]
            self._job.record(CONVERT, replace(record, findings={**record.findings, KEPT: True}))

    def remove(self) -> None:
        """Remove the base, unless it was kept on purpose or what lies there is not what this job made."""
        if self.findings.get(KEPT):
            return
        if self._ensured or self.is_there():
            self.path.unlink(missing_ok=True)

    def _make(self) -> None:
        job = self._job
        self.converted = True
        job.manifest.claim((self._name,), force=job.force)
        stays = self._stays()
        staged = job.staging / self._name
        # Digests are taken beside the work: of the checkpoint as it begins, of the GGUF during its checks.
        self._begin_digests()
        digests: list[Future[str]] = []

        def digest(written: Path) -> None:
            digests.append(job.background.submit(_digest_and_close, written.open("rb")))

        with self._unchanged.guard():
            made = convert(
                self._given.folder, staged, outtype=self._outtype, verify=self._verify,
                source=self._given.source, session=job.session, on_written=digest,
            )  # fmt: skip
            self._end_digests()
        output = OutputFile(self._name, made.file_bytes, digests[-1].result())
        self._write_down(
            (output,), made.seconds, made.peak_memory_bytes, made.verification, made.completed_keys,
            stays=stays,
        )  # fmt: skip
        # A base that is removed in the end is used again only when its digest proves it whole.
        files.publish(staged, self.path, durable=self._keep)

    def _stays(self) -> bool:
        """Whether a base that lies here is to stay: all but one that a broken run of ours left on its way."""
        before = self._job.manifest.steps.get(CONVERT)
        on_the_way = (
            before is not None
            and not before.findings.get(KEPT)
            and any(output.name == self._name for output in before.outputs)
            and self._job.manifest.outputs_whole(CONVERT)
        )
        return self.path.exists() and not on_the_way

    def _record(self) -> StepRecord | None:
        return None if self._inputs is None else self._work().record(self._job.manifest)

    def _work(self) -> Work:
        assert self._inputs is not None, "they are digested"
        return Work(self._inputs, self._outtype, self._verify, self._job.tool, unproven=self.is_remote)

    def _begin_digests(self) -> None:
        if self._inputs is None and self._digesting is None:
            self._digesting = self._job.background.submit(self._given.digests)

    def _end_digests(self) -> None:
        if self._digesting is not None:
            self._inputs, self._digesting = self._digesting.result(), None

    def _write_down(
        self,
        outputs: tuple[OutputFile, ...],
        seconds: float,
        peak_memory_bytes: int | None,
        verification: Verification,
        completed_keys: Mapping[str, Any],
        unproven: Sequence[str] = (),
        *,
        stays: bool,
    ) -> None:
        work = self._work()
        record = StepRecord(
            inputs=work.inputs,
            options=work.options | (_UNPROVEN if unproven else {}),
            tool=self._job.tool,
            outputs=outputs,
            seconds=round(seconds, 2),
            peak_memory_bytes=peak_memory_bytes,
            findings=asdict(verification)
            | {"completed_keys": dict(completed_keys), "unproven_files": list(unproven)}
            | ({KEPT: True} if stays else {}),
        )
        self._job.record(CONVERT, record)


def _tell_digests(weights: hub.RemoteWeights, listener: Listener) -> None:
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


def _digest_and_close(stream: BinaryIO) -> str:
    with stream:
        return files.sha256_stream(stream)
