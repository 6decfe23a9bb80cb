"""Hollow models: GGUFs with every byte of their headers, and no weights.

llama.cpp tells of such a file what it tells of the real one (sizes, memory, speed), and it takes little more
disk than its vocabulary. They are made once per commit of a model and of the toolchain, and are cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggq import hub
from ggq._version import __version__
from ggq.checkpoint import checkpoint
from ggq.conversion import SourceInfo, convert_hollow
from ggq.conversion.settings import Outtype
from ggq.conversion.source import model_name as folder_name
from ggq.estimation.hollow_parts import Parts
from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf import names as gguf_names
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.model_ref import ModelRef
from ggq.presets.catalogue import Preset
from ggq.progress import Notice, silent
from ggq.quantization import expected_imatrix
from ggq.quantization.imatrix import default_name
from ggq.quantization.recipe import Recipe, ask
from ggq.records.manifest import is_ours
from ggq.session import Session
from ggq.system import codec, files, places, scratch

_RECORD = "hollow.json"
_BASE = "base.gguf"
_SCHEMA_VERSION = 1
_SMALL_BYTES = 64 << 20
_TOKEN = secrets.token_hex(4)
_ELSEWHERE = "set XDG_CACHE_HOME to a folder on another file system"

_OF_PROCESS = re.compile(r"\.(\d+)-[0-9a-f]{8}\.gguf$")
# Processes of another host, or container, that share the cache are not seen; none plans for so long.
_LEFT_AFTER_S = 3600


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: its ``name``; ``repo_id``, ``commit`` and ``license`` of a Hub model (None:
    it is here), of which ``download_bytes`` are not on the disk; ``network_bytes`` were received now.
    """

    name: str
    repo_id: str | None = None
    commit: str | None = None
    license: str | None = None
    download_bytes: int = 0
    network_bytes: int = 0


@dataclass(frozen=True)
class HollowModel:
    """A model whose weights are not needed.

    ``base``: its 16-bit GGUF (hollow, but for a reference to a GGUF file: then that file itself); ``folder``:
    where its hollow files are kept. ``seconds`` were spent for it, now; ``reused``: it was in the cache.
    ``peak_memory_bytes`` of the conversion (None: there was none now, or the platform does not tell).
    """

    source: ModelSource
    base: Path
    folder: Path
    seconds: float
    peak_memory_bytes: int | None
    reused: bool
    toolchain: Toolchain

    def recipe(self, preset: Preset) -> Recipe:
        """What the preset makes of the base; one that needs an imatrix with that which
        `ggq imatrix` would make, as far as it can be known. Raises as ``quantize.recipe.ask`` does."""
        base = gguf_file.read_all(self.base)
        recipe = ask(self.toolchain, base, preset, QuantizeOptions())
        if not recipe.size.needs_imatrix:
            return recipe
        with scratch.folder("matrix") as folder:
            matrix = expected_imatrix.matrix(base, folder, Path(default_name(self.source.name)), "text.txt")
            found = ask(self.toolchain, base, preset, QuantizeOptions(imatrix=matrix.file.path), matrix)
        options = replace(found.options, imatrix=None)
        return replace(found, options=options, size=replace(found.size, needs_imatrix=True))

    def key(self, preset: Preset) -> str:
        """What tells the preset's files from those of others, of the same name, too."""
        own = json.dumps([preset.ftype, dict(preset.tensor_types)]).encode()
        return f"{preset.name}-{hashlib.sha256(own).hexdigest()[:8]}"

    def release(self, preset: Preset) -> None:
        """Remove this process's hollow files of the whole preset, if there are any."""
        self._path(preset).unlink(missing_ok=True)
        self._path(preset, None, "narrow").unlink(missing_ok=True)

    def _path(self, preset: Preset, layers: int | None = None, *marks: str) -> Path:
        # Of each process its own: another one may remove its file while this one's tool is about to open it.
        # Containers that share a cache can have the same process ids.
        words = [self.key(preset), *([f"{layers}-layers"] if layers is not None else []), *marks]
        return self.folder / f"{'-'.join(words)}.{os.getpid()}-{_TOKEN}.gguf"

    def quantized(
        self, preset: Preset, *, layers: int | None = None, routed: bool = False, narrow: bool = False
    ) -> Path:
        """The hollow GGUF of a preset; its whole size is the real file's to the byte.

        ``layers``: only the first so many blocks, with tensor types as they are spread over the whole depth,
        to extrapolate a speed. ``routed``: for a mixture of experts (other models are left as they are), with
        random routers and embeddings, so that experts are chosen at random as a real model chooses them;
        that file takes the disk that those tensors take. ``narrow``: with hardly any vocabulary, to learn
        what is not due to it.

        It takes as much disk as its vocabulary (7 MB for 128,000 tokens), and may be removed after use (see
        ``release``): it is made again in a moment. It is this process's own; what a dead one left goes when
        the model is opened an hour later.

        Raises GgufProblem (a base that is quantized already), UsageProblem (``layers`` out of range),
        ToolFailed, ToolchainProblem, OutputProblem, DiskFull.
        """
        target = self._path(preset, layers, *["routed"] * routed, *["narrow"] * narrow)
        if target.is_file():
            return target
        base = gguf_file.read_all(self.base)
        recipe = self.recipe(preset)
        parts = Parts(base, recipe, self.toolchain)
        if layers is not None:
            parts.cut(layers)
        if narrow:
            parts.narrow()
        if routed and base.expert_count:
            parts.enliven()
        with files.lock(self.folder, silent), files.staging(self.folder) as staged:
            with files.explain_os_error(self.folder, _ELSEWHERE):
                gguf_hollow.write(staged / target.name, base, parts.tensors, parts.changed)
            files.publish(staged / target.name, target, durable=False)
        return target


