"""The machine that a plan is for: its devices, what may be used of its memory, what is there already."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ggq.errors import UsageProblem
from ggq.estimation.placement import Room, most_layers, projector_room
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp import devices as ggml
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.rpc import loopback_device
from ggq.llamacpp.server import Companions
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.plan_settings import PlanSettings
from ggq.system import hardware
from ggq.system.hardware import Device

_MOST_MARGIN_BYTES = 1 << 30


@dataclass(frozen=True)
class Machine:
    """``devices`` may hold layers; those of ``shared`` take their memory of the RAM; ``where``: how a load
    names them; ``room``: memory that may be used."""

    devices: tuple[Device, ...]
    shared: frozenset[str]
    where: Offload
    room: Room


def machine(settings: PlanSettings, toolchain: Toolchain, stack: ExitStack) -> Machine:
    """This machine, or the one that is asked about, whose GPUs are played by RPC devices until ``stack``
    ends. Raises UsageProblem, ToolFailed."""
    rpc = settings.rpc
    if settings.vram_bytes:
        rpc = tuple(stack.enter_context(loopback_device(toolchain)) for _ in range(settings.gpu_count))
    devices = () if settings.vram_bytes == 0 else tuple(llama_bench.devices(toolchain, rpc))
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
    sees_gpus = toolchain.may_see_gpus and devices and not settings.vram_bytes
    shared = ggml.sharing_ram(toolchain) if sees_gpus else frozenset()
    return Machine(devices, shared, where, _room(settings, devices, shared))


def _room(settings: PlanSettings, devices: Sequence[Device], shared: Collection[str] = ()) -> Room:
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


def companions(
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
