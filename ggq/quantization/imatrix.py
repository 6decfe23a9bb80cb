"""A base's imatrix from a text: made once, continued where it was broken off, and written down."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggq._version import __version__
from ggq.errors import CannotServe, GgufProblem, OutputProblem, SourceChanged, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp import imatrix as tool
from ggq.llamacpp import text_tokens
from ggq.llamacpp.imatrix import Stretch, Sums, Time
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Listener, Notice, Step, silent
from ggq.quantization import calibration, expected_imatrix, imatrix_file, thin_experts
from ggq.quantization.imatrix_settings import ImatrixResult, ImatrixSettings
from ggq.quantization.recipe import refuse_quantized
from ggq.records.environment import environment
from ggq.records.manifest import Manifest, OutputFile, StepRecord, base_model
from ggq.session import Session
from ggq.settings import filled
from ggq.system import codec, files, hardware, texts
from ggq.system.texts import Text
from ggq.system.unchanged import Unchanged

STEP = "imatrix"
# What a kill costs: the stretch under way. It takes about a minute, or so much that a tenth of the time goes
# into loading the model again; the first one tells how fast it goes.
_FIRST_CHUNKS = 4
_STRETCH_S = 60.0
_LOADING_SHARE = 0.1
_PARTIAL = ".partial.gguf"
_CONTEXT = 512
_PARSE_SPECIAL = "parse_special"

Record = Callable[[str, StepRecord], None]


def default_name(model_name: str) -> str:
    """``Qwen3-0.6B`` -> ``Qwen3-0.6B-imatrix.gguf``."""
    return gguf_names.output_name(model_name, "imatrix")


def imatrix(
    base: str | Path,
    settings: ImatrixSettings | None = None,
    *,
    session: Session | None = None,
    **keywords: Any,
) -> ImatrixResult:
    """Make the imatrix of a 16-bit GGUF, by llama-imatrix.

    ``keywords``: fields of ``ImatrixSettings``, in place of those of ``settings``. The same call goes on
    where an earlier one was stopped, and makes the same bytes.

    Raises UsageProblem, GgufProblem, OutputProblem, DiskFull, DoesNotFit, ToolFailed, ToolchainProblem.
    """
    session = session or Session()
    settings = filled(ImatrixSettings, settings, keywords)
    toolchain, listener = session.toolchain, session.listener
    reading = Unchanged(gguf_file.shards(Path(base)))
    whole = gguf_file.read_all(Path(base))
    refuse_quantized(whole)
    source = calibration.read(settings.text)
    name = gguf_names.parse_name(whole.path.name).model
    target = settings.output or whole.path.with_name(default_name(name))
    if target.resolve() in [path.resolve() for path in whole.paths]:
        raise UsageProblem(f"{target} would be overwritten by its matrix.", "", "Give another name with -o.")
    folder = files.make_folder(target.parent)
    with files.lock(folder, listener=listener), files.staging(folder) as work:
        manifest = Manifest.of(name, folder)
        manifest.model = manifest.model or base_model(whole.path)

        def record(step: str, done: StepRecord) -> None:
            manifest.environment = codec.encode(environment(toolchain))
            manifest.record(step, done)

        how = _for_model(settings, whole)
        matrix = Matrix(manifest, target.name, source, how, toolchain, listener)
        with reading.explaining():
            digests = [files.sha256_file(path, listener, "read the 16-bit GGUF") for path in whole.paths]
            base_sha256 = "+".join(digests)
            ready = matrix.known(base_sha256)
            return ready or matrix.make(whole, base_sha256, reading, work, record, force=settings.force)


class Matrix:
    """A matrix as a step of the manifest beside it. ``any_settings``: one of this base and text that is there
    will do, however it was made."""

    def __init__(
        self,
        manifest: Manifest,
        name: str,
        text: Text,
        settings: ImatrixSettings,
        toolchain: Toolchain,
        listener: Listener = silent,
        *,
        any_settings: bool = False,
    ) -> None:
        self.path = manifest.folder / name
        self._manifest = manifest
        self._step = f"{STEP} {name}"
        self._text = text
        self._settings = settings
        self._any_settings = any_settings
        self._toolchain = toolchain
        self._listener = listener
        self._tool = f"ggq {__version__}, llama.cpp {toolchain.commit or 'of unknown commit'}"

    def known(self, base_sha256: str) -> ImatrixResult | None:
        """The matrix that an earlier run made of this base and text, if it is still whole."""
        record = self._manifest.steps.get(self._step)
        if record is None:
            return None
        options = record.options if self._will_do(record.options) else self._options
        if not record.same_work(self._inputs(base_sha256), options, self._tool):
            return None
        return self._result(reused=True) if self._manifest.outputs_whole(self._step) else None

    def make(
        self,
        base: GgufFile,
        base_sha256: str,
        reading: Unchanged,
        work: Path,
        record: Record,
        *,
        force: bool = False,
    ) -> ImatrixResult:
        """Make it, or the rest of it. ``reading``: the base's files, as they were before their digest was
        taken; ``work``: a staging folder; ``record`` writes the finished step down.

        Raises as ``imatrix`` does.
        """
        self._settings = _for_model(self._settings, base)
        self._require(base)
        self._claim(force=force)
        text = texts.unchanged(self._text)
        placed = texts.place(self._text, work / "text")
        tokens = text_tokens.count(
            self._toolchain, base, self._text, placed, parse_special=self._settings.parse_special,
            listener=self._listener,
        )  # fmt: skip
        total = self._chunks(tokens)
        size = files.human_bytes(self._text.file_bytes)
        self._listener(Notice(f"The imatrix is made from {self._text.name} ({size})."))
        partial = self._partial(base_sha256, total)
        resumed = tool.read(partial) if partial.is_file() else None  # what an earlier run had computed
        try:
            with text.guard(), reading.guard():
                made, seconds = self._sum_up(base, placed, partial, resumed, tokens, total, work)
        except SourceChanged:
            partial.unlink(missing_ok=True)
            raise
        blind = self._proven(made)
        done = StepRecord(
            inputs=self._inputs(base_sha256),
            options=self._options,
            tool=self._tool,
            outputs=(OutputFile.of(partial, self.path.name),),
            seconds=round(seconds, 2),
            findings={
                "chunks": made.chunks,
                "tokens": made.chunks * made.context,
                "entries": made.entries,
                "partial_entries": len(blind),
                "text_name": self._text.name,
                "resumed_chunks": resumed.chunks if resumed else 0,
            },
        )
        record(self._step, done)
        files.publish(partial, self.path)
        for abandoned in self.path.parent.glob(f".{glob.escape(self.path.stem)}.*{_PARTIAL}"):
            abandoned.unlink()
        return self._result(reused=False)

    def _inputs(self, base_sha256: str) -> dict[str, str]:
        return {"base": base_sha256, "text": self._text.sha256}

    @property
    def _options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "chunks": settings.chunks,
            "context": self._context,
            "n_gpu_layers": self._layers,
            _PARSE_SPECIAL: settings.parse_special,
        }

    def _will_do(self, options: Mapping[str, Any]) -> bool:
        """Whether a matrix of such settings is as good as one of those that were asked for. That special
        tokens are parsed is asked for by whoever wants any settings, too."""
        if self._any_settings:
            return bool(options.get(_PARSE_SPECIAL)) or not self._settings.parse_special
        return {_PARSE_SPECIAL: False, **options} == self._options

    @property
    def _context(self) -> int:
        return self._settings.context or _CONTEXT

    @property
    def _layers(self) -> int | str:
        """``auto``: llama.cpp decides."""
        if self._settings.n_gpu_layers is not None:
            return self._settings.n_gpu_layers
        return "auto" if self._toolchain.may_see_gpus else 0

    def _result(self, *, reused: bool) -> ImatrixResult:
        record = self._manifest.steps[self._step]
        found = record.findings
        return ImatrixResult(
            path=self.path,
            file_bytes=record.outputs[0].file_bytes,
            chunks=found["chunks"],
            context=record.options["context"],
            tokens=found["tokens"],
            entries=found["entries"],
            partial_entries=found["partial_entries"],
            text_name=found["text_name"],
            text_sha256=record.inputs["text"],
            parse_special=bool(record.options.get(_PARSE_SPECIAL)),
            seconds=record.seconds,
            resumed_chunks=found["resumed_chunks"],
            reused=reused,
        )

    def _require(self, base: GgufFile) -> None:
        """Refuse what cannot come out well, before any work."""
        base.require_next_tokens(
            "an imatrix", "Quantize it with a preset that needs none, such as Q8_0 or Q4_K_M."
        )
        context = self._context
        if not base.tokenizer:
            raise GgufProblem(
                f"{base.path.name} has no tokenizer.",
                "Without one a text has no tokens.",
                "Name the 16-bit GGUF of a whole model: `ggq convert` makes it.",
            )
        if context < tool.LEAST_CONTEXT:
            raise UsageProblem(
                f"A chunk of {context} tokens is too short.",
                f"llama-imatrix wants {tool.LEAST_CONTEXT} or more.",
                "Make it by `ggq imatrix -c` with a larger one.",
            )
        if base.context_length is not None and context > base.context_length:
            raise CannotServe(
                f"{base.path.name} has no room for chunks of {context:,} tokens.",
                f"It was trained for {base.context_length:,}.",
                "Make it by `ggq imatrix -c` with a smaller one.",
            )
        needed = 3 * expected_imatrix.file_bytes(
            base
        )  # what is there, what is computed, and how it is published
        files.require_space(self.path.parent, needed, "the imatrix")

    def _claim(self, *, force: bool) -> None:
        """Refuse to overwrite a file of the user's, or a matrix of another text or other settings, which may
        have taken hours."""
        before = self._manifest.steps.get(self._step)
        if before is not None and not force and self._manifest.outputs_whole(self._step):
            if before.inputs["text"] != self._text.sha256:
                raise OutputProblem(
                    f"{self.path} is an imatrix of another text.",
                    f"It was made from {before.findings['text_name']}, not from {self._text.name}.",
                    "Name that text, choose another file, or give --force to replace this one.",
                )
            if not self._will_do(before.options):
                settings = ", ".join(f"{key} {value}" for key, value in before.options.items())
                raise OutputProblem(
                    f"{self.path} is an imatrix of other settings.",
                    f"It was made with {settings}.",
                    "Give these, choose another file, or give --force to replace this one.",
                )
        self._manifest.claim((self.path.name,), force=force)

    def _chunks(self, tokens: int) -> int:
        """How many there will be. Raises CannotServe when there are too few."""
        context, asked = self._context, self._settings.chunks
        there = tokens // context
        if there < tool.LEAST_CHUNKS:
            raise tool.too_short(tokens, context)
        if asked is not None and asked > there:
            self._listener(Notice(f"The text has {there} chunks: all of them are taken.", "warning"))
        return there if asked is None else min(asked, there)

    def _partial(self, base_sha256: str, total: int) -> Path:
        """Where unfinished work is: beside the target, under a name that no other work has."""
        build = self._toolchain.build
        work = [self._inputs(base_sha256), self._options, total, self._text.path.name, self._tool,
                build.stamp if build else None]  # fmt: skip
        identity = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:16]
        return self.path.with_name(f".{self.path.stem}.{identity}{_PARTIAL}")

    def _sum_up(
        self,
        base: GgufFile,
        text: Path,
        partial: Path,
        sums: Sums | None,
        tokens: int,
        total: int,
        work: Path,
    ) -> tuple[Sums, float]:
        """Stretch by stretch to the end; each one's result is kept in ``partial``."""
        settings = tool.Settings(
            self._context,
            self._settings.threads or hardware.usable_cores(),
            None if self._layers == "auto" else Offload(int(self._layers)),
            self._settings.parse_special,
        )
        last_start = tool.last_start(tokens, self._context)
        seconds, length = 0.0, _FIRST_CHUNKS
        done = sums.chunks if sums else 0

        def tell(chunks: int) -> None:
            self._listener(Step(STEP, chunks, total, "chunks"))

        tell(done)
        while sums is None or done < total:
            end = done + length if done + length <= min(total, last_start) else total
            stretch = Stretch(done, end - done, sums)
            fresh = work / "sums.gguf"
            taken = tool.add(self._toolchain, base.path, text, stretch, fresh, settings, tell)
            files.publish(fresh, partial, durable=True)
            sums, done = tool.read(partial), end
            seconds += taken.seconds
            length = _next_length(stretch, taken)
        return sums, seconds

    def _proven(self, made: Sums) -> list[str]:
        """The entries with experts that met no token. Raises GgufProblem when a sum is no number."""
        matrix = imatrix_file.read(made.file.path)
        if not matrix.is_finite():
            raise GgufProblem(
                "The imatrix holds values that are not numbers.",
                "The 16-bit GGUF's activations overflow, or some of its weights are NaN.",
                "Make it again from its checkpoint (`ggq convert`).",
            )
        found = thin_experts.look(matrix)
        if remark := thin_experts.words(found, made.chunks * made.context):
            self._listener(Notice(remark, "warning"))
        return sorted({name for it in found if not it.tokens for name in it.tensors})


def _for_model(settings: ImatrixSettings, base: GgufFile) -> ImatrixSettings:
    """The settings, with the longest usual chunk that the model has room for, where none was asked for."""
    if settings.context is not None:
        return settings
    return replace(settings, context=min(_CONTEXT, max(tool.LEAST_CONTEXT, base.context_length or _CONTEXT)))


def _next_length(stretch: Stretch, taken: Time) -> int:
    loading = max(0.0, taken.seconds - stretch.chunks * taken.chunk_seconds)
    wanted = max(_STRETCH_S, loading / _LOADING_SHARE)
    return max(1, int(wanted / taken.chunk_seconds))