def hollow_model(
    ref: ModelRef | Path,
    session: Session | None = None,
    *,
    outtype: str = Outtype.AUTO,
    retry: Retry = DEFAULT_RETRY,
) -> HollowModel:
    """Make, or find in the cache, the hollow model of a reference (a path: a checkpoint folder or a GGUF).

    Of a Hub model only config, tokenizer, model card and the headers of the weights are read; when its whole
    snapshot is in the Hub cache, or of a folder, nothing is received. ``outtype``: of the conversion (see
    ``convert.resolve_outtype``).

    Raises HubProblem, CheckpointProblem (NeedsWeights: this model can only be planned after download),
    ConversionProblem, GgufProblem, OutputProblem (the cache folder does not allow sparse files), DiskFull,
    ToolchainProblem, UsageProblem.
    """
    if isinstance(ref, Path):
        ref = ModelRef("gguf" if ref.is_file() else "folder", path=ref)
    maker = _Maker(session or Session(), outtype, retry)
    if ref.kind == "hub":
        return maker.of_repository(ref)
    assert ref.path is not None
    return maker.of_gguf(ref.path) if ref.kind == "gguf" else maker.of_folder(ref.path)


class _Maker:
    """The three kinds of references, each with what identifies it."""

    def __init__(self, session: Session, outtype: str, retry: Retry) -> None:
        self._session = session
        self._toolchain = session.toolchain
        self._listener = session.listener
        self._outtype = outtype
        self._how: Any = {"offline": session.offline, "retry": retry, "listener": session.listener}

    def of_repository(self, ref: ModelRef) -> HollowModel:
        model = hub.inspect(ref.repo_id, ref.revision, **self._how)
        name = model.repo_id.rpartition("/")[2]
        folder = self._folder(name, [model.repo_id, model.commit, self._outtype])
        source = SourceInfo(model.repo_id, model.commit, model.license)

        def fill(staged: Path) -> _Made:
            found = hub.gather(model, staged, **self._how)
            made = self._convert(found.folder, staged, source, without_values=not found.with_values)
            return replace(made, network_bytes=found.received_bytes)

        missing = hub.needed_bytes(model, hub.select_files(model.files))
        made = self._model(name, folder, source, fill)
        return replace(made, source=replace(made.source, download_bytes=missing))

    def of_folder(self, path: Path) -> HollowModel:
        given = checkpoint.read(path)  # what is no checkpoint is told first, and in its own words
        if given.storage.remark:
            self._listener(Notice(given.storage.remark))
        name = folder_name(path)
        folder = self._folder(name, [*_identity(path), self._outtype])
        return self._model(name, folder, None, lambda staged: self._convert(path, staged, None))

    def of_gguf(self, path: Path) -> HollowModel:
        given = gguf_file.read_model(path)
        with given.path.open("rb") as stream:
            header = hashlib.sha256(stream.read(given.data_offset)).hexdigest()
        name = gguf_names.parse_name(path.name).model
        folder = self._folder(name, [header, str(given.file_bytes)])
        return replace(self._model(name, folder, None, lambda _: _Made()), base=given.path)

    def _folder(self, name: str, identity: list[str]) -> Path:
        """The cache folder of a model, made by this toolchain and this ggq."""
        tool = self._toolchain.commit or str(self._toolchain.bin_dir)
        key = hashlib.sha256(json.dumps([*identity, name, tool, __version__]).encode()).hexdigest()[:16]
        stem = gguf_names.output_name(name, key).removesuffix(".gguf")
        return places.cache() / "hollow" / stem

    def _convert(
        self, folder: Path, staged: Path, source: SourceInfo | None, *, without_values: bool = False
    ) -> _Made:
        peak_memory_bytes = convert_hollow(
            folder,
            staged / _BASE,
            outtype=self._outtype,
            without_values=without_values,
            source=source,
            session=self._session,
        )
        return _Made(peak_memory_bytes=peak_memory_bytes)

    def _model(
        self, name: str, folder: Path, source: SourceInfo | None, fill: Callable[[Path], _Made]
    ) -> HollowModel:
        """The model in ``folder``. Unless it was made before, ``fill`` makes it in a staging folder."""
        started = time.monotonic()
        made = _Made()
        reused = _is_made(folder)
        if not reused:
            files.make_folder(folder, _ELSEWHERE)
            files.require_holes(folder, _ELSEWHERE)
            with files.lock(folder, self._listener), files.staging(folder) as staged:
                reused = _is_made(folder)  # by another ggq, while this one waited
                if not reused:
                    made = fill(staged)
                    if (staged / _BASE).is_file():
                        files.publish(staged / _BASE, folder / _BASE)  # a record must not outlive it
                    _write_record(folder, name, source, made)
        _remove_leftovers(folder)
        return HollowModel(
            source=ModelSource(name, **(vars(source) if source else {}), network_bytes=made.network_bytes),
            base=folder / _BASE,
            folder=folder,
            seconds=round(time.monotonic() - started, 2),
            peak_memory_bytes=made.peak_memory_bytes,
            reused=reused,
            toolchain=self._toolchain,
        )


