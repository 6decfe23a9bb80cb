"""The child process of a conversion from its parent's side: its job, its events, its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggq._version import __version__
from ggq.checkpoint import model_card, transformers_model
from ggq.checkpoint.checkpoint import Checkpoint
from ggq.conversion import (
    checkpoint_view,
    compare_packed,
    config_gaps,
    converter_errors,
    tokenizer_checks,
    vocabulary_rows,
)
from ggq.conversion.checkpoint_view import SourceInfo
from ggq.conversion.compare_packed import Unpacked
from ggq.conversion.job import Job
from ggq.conversion.parameter_count import account
from ggq.conversion.pipes import Pipe
from ggq.conversion.settings import Verify
from ggq.conversion.source import source_of
from ggq.conversion.verification import COMPARED, Findings, Verification, not_compared, padded, verdict
from ggq.conversion.weight_feeder import Feeder
from ggq.gguf import file as gguf_file
from ggq.llamacpp import tool_output
from ggq.progress import Notice, Step
from ggq.session import Session
from ggq.system import files, hardware, python_child, scratch
from ggq.system.process import Watch

# malloc then gives freed memory back as it comes, and does not learn to keep it: 5 % of the peak where there
# is hardly anything but a tokenizer. Weights are handled faster without it.
_THRIFTY = {"MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Target:
    """The GGUF that a child process writes or checks. ``outtype``: resolved; ``hollow`` and
    ``without_values``: see ``job.Job``; ``pipe``: for the tensors' data; ``feeder``: of the checkpoint's
    weights, where they are not on the disk."""

    gguf: Path
    outtype: str
    mmproj: bool = False
    hollow: bool = False
    without_values: bool = False
    pipe: Pipe | None = None
    feeder: Feeder | None = None


class Child:
    """One run of ggq.conversion.child: its job, its events, its end."""

    def __init__(
        self, given: Checkpoint, target: Target, session: Session, source: SourceInfo | None = None
    ) -> None:
        self._given = given
        self._target = target
        self._toolchain = session.toolchain
        self._listener = session.listener
        self._source = source or source_of(given.path)
        self._on_written: Callable[[Path], None] | None = None
        self._on_header: Callable[[], None] | None = None
        self._phase = ""
        self._found: dict[str, Mapping[str, Any]] = {}
        self._remarks: list[str] = []
        self.verdict = ""  # that the GGUF was written with, before it could be known
        self.completed: Mapping[str, Any] = {}
        self.seconds = 0.0
        self.peak_memory_bytes: int | None = None

    def run(
        self,
        *,
        convert: bool,
        level: Verify,
        on_written: Callable[[Path], None] | None = None,
        on_header: Callable[[], None] | None = None,
        on_start: Callable[[int], None] | None = None,
    ) -> None:
        """``on_start`` gets the process id; ``on_header`` is called when a file with a ``pipe`` is there.

        Raises the GgqError that the child's failure is.
        """
        self._on_written, self._on_header = on_written, on_header
        for remark in model_card.read(self._given.path / model_card.NAME).remarks:
            self._listener(Notice(f"{remark[:1].upper()}{remark[1:]}."))
        with scratch.folder("view") as work:
            folder = checkpoint_view.make(self._given, work, self._source)
            job = self._job(folder, convert=convert, level=level)
            done = python_child.run(
                "ggq.conversion.child",
                stdin=json.dumps(asdict(job)),
                env=transformers_model.ENVIRONMENT | (_THRIFTY if self._target.hollow else {}),
                watch=Watch(self._hear, self._watch, on_start),
                check=False,
            )
        self.seconds, self.peak_memory_bytes = done.seconds, done.peak_rss_bytes
        if "failed" in self._found:
            raise converter_errors.explain(self._given, self._found["failed"])
        if done.returncode != 0:
            if done.returncode == -9 and self._phase == "reference":
                why_not = "transformers was killed, as the kernel does when memory runs out"
                self._found |= {"logits": {"why_not": why_not}, "tokenizer": {"why_not": why_not}}
                return
            raise converter_errors.died(self._phase, done.returncode, done.stderr)

    def _job(self, folder: Path, *, convert: bool, level: Verify) -> Job:
        why_not = self._no_logits()
        if why_not:
            self._found["logits"] = {"why_not": why_not}
        # Most files come to what is expected of them, and then need no change after their checks.
        self.verdict = padded(COMPARED) if level is not Verify.OFF and not why_not else not_compared(why_not)
        names = [tensor.name for tensor in self._given.tensors]
        return Job(
            view=str(folder),
            name=checkpoint_view.model_name(self._given, self._source),
            gguf=str(self._target.gguf.absolute()),
            outtype=self._target.outtype,
            architecture=self._given.architectures[0],
            source_dir=str(self._toolchain.converter.parent),
            lib_dir=str(self._toolchain.lib_dir),
            # llama.cpp's threads wait for each other: where another program takes a core from one of them,
            # all stand still, and a short prompt is not worth that.
            threads=max(1, hardware.usable_cores() // 2),
            convert=convert,
            check=level is not Verify.OFF,
            logits=not why_not,
            full=level is Verify.FULL,
            mmproj=self._target.mmproj,
            bin_weights=self._given.weight_format == "bin",
            has_tokenizer_model=tokenizer_checks.MODEL in self._given.tokenizer_files,
            embedding_rows=vocabulary_rows.count(self._given),
            hollow=self._target.hollow,
            without_values=self._target.without_values,
            pipe_folder=str(self._target.pipe.folder.absolute()) if self._target.pipe else "",
            fed=list(self._target.feeder.files) if self._target.feeder else [],
            arguments=config_gaps.options(self._given.architectures[0], names),
            metadata={"general.quantized_by": f"ggq {__version__}"},
            verdict=self.verdict,
            repo_id=self._source.repo_id if self._source else "",
            commit=self._source.commit if self._source else "",
        )

    def _no_logits(self) -> str:
        """Why the logits cannot be compared here, or an empty text."""
        if self._target.mmproj:
            return "a projector has no logits of its own"
        available = hardware.available_ram_bytes()
        wanted = transformers_model.needed_bytes(self._given)
        if wanted > available:
            return (
                "it does not fit into memory: running the checkpoint takes "
                f"{files.human_bytes(wanted)}, {files.human_bytes(available)} are free"
            )
        return ""

    def _hear(self, line: str) -> None:
        if not line.startswith('{"event"'):
            return
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "phase":
            self._phase = event["name"]
        elif kind == "step":
            self._listener(Step("check values", event["done"], event["total"]))
        elif kind == "completed":
            self.completed = event["keys"]
        elif kind == "written":
            if self._on_written is not None:
                self._on_written(self._target.gguf)
        elif kind == "header":
            if self._on_header is not None:
                self._on_header()
        elif kind == "want":
            assert self._target.feeder is not None
            self._target.feeder.want(event["file"], event["offset"], event["bytes"])
        elif kind == "remark":
            if event.get("warning"):
                self._remarks.append(event["text"])
            else:
                self._listener(Notice(event["text"]))
        else:
            self._found[kind] = event

    def _watch(self, line: str) -> None:
        progress = tool_output.converter_progress(line)
        if progress:
            self._listener(Step("convert", *progress))

    def verified(self, level: Verify, made: gguf_file.GgufFile) -> Verification:
        """The verdict on what was found. Raises ConversionProblem."""
        if level is Verify.OFF:
            remarks = tuple(remark.rstrip(".") for remark in self._remarks)
            return Verification("off", len(made.tensors), made.parameter_count, warnings=remarks)
        values = self._found.get("values", {})
        return verdict(
            level,
            self._target.outtype,
            Findings(
                tensor_count=len(made.tensors),
                gguf_parameters=made.parameter_count,
                account=self._account(made),
                not_finite=tuple(values.get("not_finite", ())),
                unread=tuple(values.get("unread", ())),
                tokenizer=self._found.get("tokenizer", {}),
                logits=self._found.get("logits", {}),
                beyond=self._found.get("beyond", {}),
                window=self._found.get("window", {}),
                stops=self._found.get("stops", {}),
                template=self._found.get("template", {}),
                remarks=tuple(self._remarks),
                vectors=self._found.get("vectors", {}),
                unpacked=self._unpacked(made),
            ),
        )

    def _unpacked(self, made: gguf_file.GgufFile) -> Unpacked:
        """Where there are no logits, the values of packed weights that ggq can unpack itself."""
        if (
            self._target.mmproj
            or self._given.storage.method is None
            or "cosine" in self._found.get("logits", {})
        ):
            return Unpacked()
        return compare_packed.compare(self._given, made)

    def _account(self, made: gguf_file.GgufFile) -> Any:
        if self._given.quantization is not None or self._target.mmproj:
            return None
        elements = {tensor.name: tensor.elements for tensor in self._given.tensors}
        elements |= self._found.get("weights", {}).get("elements", {})
        return account(elements, made) if elements else None
