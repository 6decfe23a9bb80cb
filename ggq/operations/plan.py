"""``ggq plan``: what every preset of a model weighs, needs and does, before a byte of its weights is
downloaded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggq import hub, model_ref
from ggq.errors import CannotServe
from ggq.estimation import preset_content
from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import hollow_model
from ggq.estimation.placement import Room
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.threads import ThreadChoice
from ggq.model_ref import ModelRef
from ggq.operations.plan_machine import Machine, companions, machine
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.plan_speeds import PlanSpeeds
from ggq.operations.plan_types import LoadPlan, Plan, PresetPlan
from ggq.presets.catalogue import Preset
from ggq.progress import Step
from ggq.session import Session
from ggq.settings import filled
from ggq.system import files, hardware

DEFAULT_PRESETS = ("k-quants",)
DEFAULT_CONTEXT = 4096
STEP = "plan"


def plan(
    model: str | Path | ModelRef,
    presets: str | Iterable[str] | None = None,
    settings: PlanSettings | None = None,
    *,
    session: Session | None = None,
    **keywords: Any,
) -> Plan:
    """Predict sizes, memory and speed of a model's presets (default: the K-quants) from its headers alone.

    ``keywords``: fields of ``PlanSettings``, in place of those of ``settings``.
    Raises HubProblem, CheckpointProblem, ConversionProblem (also for an architecture whose conversion reads
    weights: it can only be planned after download), UsageProblem, ToolchainProblem.
    """
    started = time.monotonic()
    session = session or Session()
    settings = filled(PlanSettings, settings, keywords)
    settings.check()
    chosen = session.catalogue.resolve((presets,) if isinstance(presets, str) else presets or DEFAULT_PRESETS)
    hollow = hollow_model(model_ref.reference(model), session)
    account = Account(hollow)
    facts = account.facts()
    loads = _loads(settings, facts.context_length, hollow.source.name)
    with ExitStack() as stack:
        here = machine(settings, session.toolchain, stack)
        loads = [replace(load, offload=here.where) for load in loads]
        beside, taken = companions(session.toolchain, settings, loads, here.room)
        here = replace(here, room=here.room.less(taken))
        planned = []
        for done, preset in enumerate(chosen):
            session.listener(Step(STEP, done, len(chosen), "presets"))
            placed = [_placed(account, preset, load, settings, here) for load in loads]
            size = account.size(preset)
            may = preset_content.expected(preset, size, session.catalogue, facts.parameter_count)
            planned.append(
                PresetPlan(preset.name, size, tuple(placed), may.published, may.others, may.preset)
            )
            hollow.release(preset)
    account.save()
    session.listener(Step(STEP, len(chosen), len(chosen), "presets"))
    usable = settings.threads or (None if settings.is_elsewhere else hardware.usable_cores())
    threads = ThreadChoice(usable, usable) if usable else None
    if settings.budget_s > 0 and not settings.is_elsewhere:
        speeds = PlanSpeeds(hollow, account, chosen, planned, settings)
        names = [f"{device} {device.memory_total_bytes}" for device in here.devices]
        vram_bytes = sum(here.room.vram_bytes.values())
        planned, threads = speeds.predicted(loads, names, vram_bytes, session.listener)
    found = Plan(
        source=hollow.source,
        parameter_count=facts.parameter_count,
        context_length=facts.context_length,
        layer_count=facts.block_count + 1,
        devices=tuple(device.name for device in here.devices),
        room=here.room,
        companions=beside,
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


def _placed(
    account: Account,
    preset: Preset,
    load: Load,
    settings: PlanSettings,
    here: Machine,
) -> LoadPlan:
    """As many layers on the devices as fit, unless their number was given."""
    layers, room = settings.n_gpu_layers, here.room
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
        replace(it, free_bytes=room.vram_bytes.get(it.name), shares_ram=it.name in here.shared)
        for it in memory.devices
    ]
    return LoadPlan(offload, replace(memory, ram_free_bytes=room.ram_bytes, devices=tuple(devices)), None)


def _loads(settings: PlanSettings, own_context: int | None, name: str) -> list[Load]:
    contexts = settings.contexts or (min(own_context or DEFAULT_CONTEXT, DEFAULT_CONTEXT),)
    if own_context is not None and max(contexts) > own_context:
        raise CannotServe(
            f"{name} has no context of {max(contexts):,} tokens.",
            f"It was trained for {own_context:,}.",
            f"Ask for -c {own_context} or less.",
        )
    return [
        Load(context, type_k, type_v)
        for context, (type_k, type_v) in itertools.product(contexts, settings.cache_types)
    ]
