"""How to run a GGUF that exists on this machine: context, cache, placement, threads, as llama.cpp counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.errors import DoesNotFit, GgufProblem, UsageProblem
from ggq.estimation.memory import MemoryEstimate, estimate
from ggq.estimation.placement import Room, most_layers, projector_room
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.llamacpp import bench, devices
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.server import Companions, Serving
from ggq.llamacpp.toolchain import Toolchain
from ggq.serving.settings import DEFAULT_CONTEXT_TOKENS, Fit, LoadSettings, Use
from ggq.system import hardware
from ggq.system.files import human_bytes

_USUAL, _SMALL = ("f16", "f16"), ("q8_0", "q8_0")
_SHORTER = (4096, 2048, 1024, 512)
# With less than this a whole model on the GPU is not worth a shorter context.
_LEAST_FOR_WHOLE = 4096
_MOST_MARGIN_BYTES = 1 << 30
# llama_pooling_type in llama.h: mean, cls, last; and rank, of a model that scores pairs of texts.
_POOLED, _RANK = (1, 2, 3), 4
_LARGEST_TEXT = 8192  # tokens of a text to embed: its buffers grow with them


@dataclass(frozen=True)
class Parameters:
    """How ``file`` is run here. ``memory``: what it takes so, by llama.cpp's account; ``room``: what may be
    used; ``layer_count``: layers that there are, the output layer counted; ``use``: what it answers with."""

    file: GgufFile
    serving: Serving
    memory: MemoryEstimate
    room: Room
    layer_count: int
    use: Use

    @property
    def context_tokens(self) -> int:
        """Of each client."""
        return self.serving.load.context_tokens // self.serving.parallel

    def described(self) -> Iterator[tuple[str, str]]:
        """Name and value of each parameter, for a person."""
        serving, load = self.serving, self.serving.load
        shared = f" for each of {serving.parallel}" if serving.parallel > 1 else ""
        yield (
            "context",
            f"{self.context_tokens:,} tokens{shared} (trained for {self.file.context_length or 0:,})",
        )
        yield "cache", f"{load.type_k}/{load.type_v}"
        if self.room.vram_bytes or load.offload.n_gpu_layers:
            on_gpu = self.layer_count if load.offload.n_gpu_layers < 0 else load.offload.n_gpu_layers
            yield "GPU layers", f"{on_gpu} of {self.layer_count}"
        if load.offload.n_cpu_moe:
            yield "experts on the CPU", f"of {load.offload.n_cpu_moe} layers"
        yield "threads", f"{serving.threads} ({serving.prompt_threads} for prompts)"
        yield "load mode", serving.load_mode
        yield "memory", self._needs()

    def _needs(self) -> str:
        needs = [f"{human_bytes(self.memory.ram_bytes)} of RAM"]
        needs += [
            f"{human_bytes(it.needed_bytes)} on {it.name}" for it in self.memory.devices if it.needed_bytes
        ]
        return ", ".join(needs)


def room_now(toolchain: Toolchain) -> Room:
    """Memory that a model may use here now: what is free, less a tenth of all, at most 1 GiB, for others.

    Of RAM that GPUs share no more than is free of it. Raises ToolFailed when a driver fails.
    """
    ram_bytes = max(0, hardware.available_ram_bytes() - _margin(hardware.total_ram_bytes()))
    found = bench.devices(toolchain)
    shared = devices.sharing_ram(toolchain) if found else frozenset()
    vram_bytes = {}
    for it in found:
        usable = max(0, it.memory_free_bytes - _margin(it.memory_total_bytes))
        vram_bytes[it.name] = min(usable, ram_bytes) if it.name in shared else usable
    return Room(ram_bytes, vram_bytes)


def use_of(file: GgufFile) -> Use:
    """What a model is made for, as its metadata tell."""
    pooling = file.integer(f"{file.architecture}.pooling_type")
    if pooling == _RANK:
        return Use.RERANKING
    return Use.EMBEDDINGS if file.is_encoder or pooling in _POOLED else Use.TEXT


def choose(
    toolchain: Toolchain,
    model: Path,
    settings: LoadSettings | None = None,
    *,
    parallel: int = 1,
    use: Use | None = None,
    projector: Path | None = None,
    room: Room | None = None,
) -> Parameters:
    """Choose how to run the GGUF ``model``: what ``settings`` leave open.

    Its longest context up to 8,192 tokens, for each of ``parallel`` clients, that llama.cpp finds room for,
    with as many layers on GPUs as fit; a cache of q8_0 where f16 does not fit. ``room``: None for what is
    free now.

    Raises DoesNotFit with figures, GgufProblem for what is no model or what llama.cpp refuses, UsageProblem.
    """
    settings = settings or LoadSettings()
    file = gguf_file.read_model(model)
    use = use or use_of(file)
    room = room or room_now(toolchain)
    if settings.n_gpu_layers and not room.vram_bytes:
        raise UsageProblem(
            "There is no GPU to put layers on.",
            "llama.cpp lists no device but the CPU.",
            "Leave --n-gpu-layers out, or see `ggq doctor`.",
        )
    on_cpu = False
    left = room
    if projector is not None:
        taken = projector_room(toolchain, projector, room)
        on_cpu, left = not taken.vram_bytes, room.less(taken)
    search = _Search(toolchain, file, settings, left, parallel, use)
    placed = search.best()
    threads, prompt_threads = _threads(settings)
    load_mode = settings.load_mode or ("none" if placed.memory.repacked_bytes else "mmap")
    return Parameters(
        file=file,
        serving=Serving(
            placed.load,
            str(load_mode),
            threads=threads,
            prompt_threads=prompt_threads,
            companions=Companions(projector=projector, projector_on_cpu=on_cpu),
            embeddings=use is Use.EMBEDDINGS,
            pooling=_pooling(file, use),
            reranking=use is Use.RERANKING,
            parallel=parallel,
        ),
        memory=placed.memory,
        room=room,
        layer_count=search.layer_count,
        use=use,
    )


@dataclass(frozen=True)
class _Placed:
    """A way to load the model, and llama.cpp's account of it."""

    load: Load
    memory: MemoryEstimate
    fits: bool
    whole: bool


