"""Hollow models: GGUFs with every byte of their headers, and holes for weights.

llama.cpp tells of such a file what it tells of the real one (sizes, memory, speed), and it takes little more
disk than its vocabulary. They are made once per commit of a model and of the toolchain, and are cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import hub
from ggq._version import __version__
from ggq.checkpoint import checkpoint
from ggq.conversion import SourceInfo, convert_hollow
from ggq.conversion.source import model_name as folder_name
from ggq.errors import UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf import names as gguf_names
from ggq.gguf.file import EMBEDDINGS, GgufFile
from ggq.gguf.header import Array
from ggq.gguf.hollow import HollowTensor
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.ggml_rows import quantize_rows
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.model_ref import ModelRef
from ggq.presets.catalogue import Preset
from ggq.progress import Listener, Notice, silent
from ggq.quantization import expected_imatrix
from ggq.quantization.imatrix import default_name
from ggq.quantization.output_files import changed_entries
from ggq.quantization.recipe import Recipe, ask
from ggq.records.manifest import is_ours
from ggq.system import files, places, scratch

_RECORD = "hollow.json"
_BASE = "base.gguf"
_SCHEMA_VERSION = 1
_SMALL_BYTES = 64 << 20
_TOKEN = secrets.token_hex(4)
_ELSEWHERE = "set XDG_CACHE_HOME to a folder on another file system"

_OF_PROCESS = re.compile(r"\.(\d+)-[0-9a-f]{8}\.gguf$")
# Processes of another host, or container, that share the cache are not seen; none plans for so long.
_LEFT_AFTER_S = 3600
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ROUTER = ".ffn_gate_inp.weight"
# Reckoned from the config, not learnt; and small.
_TABLE = re.compile(r"rope_(freqs|factors_(long|short))\.weight$")
# A prime, so that no pattern of token ids falls together with the rows.
_DISTINCT_ROWS = 251
_FEW_TOKENS = 32


@dataclass(frozen=True)
class HollowModel:
    """A model whose weights are not needed.

    ``base``: its 16-bit GGUF (hollow, but for a reference to a GGUF file: then that file itself); ``folder``:
    where its hollow files are kept; ``repo_id`` and ``commit`` of a Hub model, of which ``download_bytes``
    are not on the disk. ``network_bytes`` of files were received for it, now, and ``seconds`` were spent;
    ``reused``: it was in the cache. ``peak_memory_bytes`` of the conversion (None: there was none now, or the
    platform does not tell).
    """

    name: str
    base: Path
    folder: Path
    repo_id: str | None
    commit: str | None
    license: str | None
    download_bytes: int
    network_bytes: int
    seconds: float
    peak_memory_bytes: int | None
    reused: bool
    toolchain: Toolchain

    def recipe(self, preset: Preset) -> Recipe:
        """What the preset makes of the base; one that needs an importance matrix with that which
        `ggq imatrix` would make, as far as it can be known. Raises as ``quantize.recipe.ask`` does."""
        base = gguf_file.read_all(self.base)
        recipe = ask(self.toolchain, base, preset, QuantizeOptions())
        if not recipe.size.needs_imatrix:
            return recipe
        with scratch.folder("matrix") as folder:
            matrix = expected_imatrix.matrix(base, folder, Path(default_name(self.name)), "text.txt")
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
        parts = _Parts(base, recipe, self.toolchain)
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
    *,
    outtype: str = "auto",
    offline: bool = False,
    toolchain: Toolchain | None = None,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> HollowModel:
    """Make, or find in the cache, the hollow model of a reference (a path: a checkpoint folder or a GGUF).

    Of a Hub model only config, tokenizer, model card and the headers of the weights are read; when its whole
    snapshot is in the Hub cache, or of a folder, nothing is received. ``outtype``: of the conversion (see
    ``convert.resolve_outtype``).

    Raises HubProblem, CheckpointProblem (NeedsWeights: this model can only be planned after download),
    ConversionProblem, GgufProblem, OutputProblem (the cache folder cannot hold holes), DiskFull,
    ToolchainProblem, UsageProblem.
    """
    tools = toolchain or toolchains.find()
    if isinstance(ref, Path):
        ref = ModelRef("gguf" if ref.is_file() else "folder", path=ref)
    maker = _Maker(tools, outtype, offline, retry, listener)
    if ref.kind == "hub":
        return maker.of_repository(ref)
    assert ref.path is not None
    return maker.of_gguf(ref.path) if ref.kind == "gguf" else maker.of_folder(ref.path)


class _Maker:
    """The three kinds of references, each with what identifies it."""

    def __init__(
        self, toolchain: Toolchain, outtype: str, offline: bool, retry: Retry, listener: Listener
    ) -> None:
        self._toolchain = toolchain
        self._outtype = outtype
        self._offline = offline
        self._retry = retry
        self._listener = listener

    def of_repository(self, ref: ModelRef) -> HollowModel:
        model = hub.inspect(
            ref.repo_id, ref.revision, offline=self._offline, retry=self._retry, listener=self._listener
        )
        name = model.repo_id.rpartition("/")[2]
        folder = self._folder(name, [model.repo_id, model.commit, self._outtype])
        source = SourceInfo(model.repo_id, model.commit, model.license)

        def fill(staged: Path) -> _Made:
            found = hub.gather(
                model, staged, offline=self._offline, retry=self._retry, listener=self._listener
            )
            made = self._convert(found.folder, staged, source, without_values=not found.with_values)
            return replace(made, network_bytes=found.received_bytes)

        missing = hub.needed_bytes(model, hub.select_files(model.files))
        return replace(self._model(name, folder, source, fill), download_bytes=missing)

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
        done = convert_hollow(
            folder,
            staged / _BASE,
            outtype=self._outtype,
            without_values=without_values,
            source=source,
            toolchain=self._toolchain,
            listener=self._listener,
        )
        return _Made(peak_memory_bytes=done.peak_memory_bytes)

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
            name=name,
            base=folder / _BASE,
            folder=folder,
            repo_id=source.repo_id if source else None,
            commit=source.commit if source else None,
            license=source.license if source else None,
            download_bytes=0,
            network_bytes=made.network_bytes,
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


def _is_made(folder: Path) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return bool(record["schema_version"] == _SCHEMA_VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_record(folder: Path, name: str, source: SourceInfo | None, made: _Made) -> None:
    """The last thing to be written: with it the folder is whole, and a person can tell what it is of."""
    record = {
        "schema_version": _SCHEMA_VERSION,
        "name": name,
        "repo_id": source.repo_id if source else None,
        "commit": source.commit if source else None,
        "network_bytes": made.network_bytes,
    }
    files.write_json(folder / _RECORD, record)


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


# --- the parts of a quantized file -----------------------------------------------------------------------


class _Parts:
    """Tensors and changed metadata of a hollow quantized file: first those of the whole."""

    def __init__(self, base: GgufFile, recipe: Recipe, toolchain: Toolchain) -> None:
        self._base = base
        self._toolchain = toolchain
        self._source = {tensor.name: tensor for tensor in base.tensors}
        self.tensors = [
            HollowTensor(tensor.name, tensor.shape, tensor.target_type) for tensor in recipe.tensors
        ]
        self.tensors = [replace(tensor, data=self._table(tensor)) for tensor in self.tensors]
        self.changed = changed_entries(base, recipe)

    def _table(self, tensor: HollowTensor) -> Iterable[bytes]:
        """The content of a tensor that the base has for real."""
        source = self._source[tensor.name]
        if not _TABLE.match(tensor.name) or source.type != tensor.type:
            return ()
        with source.path.open("rb") as stream:
            stream.seek(source.offset_bytes)
            return (stream.read(source.data_bytes),)

    def cut(self, layers: int) -> None:
        """Leave the first ``layers`` blocks. Raises UsageProblem."""
        base, architecture = self._base, self._base.architecture
        blocks = base.block_count or 0
        # Blocks for multi-token prediction stand after the others, and are counted with them.
        extra = base.integer(f"{architecture}.nextn_predict_layers") or 0
        depth = blocks - extra
        if not 1 <= layers <= depth:
            raise UsageProblem(
                f"{layers} layers were asked for; {base.path.name} has {depth}.",
                "",
                f"Choose from 1 to {depth}.",
            )
        given = {tensor.name: tensor for tensor in self.tensors}
        kept = []
        for tensor in self.tensors:
            block = _BLOCK.fullmatch(tensor.name)
            if block is None:
                kept.append(tensor)
            elif int(block[1]) < layers:
                # The presets give the first and the last blocks better types: a few must stand for all.
                model = (2 * int(block[1]) + 1) * depth // (2 * layers)
                typed = given.get(f"blk.{model}.{block[2]}", tensor)
                kept.append(replace(tensor, type=typed.type) if typed.shape == tensor.shape else tensor)
        self.tensors = kept
        self.changed[f"{architecture}.block_count"] = layers
        if extra:
            self.changed[f"{architecture}.nextn_predict_layers"] = 0
        for key, value in base.metadata.items():
            if not key.startswith(f"{architecture}.") or ".rope." in key:
                continue
            if isinstance(value, Array) and len(value) == blocks and not value.is_of_texts:
                self.changed[key] = value.first(layers)

    def narrow(self) -> None:
        """Leave a few tokens, nameless, in every tensor that has a row or a value for each."""
        tokens, few = self._base.embedded_tokens, _FEW_TOKENS
        self.tensors = [
            replace(tensor, shape=(*tensor.shape[:-1], few)) if tensor.shape[-1] == tokens else tensor
            for tensor in self.tensors
        ]
        self.changed["tokenizer.ggml.model"] = "no_vocab"
        self.changed[f"{self._base.architecture}.vocab_size"] = few

    def enliven(self) -> None:
        """Random embeddings and routers, and norms of one: each router then sees another vector at every
        token, and chooses experts by it. What the experts add is nothing, since they are holes."""
        self.tensors = [replace(tensor, data=self._values(tensor)) for tensor in self.tensors]

    def _values(self, tensor: HollowTensor) -> Iterable[bytes]:
        import numpy as np

        width, rows = tensor.shape[0], tensor.elements // tensor.shape[0]
        if tensor.name == EMBEDDINGS:
            few = self._random(tensor, min(rows, _DISTINCT_ROWS))
            whole, rest = divmod(rows, _DISTINCT_ROWS)
            last = few[: len(few) * rest // _DISTINCT_ROWS] if whole else b""
            return itertools.chain(itertools.repeat(few, max(1, whole)), (last,))
        if tensor.name.endswith(_ROUTER):
            return (self._random(tensor, rows),)
        if "norm" in tensor.name and tensor.name.endswith(".weight") and rows == 1:
            return (quantize_rows(self._toolchain, tensor.type, np.ones((1, width), np.float32)),)
        return tensor.data

    def _random(self, tensor: HollowTensor, rows: int) -> bytes:
        import numpy as np

        seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little")
        values = np.random.default_rng(seed).standard_normal((rows, tensor.shape[0]), dtype=np.float32)
        return quantize_rows(self._toolchain, tensor.type, values)