@dataclass(frozen=True)
class _Made:
    """What making a base took: as HollowModel has it."""

    network_bytes: int = 0
    peak_memory_bytes: int | None = None


def _remove_leftovers(folder: Path) -> None:
    """Remove the presets' files of processes that are no more."""
    import psutil

    for file in folder.glob("*.gguf"):
        found = _OF_PROCESS.search(file.name)
        if found and not psutil.pid_exists(int(found[1])):
            with contextlib.suppress(FileNotFoundError):  # another one removed it
                if time.time() - file.stat().st_mtime > _LEFT_AFTER_S:
                    file.unlink()


@dataclass(frozen=True)
class _Record:
    """What is written beside a base that is whole: of what it was made."""

    schema_version: int
    name: str
    repo_id: str | None
    commit: str | None
    network_bytes: int


def _is_made(folder: Path) -> bool:
    try:
        found = codec.decode(_Record, json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
    return found.schema_version == _SCHEMA_VERSION


def _write_record(folder: Path, name: str, source: SourceInfo | None, made: _Made) -> None:
    """The last thing to be written: with it the folder is whole, and a person can tell what it is of."""
    record = _Record(
        schema_version=_SCHEMA_VERSION,
        name=name,
        repo_id=source.repo_id if source else None,
        commit=source.commit if source else None,
        network_bytes=made.network_bytes,
    )
    files.write_json(folder / _RECORD, codec.encode(record))


def _identity(folder: Path) -> Iterator[str]:
    """What tells a checkpoint folder from others: names, sizes, headers of weights, content of the rest."""
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if not file.is_file() or is_ours(file.name) or any(part.startswith(".") for part in inner.parts):
            continue
        stat = file.stat()
        yield f"{inner.as_posix()} {stat.st_size}"
        with file.open("rb") as stream:
            if file.suffix == ".safetensors":
                start = stream.read(8)
                length = min(int.from_bytes(start, "little"), _SMALL_BYTES)
                yield hashlib.sha256(start + stream.read(length)).hexdigest()
            elif stat.st_size <= _SMALL_BYTES:
                yield hashlib.sha256(stream.read()).hexdigest()
            else:
                yield str(stat.st_mtime_ns)
