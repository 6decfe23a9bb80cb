"""Checkpoint -> base GGUF -> quantized GGUFs: resumable steps over a manifest beside the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ggq import __version__, checkpoint, files, gguf_file, gguf_names, hardware, hub, presets, reference
from ggq.convert import SourceInfo, convert, default_name, resolve_outtype
from ggq.environment import environment
from ggq.errors import OutputProblem, UsageProblem
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.presets import Preset
from ggq.progress import Listener, Notice, silent
from ggq.quantize.recipe import Recipe, ask, check, refuse_quantized, refuse_without_imatrix
from ggq.quantize.tool import quantize_one
from ggq.records import MANIFEST_SUFFIX, Manifest, OutputFile, StepRecord

DEFAULT_PRESETS = ("Q4_K_M",)
KEPT = "base_kept"


@dataclass(frozen=True)
class QuantizedFile:
    """What one preset made. ``paths`` are several for a split model; ``bits_per_weight`` counts tensor data;
    ``fallback_count`` of ``quantized_count`` tensors got another type than the preset wants; ``reused``: an
    earlier run made it, and it is still whole."""

    preset: str
    paths: tuple[Path, ...]
    file_bytes: int
    bits_per_weight: float
    fallback_count: int
    quantized_count: int
    seconds: float
    reused: bool

    @property
    def mostly_fell_back(self) -> bool:
        return 2 * self.fallback_count > self.quantized_count


@dataclass(frozen=True)
class PipelineResult:
    """``base`` is None when it was not kept; ``verification``: what the conversion was checked for and
    what was seen (empty when a GGUF was given)."""

    model: str
    base: Path | None
    files: tuple[QuantizedFile, ...]
    manifest: Path
    verification: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """How to make the files. ``options`` go to llama-quantize; ``verify``: off, sampled or full."""

    outtype: str = "auto"
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    threads: int | None = None
    verify: str = "sampled"
    keep_base: bool = False
    force: bool = False


def quantize(
    base: Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> PipelineResult:
    """Quantize a base GGUF over presets, into ``outdir`` (default: beside the base).

    Raises UsageProblem, GgufProblem, OutputProblem, DiskFull, ToolFailed, ToolchainProblem.
    """
    chosen = (catalogue or presets.load()).resolve(preset_names)
    whole = gguf_file.read_all(base)
    refuse_quantized(whole)
    base = whole.path
    name = gguf_names.parse_name(base.name).model
    with _Run(name, outdir or base.parent, settings or Settings(), toolchain, listener) as run:
        # Where an earlier run converted the base here, its source is the better answer.
        run.manifest.model = run.manifest.model or {"base": base.name}
        run.claim(chosen, whole.paths, "Choose another folder with --outdir.")
        made = run.quantize_all(_GivenBase(base, listener), chosen)
        return PipelineResult(name, base, made, run.manifest.path, verification={})


def recipes(
    base: Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    options: QuantizeOptions | None = None,
    *,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
) -> tuple[Recipe, ...]:
    """What ``quantize`` would make, asked of llama-quantize: exact bytes, types, fallbacks."""
    chosen = (catalogue or presets.load()).resolve(preset_names)
    whole = gguf_file.read_all(base)
    toolchain = toolchain or toolchains.find()
    return tuple(ask(toolchain, whole, preset, options or QuantizeOptions()) for preset in chosen)


def convert_and_quantize(
    model: str,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> PipelineResult:
    """Download, convert, verify and quantize ``model`` into ``outdir`` (default: a folder of its name here).

    Every finished step is recorded; the same call goes on where an earlier one was stopped, and makes the
    same bytes. Raises any GgqError.
    """
    settings = settings or Settings()
    catalogue = catalogue or presets.load()
    chosen = catalogue.resolve(preset_names)
    ref = reference.parse_reference(model, revision)
    if ref.kind == "gguf" and ref.path is not None:
        return quantize(
            ref.path,
            preset_names,
            outdir,
            settings,
            catalogue=catalogue,
            toolchain=toolchain,
            listener=listener,
        )
    if settings.options.keep_split:
        raise UsageProblem(
            "There is no split base to keep the shards of.",
            "--keep-split is for a GGUF in shards; a checkpoint becomes one base file.",
            "Leave --keep-split out.",
        )
    check(settings.options)
    toolchain = toolchain or toolchains.find()
    given = _checkpoint_of(ref, offline, listener)
    name = model_name(ref)
    with _Run(name, outdir or Path(name), settings, toolchain, listener) as run:
        run.own({"folder": str(given.folder.resolve())} if given.source is None else asdict(given.source))
        base = _ConvertedBase(run, given)
        run.claim(chosen, (base.path,), "Leave that preset out; --keep-base keeps the base itself.")
        made = run.quantize_all(base, chosen)
        kept = base.keep() if settings.keep_base else None
        if kept is None:
            base.remove()
        return PipelineResult(name, kept, made, run.manifest.path, base.findings)


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint on this disk; from the Hub, with its source and the digests that the Hub announced."""

    folder: Path
    source: SourceInfo | None = None
    announced: Mapping[str, str] | None = None

    def digests(self) -> dict[str, str]:
        """File name -> digest of everything in the folder that a conversion may read."""
        if self.announced is not None:
            return dict(self.announced)
        return {
            path.name: files.sha256_file(path)
            for path in sorted(self.folder.iterdir())
            if path.is_file()
            and not path.name.startswith(".")
            and not path.name.lower().endswith((".gguf", MANIFEST_SUFFIX))
        }


