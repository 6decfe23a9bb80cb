"""``ggq plan``: what every preset of a model weighs, needs and does, before a byte of its weights is
downloaded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import hardware, presets, reference
from ggq.errors import CannotServe, UsageProblem
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.rpc import loopback_device
from ggq.llamacpp.toolchain import Toolchain
from ggq.plan.account import Account, PresetSize
from ggq.plan.calibration import Calibration
from ggq.plan.hollow import hollow_model
from ggq.plan.memory import MemoryForecast
from ggq.plan.placement import Room
from ggq.plan.speed import Costs, Kind, SpeedForecast, SpeedMeter, blocks, forecast
from ggq.presets import LossPrior, Preset
from ggq.progress import Listener, Step, silent

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
    ``threads``: None: all cores that one may use.

    ``ram_bytes``, ``vram_bytes`` (of each of ``gpu_count`` GPUs): of another machine than this one, where all
    of it is free; None: what is free here. Its GPUs are played by llama.cpp's RPC devices, whose buffers for
    computing can differ from a real GPU's by some percent, and their speed is not foretold.
    ``reserve_ram_bytes``, ``reserve_vram_bytes`` (of each device): what is left to others; None: a tenth of
    all, at most 1 GiB, which is the margin that llama.cpp's own fit leaves.
    """

    contexts: tuple[int, ...] = ()
    cache_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    n_gpu_layers: int | None = None
    rpc: tuple[str, ...] = ()
    speed_budget_s: float = DEFAULT_BUDGET_S
    threads: int | None = None
    ram_bytes: int | None = None
    vram_bytes: int | None = None
    gpu_count: int = 1
    reserve_ram_bytes: int | None = None
    reserve_vram_bytes: int | None = None


@dataclass(frozen=True)
class LoadPlan:
    """A preset loaded in one way: what that takes, and how fast it is (None: not foretold). What ``memory``
    calls free is what may be used: what is left to others is taken off."""

    offload: Offload
    memory: MemoryForecast
    speed: SpeedForecast | None

    @property
    def fits(self) -> bool:
        return self.memory.missing_bytes == 0


@dataclass(frozen=True)
class PresetPlan:
    """A preset before it is made: ``size``, exact, and ``loads``, one for each context and type of cache.
    ``prior``: published loss of another model, never a measurement of this one."""

    preset: str
    size: PresetSize
    loads: tuple[LoadPlan, ...]
    prior: LossPrior | None


@dataclass(frozen=True)
class Plan:
    """``network_bytes`` were received for it; ``commit``: of a Hub model; ``layer_count``: the output layer
    counted, as in n_gpu_layers; ``devices``: that may hold layers; ``room``: memory that may be used;
    ``threads``: of the forecast speed."""

    model: str
    repo_id: str | None
    commit: str | None
    license: str | None
    parameter_count: int
    context_length: int | None
    layer_count: int
    devices: tuple[str, ...]
    room: Room
    threads: int
    presets: tuple[PresetPlan, ...]
    network_bytes: int
    seconds: float


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
    chosen = (catalogue or presets.load()).resolve(preset_names)
    toolchain = toolchain or toolchains.find()
    ref = reference.parse_reference(str(model), revision)
    hollow = hollow_model(ref, offline=offline, toolchain=toolchain, listener=listener)
    account = Account(hollow)
    facts = account.facts()
    loads = _loads(settings, facts.context_length, hollow.name)
    with ExitStack() as stack:
        rpc = settings.rpc
        if settings.vram_bytes:
            played = [stack.enter_context(loopback_device(toolchain)) for _ in range(settings.gpu_count)]
            rpc = tuple(played)
        devices = () if settings.vram_bytes == 0 else llama_bench.devices(toolchain, rpc)
        if settings.n_gpu_layers and not devices:
            raise UsageProblem(
                "There is no GPU to put layers on.",
                "llama.cpp lists no device but the CPU.",
                "Leave --n-gpu-layers away, or see `ggq doctor`.",
            )
        room = _room(settings, devices)
        loads = [replace(load, offload=Offload(rpc=rpc)) for load in loads]
        planned = []
        for done, preset in enumerate(chosen):
            listener(Step(STEP, done, len(chosen), "presets"))
            placed = [_placed(account, preset, load, settings, room) for load in loads]
            planned.append(PresetPlan(preset.name, account.size(preset), tuple(placed), preset.loss_prior))
            hollow.release(preset)
    account.save()
    listener(Step(STEP, len(chosen), len(chosen), "presets"))
    threads = settings.threads or hardware.usable_cores()
    if settings.speed_budget_s > 0:
        sizes = {it.preset: it.size.file_bytes for it in planned}
        calibration = Calibration(hollow.folder / "speed.json", toolchain)
        meter = SpeedMeter(hollow, facts, sizes, loads[0], threads, calibration)
        kinds = _kinds(planned, facts.block_count, with_devices=settings.vram_bytes is None)
        costs = meter.measure(chosen, kinds, settings.speed_budget_s, listener)
        planned = [_timed(it, costs[it.preset], facts.block_count, threads) for it in planned]
    return Plan(
        model=hollow.name,
        repo_id=hollow.repo_id,
        commit=hollow.commit,
        license=hollow.license,
        parameter_count=facts.parameter_count,
        context_length=facts.context_length,
        layer_count=facts.block_count + 1,
        devices=tuple(device.name for device in devices),
        room=room,
        threads=threads,
        presets=tuple(planned),
        network_bytes=hollow.network_bytes,
        seconds=time.monotonic() - started,
    )


def _room(settings: PlanSettings, devices: Sequence[llama_bench.Device]) -> Room:
    """What may be used: what is free here, or all of the machine that is asked about, less a margin."""
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
        vram_bytes[device.name] = max(0, free - _margin(settings.reserve_vram_bytes, total))
    return Room(max(0, ram_bytes), vram_bytes)


def _margin(asked: int | None, total: int) -> int:
    return min(_MOST_MARGIN_BYTES, total // 10) if asked is None else asked


def _placed(account: Account, preset: Preset, load: Load, settings: PlanSettings, room: Room) -> LoadPlan:
    """As many layers on the devices as fit, unless their number was given."""
    layers = settings.n_gpu_layers
    if layers is None and any(room.vram_bytes.values()):
        placement = account.place(preset, load, room)
        offload, memory = placement.offload, placement.memory
    else:
        offload = replace(load.offload, n_gpu_layers=layers) if layers else Offload()
        memory = account.memory(preset, replace(load, offload=offload))
    if settings.vram_bytes:
        offload = replace(offload, rpc=())  # of servers that are gone when somebody reads this
    devices = [replace(it, free_bytes=room.vram_bytes.get(it.name)) for it in memory.devices]
    return LoadPlan(offload, replace(memory, ram_free_bytes=room.ram_bytes, devices=tuple(devices)), None)


def _timed(planned: PresetPlan, costs: Mapping[Kind, Costs], block_count: int, threads: int) -> PresetPlan:
    """With the speed of each load, where what it needs for that was measured."""
    loads = []
    for cell in planned.loads:
        context = cell.memory.context_tokens
        loads.append(replace(cell, speed=forecast(costs, cell.offload, block_count, context, threads)))
    return replace(planned, loads=tuple(loads))


def _kinds(planned: Sequence[PresetPlan], block_count: int, *, with_devices: bool) -> list[Kind]:
    """The places whose speed the placements hang on."""
    placements = {cell.offload for it in planned for cell in it.loads}
    needed = {kind for it in placements for kind in blocks(it, block_count)}
    return sorted(kind for kind in needed if with_devices or kind == "cpu")


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