class _Search:
    """The first way that fits: the longest context first, the usual cache before the smaller one."""

    def __init__(
        self,
        toolchain: Toolchain,
        file: GgufFile,
        settings: LoadSettings,
        room: Room,
        parallel: int,
        use: Use,
    ) -> None:
        self._toolchain = toolchain
        self._file = file
        self._settings = settings
        self._room = room
        self._parallel = parallel
        self._use = use
        self.layer_count = (file.block_count or 0) + 1

    def best(self) -> _Placed:
        nearest: _Placed | None = None
        for number, (type_k, type_v) in enumerate(self._caches()):
            found: _Placed | None = None
            for context in self._contexts():
                try:
                    placed = self._placed(self._load(context, type_k, type_v))
                except GgufProblem:
                    if number == 0:
                        raise
                    break  # a cache that this model cannot have
                if placed.fits and placed.whole:
                    return placed
                if placed.fits:
                    found = found or placed
                else:
                    nearest = placed  # each is smaller than the one before
                if found and context <= _LEAST_FOR_WHOLE:
                    break
            if found:
                return found
        assert nearest is not None, "one way was tried"
        if self._settings.fit is Fit.OFF:
            return self._placed(self._load(self._contexts()[-1], *self._caches()[-1]))
        raise self._nothing_fits(nearest)

    def _caches(self) -> Sequence[tuple[str, str]]:
        own = self._settings.type_k or self._settings.type_v
        if own is None:
            return (_USUAL, _SMALL)
        return ((str(self._settings.type_k or own), str(self._settings.type_v or own)),)

    def _contexts(self) -> Sequence[int]:
        if self._settings.context_tokens:
            return (self._settings.context_tokens,)
        most = min(self._file.context_length or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
        return (most, *(it for it in _SHORTER if it < most))

    def _load(self, context: int, type_k: str, type_v: str) -> Load:
        load = Load(context * self._parallel, type_k, type_v)
        if self._use is Use.TEXT:
            return load
        whole = min(max(context, load.n_ubatch), _LARGEST_TEXT)
        return replace(load, n_batch=whole, n_ubatch=whole)

    def _placed(self, load: Load) -> _Placed:
        layers = self._settings.n_gpu_layers
        if layers is None and any(self._room.vram_bytes.values()):
            placement = most_layers(self._toolchain, self._file.path, load, self._room)
            fits, memory = placement.fits, placement.memory
            load = replace(load, offload=placement.offload)
            return _Placed(load, memory, fits, placement.is_whole)
        most = self.layer_count
        asked = most if layers == ALL_LAYERS else min(layers or 0, most)
        load = replace(load, offload=Offload(n_gpu_layers=asked))
        memory = estimate(self._toolchain, self._file.path, load)
        return _Placed(load, memory, self._fits(memory), whole=True)

    def _fits(self, memory: MemoryEstimate) -> bool:
        there = all(
            it.needed_bytes <= self._room.vram_bytes.get(it.name, 0)
            for it in memory.devices
            if it.needed_bytes
        )
        return there and memory.ram_bytes <= self._room.ram_bytes

    def _nothing_fits(self, nearest: _Placed) -> DoesNotFit:
        memory = nearest.memory
        lacking = [
            f"{human_bytes(memory.ram_bytes)} of RAM, and {human_bytes(self._room.ram_bytes)} may be used"
        ]
        lacking += [
            f"{human_bytes(it.needed_bytes)} on {it.name}, and"
            f" {human_bytes(self._room.vram_bytes.get(it.name, 0))} may be used"
            for it in memory.devices
            if it.needed_bytes > self._room.vram_bytes.get(it.name, 0)
        ]
        context = nearest.load.context_tokens // self._parallel
        clients = f" for each of {self._parallel} clients" if self._parallel > 1 else ""
        return DoesNotFit(
            f"{self._file.path.name} does not fit this machine.",
            f"With {context:,} tokens of context{clients} it needs {'; '.join(lacking)}.",
            "Take a smaller file (`ggq plan` shows what each preset needs), close other programs,"
            " or give --fit off to try it all the same.",
        )


def _threads(settings: LoadSettings) -> tuple[int, int]:
    """For generation and for prompts: two threads of one core only wait for each other in generation."""
    if settings.threads:
        return settings.threads, settings.threads
    usable = hardware.usable_cores()
    physical: int | None = None
    with contextlib.suppress(OSError, NotImplementedError):
        import psutil

        physical = psutil.cpu_count(logical=False)
    return min(usable, physical or usable), usable


def _pooling(file: GgufFile, use: Use) -> str | None:
    """How a model that does not say it makes one vector of many."""
    if use is not Use.EMBEDDINGS or file.integer(f"{file.architecture}.pooling_type"):
        return None
    return "mean" if file.is_encoder else "last"


def _margin(total: int) -> int:
    return min(_MOST_MARGIN_BYTES, total // 10)