def _checkpoint_of(ref: reference.ModelRef, offline: bool, listener: Listener) -> _Checkpoint:
    if ref.path is not None:
        return _Checkpoint(ref.path)
    fetched = hub.download(ref, offline=offline, listener=listener)
    return _Checkpoint(
        fetched.folder,
        SourceInfo(fetched.repo_id, fetched.commit),
        {file.path: file.blob_name for file in fetched.files},
    )


class _BaseFile(Protocol):
    """The base of a run: its digest as far as it is known already, and the file, made when first needed."""

    def known_sha256(self) -> str | None: ...

    def ensure(self) -> tuple[Path, str]: ...


class _GivenBase:
    """A base GGUF of the user's own, perhaps in shards."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self._path = path
        digests = [files.sha256_file(part, listener, "read the base") for part in gguf_file.shards(path)]
        self._sha256 = "+".join(digests)

    def known_sha256(self) -> str:
        return self._sha256

    def ensure(self) -> tuple[Path, str]:
        return self._path, self._sha256


class _ConvertedBase:
    """The base that this run converts from a checkpoint, unless an earlier run did and nothing changed."""

    STEP = "convert"

    def __init__(self, run: _Run, given: _Checkpoint) -> None:
        self._run = run
        self._given = given
        self._outtype = resolve_outtype(checkpoint.read(given.folder), run.settings.outtype)
        self._name = default_name(run.name, self._outtype)
        self._options = {"outtype": self._outtype, "verify": run.settings.verify}
        # Without a record there is nothing to compare with, so the checkpoint is digested during the work.
        self._inputs = given.digests() if self.STEP in run.manifest.steps else None
        self._ensured = False

    @property
    def path(self) -> Path:
        return self._run.outdir / self._name

    @property
    def findings(self) -> Mapping[str, Any]:
        """What the conversion was checked for, and what was seen."""
        return self._run.manifest.steps[self.STEP].findings

    def known_sha256(self) -> str | None:
        manifest = self._run.manifest
        if self._inputs is None or not manifest.current(
            self.STEP, self._inputs, self._options, self._run.tool
        ):
            return None
        return manifest.steps[self.STEP].outputs[0].sha256

    def ensure(self) -> tuple[Path, str]:
        known = self.known_sha256()
        if not self._ensured and (known is None or not self._run.manifest.outputs_whole(self.STEP)):
            known = self._make()
        self._ensured = True
        assert known is not None
        return self.path, known

    def keep(self) -> Path:
        """Leave the base beside the outputs, for good: later runs without ``keep_base`` spare it."""
        self.ensure()
        if not self.findings.get(KEPT):
            record = self._run.manifest.steps[self.STEP]
            self._run.record(self.STEP, replace(record, findings={**record.findings, KEPT: True}))
        return self.path

    def remove(self) -> None:
        """Remove the base, unless it was kept on purpose or what lies there is not what this job made."""
        if self.findings.get(KEPT):
            return
        if self._ensured or self._run.manifest.outputs_whole(self.STEP):
            self.path.unlink(missing_ok=True)

    def _make(self) -> str:
        run = self._run
        run.manifest.claim((self._name,), force=run.settings.force)
        staged = run.staging / self._name
        # Digests are taken beside the work: of the checkpoint while the converter starts, of the GGUF while
        # it is checked.
        inputs = None if self._inputs is not None else run.background.submit(self._given.digests)
        digests: list[Future[str]] = []

        def digest(written: Path) -> None:
            digests.append(run.background.submit(_digest_and_close, written.open("rb")))

        made = convert(
            self._given.folder, staged, outtype=self._outtype, verify=run.settings.verify,
            source=self._given.source, toolchain=run.toolchain, listener=run.listener, on_written=digest,
        )  # fmt: skip
        if inputs is not None:
            self._inputs = inputs.result()
        output = OutputFile(self._name, made.file_bytes, digests[0].result())
        assert self._inputs is not None
        record = StepRecord(
            inputs=self._inputs,
            options=self._options,
            tool=run.tool,
            outputs=(output,),
            seconds=made.seconds,
            peak_memory_bytes=made.peak_memory_bytes,
            findings=asdict(made.verification) | {"completed_keys": dict(made.completed_keys)},
        )
        run.record(self.STEP, record)
        # A base that is removed in the end is used again only when its digest proves it whole.
        files.publish(staged, self.path, durable=run.settings.keep_base)
        return output.sha256


class _Run(AbstractContextManager["_Run"]):
    """One run over one folder: its lock, its staging folder, its manifest, and the quantize steps."""

    def __init__(
        self, name: str, outdir: Path, settings: Settings, toolchain: Toolchain | None, listener: Listener
    ) -> None:
        self.name = name
        self.outdir = outdir
        self.settings = settings
        self.toolchain = toolchain or toolchains.find()
        self.listener = listener
        self.tool = f"ggq {__version__}, llama.cpp {self.toolchain.commit or 'of unknown commit'}"

    def __enter__(self) -> _Run:
        with ExitStack() as stack:
            stack.enter_context(files.lock(files.make_folder(self.outdir)))
            self.staging = stack.enter_context(files.staging(self.outdir))
            self.manifest = Manifest(self.outdir / f"{self.name}{MANIFEST_SUFFIX}")
            # For what only the record needs: digests, and the machine, which takes a second to describe.
            self.background = stack.enter_context(ThreadPoolExecutor(max_workers=1))
            self._environment = self.background.submit(environment, self.toolchain)
            self._held = stack.pop_all()
        for caveat in self.toolchain.caveats:
            self.listener(Notice(caveat, "warning"))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._held.close()

    def record(self, step: str, record: StepRecord) -> None:
        """Write a finished step down. Raises OutputProblem, DiskFull."""
        self.manifest.environment = self._environment.result()
        self.manifest.record(step, record)

    def own(self, model: Mapping[str, Any]) -> None:
        """Say whose files these are. Raises OutputProblem when they are another model's of the same name."""
        before = self.manifest.model
        same = all(before.get(key) == model.get(key) for key in ("repo_id", "folder"))
        if before and "base" not in before and not same and not self.settings.force:
            raise OutputProblem(
                f"{self.outdir} holds the files of another {self.name}.",
                f"They were made from {before.get('repo_id') or before.get('folder')}.",
                "Choose another folder with --outdir, or give --force to replace them.",
            )
        self.manifest.model = dict(model)

    def claim(self, chosen: Sequence[Preset], base: Sequence[Path], instead: str) -> None:
        """Refuse, before any work, outputs that would overwrite something of the user's, or the base
        (``base``: its shards; ``instead``: what to do then)."""
        names = [gguf_names.output_name(self.name, preset.name) for preset in chosen]
        if self.settings.options.keep_split:
            names = [gguf_names.shard_name(Path(name).stem, 1, len(base)) for name in names]
        if base[0].resolve() in [(self.outdir / name).resolve() for name in names]:
            raise UsageProblem(
                f"{base[0]} would be overwritten by itself.",
                "The preset's file would have the name of the base.",
                instead,
            )
        self.manifest.claim(tuple(names), force=self.settings.force)

    def quantize_all(self, base: _BaseFile, chosen: Sequence[Preset]) -> tuple[QuantizedFile, ...]:
        """The file of every preset: as it was where nothing changed, else made.

        All recipes are asked before the first file is made, so that a preset that cannot be made, or a disk
        that cannot hold them all, is known at once.
        """
        known = base.known_sha256()
        ready = {preset.name for preset in chosen if known is not None and self._is_ready(preset, known)}
        if all(preset.name in ready for preset in chosen):
            return tuple(self._file_of(preset, reused=True) for preset in chosen)
        path, digest = base.ensure()
        whole = gguf_file.read_all(path)
        wanted = {
            preset.name: ask(self.toolchain, whole, preset, self.settings.options)
            for preset in chosen
            if preset.name not in ready
        }
        for recipe in wanted.values():
            refuse_without_imatrix(recipe)
        total = sum(recipe.file_bytes for recipe in wanted.values())
        files.require_space(self.outdir, total, f"the files of {', '.join(wanted)}")
        return tuple(
            self._file_of(preset, reused=True)
            if preset.name in ready
            else self._make(preset, wanted[preset.name], path, digest)
            for preset in chosen
        )

    def _is_ready(self, preset: Preset, base_sha256: str) -> bool:
        step = _step_of(preset)
        inputs = {"base": base_sha256}
        return self.manifest.current(
            step, inputs, self._options_of(preset), self.tool
        ) and self.manifest.outputs_whole(step)

    def _options_of(self, preset: Preset) -> dict[str, Any]:
        options = self.settings.options
        own = [f"{name}={kind}" for name, kind in preset.tensor_types.items()]
        return {
            "ftype": preset.ftype,
            "tensor_types": [*own, *options.tensor_types],
            "output_tensor_type": options.output_tensor_type,
            "token_embedding_type": options.token_embedding_type,
            "keep_split": options.keep_split,
            "imatrix": None if options.imatrix is None else str(options.imatrix),
            "imatrix_sha256": None if options.imatrix is None else files.sha256_file(options.imatrix),
        }

    def _make(self, preset: Preset, recipe: Recipe, base: Path, base_sha256: str) -> QuantizedFile:
        staged = self.staging / gguf_names.output_name(self.name, preset.name)
        threads = self.settings.threads or hardware.usable_cores()
        made = quantize_one(self.toolchain, base, recipe, staged, threads=threads, listener=self.listener)
        record = StepRecord(
            inputs={"base": base_sha256},
            options=self._options_of(preset),
            tool=self.tool,
            outputs=tuple(OutputFile.of(path) for path in made.paths),
            seconds=round(made.seconds, 2),
            peak_memory_bytes=made.peak_memory_bytes,
            findings={
                "bits_per_weight": round(recipe.bits_per_weight, 4),
                "fallback_count": len(recipe.fallbacks),
                "quantized_count": recipe.quantized_count,
            },
        )
        self.manifest.claim(tuple(path.name for path in made.paths), force=self.settings.force)
        self.record(_step_of(preset), record)
        for path in made.paths:
            files.publish(path, self.outdir / path.name)
        return self._file_of(preset, reused=False)

    def _file_of(self, preset: Preset, *, reused: bool) -> QuantizedFile:
        record = self.manifest.steps[_step_of(preset)]
        return QuantizedFile(
            preset=preset.name,
            paths=tuple(self.outdir / output.name for output in record.outputs),
            file_bytes=sum(output.file_bytes for output in record.outputs),
            bits_per_weight=record.findings["bits_per_weight"],
            fallback_count=record.findings["fallback_count"],
            quantized_count=record.findings["quantized_count"],
            seconds=record.seconds,
            reused=reused,
        )


def model_name(ref: reference.ModelRef) -> str:
    """The model's name as files carry it: the repository's, or the folder's."""
    return ref.repo_id.rsplit("/", 1)[-1] if ref.path is None else ref.path.resolve().name


def _digest_and_close(stream: BinaryIO) -> str:
    with stream:
        return files.sha256_stream(stream)


def _step_of(preset: Preset) -> str:
    return f"quantize {preset.name}"
