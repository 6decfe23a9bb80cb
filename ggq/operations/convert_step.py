"""The conversion of a run: done once, written down, and taken up by later runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ggq.checkpoint import checkpoint
from ggq.conversion import (
    BITS_PER_WEIGHT,
    StreamedBase,
    Verification,
    convert,
    default_name,
    resolve_outtype,
)
from ggq.operations.fetch_checkpoint import LocalCheckpoint, tell_digests
from ggq.operations.workspace import Job
from ggq.records.manifest import Manifest, OutputFile, StepRecord
from ggq.system import files
from ggq.system.unchanged import Unchanged

CONVERT = "convert"  # the step of the manifest
KEPT = "base_kept"
_UNPROVEN = {"unproven": True}


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
        self._unchanged = given.unchanged
        self._outtype = resolve_outtype(found, outtype)
        self.bits_per_weight = BITS_PER_WEIGHT[self._outtype]
        self.parameter_count = found.likely_parameter_count
        self._verify = verify
        self._keep = keep
        self._name = default_name(job.name, self._outtype)
        # Without a record there is nothing to compare with, so the checkpoint is digested during the work.
        self._inputs = given.digests if CONVERT in job.manifest.steps else None
        self._digesting: Future[Mapping[str, str]] | None = None
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
            tell_digests(self._given.remote, self._job.session.listener)

    def keep(self) -> None:
        """Leave the base beside the outputs, for good: later runs that would not keep it spare it."""
        self.ensure()
        if not self.findings.get(KEPT):
            record = self._job.manifest.steps[CONVERT]
            self._job.record(CONVERT, replace(record, findings={**record.findings, KEPT: True}))

    def remove(self) -> None:
        """Remove the base, unless it was kept on purpose or what is there is not what this job made."""
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
        """Whether a base that is here is to stay: all but one that a broken run of ours left on its way."""
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
            self._digesting = self._job.background.submit(lambda: self._given.digests)

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


def _digest_and_close(stream: BinaryIO) -> str:
    with stream:
        return files.sha256_stream(stream)
