"""``ggq plan``: what every preset of a model weighs and needs, before a byte of its weights is downloaded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggq import presets, reference
from ggq.errors import CannotServe
from ggq.gguf_file import read_all
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.plan.hollow import HollowModel, hollow_model
from ggq.plan.memory import MemoryForecast, forecast
from ggq.presets import LossPrior, Preset
from ggq.progress import Listener, Step, silent

DEFAULT_PRESETS = ("k-quants",)
DEFAULT_CONTEXT = 4096
STEP = "plan"


@dataclass(frozen=True)
class PlanSettings:
    """For which contexts (tokens; none: 4096, or what the model has), types of cache and placement."""

    contexts: tuple[int, ...] = ()
    cache_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    offload: Offload = field(default_factory=Offload)


@dataclass(frozen=True)
class PresetPlan:
    """A preset before it is made. ``file_bytes`` is exact; ``prior``: published loss of another model, never
    a measurement of this one; ``needs_imatrix``: it cannot be made without an importance matrix."""

    preset: str
    file_bytes: int
    bits_per_weight: float
    fallback_count: int
    quantized_count: int
    needs_imatrix: bool
    memory: tuple[MemoryForecast, ...]
    prior: LossPrior | None


@dataclass(frozen=True)
class Plan:
    """``network_bytes`` were received for it; ``commit``: of a Hub model."""

    model: str
    repo_id: str | None
    commit: str | None
    license: str | None
    parameter_count: int
    context_length: int | None
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
    """Foresee sizes and memory of a model's presets from its headers alone.

    Raises HubProblem, CheckpointProblem, ConversionProblem (also for an architecture whose conversion reads
    weights: it can only be planned after download), UsageProblem, ToolchainProblem.
    """
    started = time.monotonic()
    settings = settings or PlanSettings()
    chosen = (catalogue or presets.load()).resolve(preset_names)
    toolchain = toolchain or toolchains.find()
    ref = reference.parse_reference(str(model), revision)
    hollow = hollow_model(ref, offline=offline, toolchain=toolchain, listener=listener)
    base = read_all(hollow.base)
    loads = _loads(settings, base.context_length, hollow.name)
    planned = []
    for done, preset in enumerate(chosen):
        listener(Step(STEP, done, len(chosen), "presets"))
        planned.append(_plan_preset(hollow, preset, loads))
    listener(Step(STEP, len(chosen), len(chosen), "presets"))
    # The process itself is the same for all presets; what was seen of it varies by some MB.
    process_bytes = max(it.process_bytes for preset in planned for it in preset.memory)
    planned = [
        replace(preset, memory=tuple(replace(it, process_bytes=process_bytes) for it in preset.memory))
        for preset in planned
    ]
    return Plan(
        model=hollow.name,
        repo_id=hollow.repo_id,
        commit=hollow.commit,
        license=hollow.license,
        parameter_count=base.parameter_count,
        context_length=base.context_length,
        presets=tuple(planned),
        network_bytes=hollow.network_bytes,
        seconds=time.monotonic() - started,
    )


def _plan_preset(hollow: HollowModel, preset: Preset, loads: list[Load]) -> PresetPlan:
    recipe = hollow.recipe(preset)
    file = hollow.quantized(preset)
    try:
        memory = tuple(forecast(hollow.toolchain, file, load) for load in loads)
    finally:
        # With its vocabulary it takes megabytes, and it is made again in a moment.
        file.unlink(missing_ok=True)
    return PresetPlan(
        preset=preset.name,
        file_bytes=recipe.file_bytes,
        bits_per_weight=recipe.bits_per_weight,
        fallback_count=len(recipe.fallbacks),
        quantized_count=recipe.quantized_count,
        needs_imatrix=recipe.needs_imatrix,
        memory=memory,
        prior=preset.loss_prior,
    )


def _loads(settings: PlanSettings, own_context: int | None, name: str) -> list[Load]:
    contexts = settings.contexts or (min(own_context or DEFAULT_CONTEXT, DEFAULT_CONTEXT),)
    if own_context is not None and max(contexts) > own_context:
        raise CannotServe(
            f"{name} has no context of {max(contexts):,} tokens.",
            f"It was trained for {own_context:,}.",
            f"Ask for --ctx {own_context} or less.",
        )
    return [
        Load(context, type_k, type_v, offload=settings.offload)
        for context, (type_k, type_v) in itertools.product(contexts, settings.cache_types)
    ]
