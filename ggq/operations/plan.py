"""``ggq plan``: what every preset of a model weighs, needs and does, before a byte of its weights is
downloaded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import hub, model_ref
from ggq.errors import CannotServe, UsageProblem
from ggq.estimation import preset_content
from ggq.estimation.estimator import Account, PresetSize
from ggq.estimation.hollow_model import HollowModel, ModelSource, hollow_model
from ggq.estimation.memory import MemoryEstimate
from ggq.estimation.placement import Room, most_layers, projector_room
from ggq.estimation.speed import Costs, Kind, SpeedEstimate, blocks, estimate
from ggq.estimation.speed_meter import SpeedMeter
from ggq.estimation.timings import Calibration
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp import devices as ggml
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.rpc import loopback_device
from ggq.llamacpp.server import Companions
from ggq.llamacpp.threads import ThreadChoice
from ggq.llamacpp.toolchain import Toolchain
from ggq.presets import catalogue as presets
from ggq.presets.catalogue import Preset
from ggq.presets.published_losses import PublishedLoss
from ggq.progress import Listener, Step, silent
from ggq.session import Session
from ggq.system import files, hardware

DEFAULT_PRESETS = ("k-quants",)
DEFAULT_CONTEXT = 4096
DEFAULT_BUDGET_S = 60.0
STEP = "plan"
_MOST_MARGIN_BYTES = 1 << 30


@dataclass(frozen=True)
class PlanSettings:
    """For which contexts (tokens; none: 4096, or what the model has), types of cache and placement.

    ``n_gpu_layers``: None: as many as fit on the devices that llama.cpp sees; ``rpc``: servers whose devices
    count as well. ``speed_budget_s``: seconds that running hollow models may take, 0 for no speed;
    ``threads``: None: as many as are best for prompts and for generation, each.

    ``draft``, ``projector``: GGUF files that are to be loaded beside the model (a draft model for speculative
    decoding, an mmproj); what they take is taken off what may be used.

    ``ram_bytes``, ``vram_bytes`` (of each of ``gpu_count`` GPUs): of another machine than this one, where all
    of it is free; None: what is free here. Its GPUs are played by llama.cpp's RPC devices, whose buffers for
    computing can differ from a real GPU's by some percent. Its speed and its best threads are not predicted.
    ``reserve_ram_bytes``, ``reserve_vram_bytes`` (of each device): what is left to others; None: a tenth of
    all, at most 1 GiB, which is the margin that llama.cpp's own fit leaves.
    """

    contexts: tuple[int, ...] = ()
    cache_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    n_gpu_layers: int | None = None
    rpc: tuple[str, ...] = ()
    speed_budget_s: float = DEFAULT_BUDGET_S
    threads: int | None = None
    draft: Path | None = None
    projector: Path | None = None
    ram_bytes: int | None = None
    vram_bytes: int | None = None
    gpu_count: int = 1
    reserve_ram_bytes: int | None = None
    reserve_vram_bytes: int | None = None

    def check(self) -> None:
        """Raises UsageProblem for settings that say nothing together."""
        if self.gpu_count != 1 and not self.vram_bytes:
            raise UsageProblem(
                f"{self.gpu_count} GPUs of no memory were asked for.",
                "--gpu-count is for another machine, whose GPUs have --vram each.",
                "Give --vram, or leave --gpu-count out: this machine's own GPUs are counted by llama.cpp.",
            )

    @property
    def is_elsewhere(self) -> bool:
        """Whether another machine than this one is asked about."""
        return self.ram_bytes is not None or self.vram_bytes is not None


@dataclass(frozen=True)
class LoadPlan:
    """A preset loaded in one way: what that takes, and how fast it is (None: not predicted). What ``memory``
    calls free is what may be used: what is left to others is taken off."""

    offload: Offload
    memory: MemoryEstimate
    speed: SpeedEstimate | None

    @property
    def fits(self) -> bool:
        return self.memory.missing_bytes == 0


@dataclass(frozen=True)
class PresetPlan:
    """A preset before it is made: ``size``, exact, and ``loads``, one for each context and type of cache.
    ``prior``: published loss of another model, near in size, and never a measurement of this one;
    ``other_priors``: of further ones, nearest size first. ``prior_preset``: whose losses these are: another's
    where most of this file fell back to that one's type (None: nobody's)."""

    preset: str
    size: PresetSize
    loads: tuple[LoadPlan, ...]
    prior: PublishedLoss | None
    other_priors: tuple[PublishedLoss, ...] = ()
    prior_preset: str | None = None


@dataclass(frozen=True)
class Plan:
    """``source``: the model, whose weights may not be on this disk, which has ``disk_free_bytes``;
    ``layer_count``: the output layer
    counted, as in n_gpu_layers; ``devices``: that may hold layers; ``room``: memory that may be used;
    ``companions``: what is loaded beside it, and ``companions_room``: what these take, off the room;
    ``threads``: that the speed was predicted with, or that were asked for (None: of another machine, which
    has its own); ``is_elsewhere``: it is of another machine, whose devices are called GPU0, GPU1 …;
    ``alike``: presets that make the same of it."""

    source: ModelSource
    parameter_count: int
    context_length: int | None
    layer_count: int
    devices: tuple[str, ...]
    room: Room
    companions: Companions
    companions_room: Room
    threads: ThreadChoice | None
    is_elsewhere: bool
    presets: tuple[PresetPlan, ...]
    disk_free_bytes: int
    seconds: float
    alike: tuple[tuple[str, ...], ...] = ()
    is_encoder: bool = False

    @property
    def must_be_streamed(self) -> bool:
        """Whether the checkpoint has no room on this disk."""
        return self.source.download_bytes > self.disk_free_bytes

    def is_whole(self, load: LoadPlan) -> bool:
        """Whether all of the model is on the devices, but for the embeddings, which llama.cpp leaves out."""
        return load.offload.n_gpu_layers == self.layer_count and not load.offload.n_cpu_moe


def plan(
    model: str | Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    settings: PlanSettings | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> Plan:
    """Foresee sizes, memory and speed of a model's presets from its headers alone.

    Raises HubProblem, CheckpointProblem, ConversionProblem (also for an architecture whose conversion reads
    weights: it can only be planned after download), UsageProblem, ToolchainProblem.
    """
    started = time.monotonic()
    settings = settings or PlanSettings()
    settings.check()
    catalogue = catalogue or presets.load()
    chosen = catalogue.resolve(preset_names)
    toolchain = toolchain or toolchains.find()
    ref = model_ref.parse_reference(str(model), revision)
    hollow = hollow_model(ref, Session(toolchain, offline=offline, listener=listener))
    account = Account(hollow)
    facts = account.facts()
    loads = _loads(settings, facts.context_length, hollow.source.name)
    with ExitStack() as stack:
        rpc = settings.rpc
        if settings.vram_bytes:
            played = [stack.enter_context(loopback_device(toolchain)) for _ in range(settings.gpu_count)]
            rpc = tuple(played)
        devices = () if settings.vram_bytes == 0 else llama_bench.devices(toolchain, rpc)
        where = Offload(rpc=rpc)
        if settings.vram_bytes:
            devices = tuple(device for device in devices if device.description in rpc)  # none of this machine
            where = replace(where, devices=tuple(device.name for device in devices))
        if settings.n_gpu_layers and not devices:
            raise UsageProblem(
                "There is no GPU to put layers on.",
                "llama.cpp lists no device but the CPU.",
                "Leave --n-gpu-layers away, or see `ggq doctor`.",
            )
        loads = [replace(load, offload=where) for load in loads]
        sees_gpus = toolchain.may_see_gpus and devices and not settings.vram_bytes
        shared = ggml.sharing_ram(toolchain) if sees_gpus else frozenset()
        room = _room(settings, devices, shared)
        companions, taken = _companions(toolchain, settings, loads, room)
        room = room.less(taken)
        planned = []
        for done, preset in enumerate(chosen):
            listener(Step(STEP, done, len(chosen), "presets"))
            placed = [_placed(account, preset, load, settings, room, shared) for load in loads]
            size = account.size(preset)
            may = preset_content.expected(preset, size, catalogue, facts.parameter_count)
            planned.append(PresetPlan(preset.name, size, tuple(placed), may.loss, may.others, may.preset))
            hollow.release(preset)
    account.save()
    listener(Step(STEP, len(chosen), len(chosen), "presets"))
    usable = settings.threads or (None if settings.is_elsewhere else hardware.usable_cores())
    threads = ThreadChoice(usable, usable) if usable else None
    if settings.speed_budget_s > 0 and not settings.is_elsewhere:
        speeds = _Speeds(hollow, account, chosen, planned, settings)
        names = [f"{device} {device.memory_total_bytes}" for device in devices]
        planned, threads = speeds.predicted(loads, names, sum(room.vram_bytes.values()), listener)
    found = Plan(
        source=hollow.source,
        parameter_count=facts.parameter_count,
        context_length=facts.context_length,
        layer_count=facts.block_count + 1,
        devices=tuple(device.name for device in devices),
        room=room,
        companions=companions,
        companions_room=taken,
        threads=threads,
        is_elsewhere=settings.is_elsewhere,
        presets=tuple(planned),
        alike=preset_content.alike({it.preset: it.size for it in planned}),
        disk_free_bytes=files.free_bytes(hub.cache_dir()),
        seconds=time.monotonic() - started,
        is_encoder=facts.is_encoder,
    )
    return _without_servers(found) if settings.vram_bytes else found


def _without_servers(found: Plan) -> Plan:
    """The plan of another machine, without the RPC servers that played its GPUs: they are gone when somebody
    reads it."""
    names = {name: f"GPU{number}" for number, name in enumerate(found.devices)}

    def renamed(room: Room) -> Room:
        return replace(room, vram_bytes={names[name]: room.vram_bytes[name] for name in room.vram_bytes})

    def cleaned(cell: LoadPlan) -> LoadPlan:
        devices = tuple(replace(it, name=names.get(it.name, it.name)) for it in cell.memory.devices)
        offload = replace(cell.offload, rpc=(), devices=())
        return replace(cell, offload=offload, memory=replace(cell.memory, devices=devices))

    beside = found.companions
    return replace(
        found,
        devices=tuple(names.values()),
        room=renamed(found.room),
        companions=replace(
            beside,
            draft_offload=replace(beside.draft_offload, rpc=(), devices=()),
        ),
        companions_room=renamed(found.companions_room),
        presets=tuple(replace(it, loads=tuple(map(cleaned, it.loads))) for it in found.presets),
    )


def _room(settings: PlanSettings, devices: Sequence[hardware.Device], shared: Collection[str] = ()) -> Room:
    """What may be used: what is free here, or all of the machine that is asked about, less a margin. Of the
    RAM that devices share no more than is free of it."""
    if settings.ram_bytes is None:
        ram_bytes, of_bytes = hardware.available_ram_bytes(), hardware.total_ram_bytes()
    else:
        ram_bytes = of_bytes = settings.ram_bytes
    ram_bytes -= _margin(settings.reserve_ram_bytes, of_bytes)
    vram_bytes = {}
    for device in devices:
        free, total = device.memory_free_bytes, device.memory_total_bytes
        if settings.vram_bytes:
            free = total = settings.vram_bytes
        usable = max(0, free - _margin(settings.reserve_vram_bytes, total))
        vram_bytes[device.name] = min(usable, max(0, ram_bytes)) if device.name in shared else usable
    return Room(max(0, ram_bytes), vram_bytes)


def _companions(
    toolchain: Toolchain, settings: PlanSettings, loads: Sequence[Load], room: Room
) -> tuple[Companions, Room]:
    """What is loaded beside the model goes first: it is small, and each token passes through it. And what it
    takes."""
    offload, on_cpu = Offload(), False
    left = room
    if settings.draft is not None:
        longest = max(loads, key=lambda load: load.context_tokens)
        first = replace(longest.offload, devices=tuple(room.vram_bytes)[:1])
        own = replace(longest, type_k="f16", type_v="f16", offload=first)
        placed = most_layers(toolchain, settings.draft, own, left)
        offload, left = placed.offload, left.less(placed.taken)
    if settings.projector is not None:
        taken = projector_room(toolchain, settings.projector, left, loads[0].offload.rpc)
        on_cpu, left = not taken.vram_bytes, left.less(taken)
    return Companions(settings.draft, offload, settings.projector, on_cpu), room.less(left)


def _margin(asked: int | None, total: int) -> int:
    return min(_MOST_MARGIN_BYTES, total // 10) if asked is None else asked


def _placed(
    account: Account,
    preset: Preset,
    load: Load,
    settings: PlanSettings,
    room: Room,
    shared: Collection[str],
) -> LoadPlan:
    """As many layers on the devices as fit, unless their number was given."""
    layers = settings.n_gpu_layers
    if layers is None and any(room.vram_bytes.values()):
        placement = account.place(preset, load, room)
        offload, memory = placement.offload, placement.memory
    else:
        most = account.facts().block_count + 1
        layers = most if layers == ALL_LAYERS else min(layers or 0, most)
        offload = replace(load.offload, n_gpu_layers=layers) if layers else Offload()
        memory = account.memory(preset, replace(load, offload=offload))
    if not offload.n_gpu_layers:
        offload = Offload()
    devices = [
        replace(it, free_bytes=room.vram_bytes.get(it.name), shares_ram=it.name in shared)
        for it in memory.devices
    ]
    return LoadPlan(offload, replace(memory, ram_free_bytes=room.ram_bytes, devices=tuple(devices)), None)


class _Speeds:
    """The speeds of a plan's loads: a meter for each type of cache, within one budget."""

    def __init__(
        self,
        hollow: HollowModel,
        account: Account,
        chosen: Sequence[Preset],
        planned: Sequence[PresetPlan],
        settings: PlanSettings,
    ) -> None:
        self._hollow = hollow
        self._facts = account.facts()
        self._chosen = chosen
        self._planned = planned
        self._settings = settings

    def predicted(
        self, loads: Sequence[Load], devices: Sequence[str], vram_bytes: int, listener: Listener
    ) -> tuple[list[PresetPlan], ThreadChoice]:
        """The presets with the speed of each load, where what that needs was measured; and the threads."""
        started = time.monotonic()
        sizes = {it.preset: it.size.file_bytes for it in self._planned}
        calibration = Calibration(self._hollow.folder / "speed.json", self._hollow.toolchain)
        placements = {cell.offload for it in self._planned for cell in it.loads}
        kinds = sorted({kind for it in placements for kind in blocks(it, self._facts.block_count)})
        threads: ThreadChoice | None = None
        if self._settings.threads:
            threads = ThreadChoice(self._settings.threads, self._settings.threads)
        found: dict[tuple[str, str], dict[str, dict[Kind, Costs]]] = {}
        for load in loads:
            cache = (load.type_k, load.type_v)
            if cache in found:
                continue
            meter = SpeedMeter(
                self._hollow,
                self._facts,
                sizes,
                load,
                calibration,
                devices=devices,
                vram_bytes=vram_bytes,
                listener=listener,
            )
            if threads is None:
                meter.choose_threads(self._chosen)
                threads = meter.threads
            meter.threads = threads
            left_s = self._settings.speed_budget_s - (time.monotonic() - started)
            found[cache] = meter.measure(self._chosen, kinds, left_s)
        assert threads is not None, "there is a load"
        return [self._timed(it, found, threads) for it in self._planned], threads

    def _timed(
        self,
        planned: PresetPlan,
        costs: Mapping[tuple[str, str], Mapping[str, Mapping[Kind, Costs]]],
        threads: ThreadChoice,
    ) -> PresetPlan:
        loads = []
        for cell in planned.loads:
            memory = cell.memory
            of_preset = costs[memory.type_k, memory.type_v][planned.preset]
            speed = estimate(of_preset, cell.offload, self._facts.block_count, memory.context_tokens, threads)
            loads.append(replace(cell, speed=speed))
        return replace(planned, loads=tuple(loads))


def _loads(settings: PlanSettings, own_context: int | None, name: str) -> list[Load]:
    contexts = settings.contexts or (min(own_context or DEFAULT_CONTEXT, DEFAULT_CONTEXT),)
    if own_context is not None and max(contexts) > own_context:
        raise CannotServe(
            f"{name} has no context of {max(contexts):,} tokens.",
            f"It was trained for {own_context:,}.",
            f"Ask for --ctx {own_context} or less.",
        )
    return [
        Load(context, type_k, type_v)
        for context, (type_k, type_v) in itertools.product(contexts, settings.cache_types)
    ]
