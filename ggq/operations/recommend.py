"""``ggq recommend``: of all presets of a model the one for this machine, why, and the commands to type."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ggq import hub, model_ref
from ggq.errors import CannotServe, DoesNotFit, GgufProblem, UsageProblem
from ggq.gguf import names as gguf_names
from ggq.llamacpp.memory import Load
from ggq.llamacpp.server import Serving
from ggq.llamacpp.words import CacheType
from ggq.measurement.record import Record
from ggq.measurement.summary import rows
from ggq.model_ref import ModelRef
from ggq.operations.plan import plan
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.plan_types import Plan, PresetPlan
from ggq.operations.recommend_reasons import rate, reasons, trade
from ggq.operations.recommend_types import TASTES, Candidate, Limits, Recommendation
from ggq.session import Session
from ggq.settings import filled
from ggq.system import files

_SMALL_CACHE = (CacheType.Q8_0,)
_SHORTEST_CONTEXT = 512


def recommend(
    model: str | Path | ModelRef,
    presets: str | Iterable[str] | None = None,
    limits: Limits | None = None,
    settings: PlanSettings | None = None,
    *,
    session: Session | None = None,
    **keywords: Any,
) -> Recommendation:
    """Choose a preset (default: of the K-quants) and its placement for this machine, or the one of
    ``settings``.

    One context and one type of cache are recommended for. Where nothing fits, and no type was asked for, a
    cache of q8_0 is tried. ``keywords``: fields of ``PlanSettings``, in place of those of ``settings``.

    Raises DoesNotFit with the nearest that does, and what ``plan`` raises.
    """
    session = session or Session()
    limits, settings = limits or Limits(), filled(PlanSettings, settings, keywords)
    if len(settings.contexts) > 1 or len(settings.cache_types) > 1:
        raise UsageProblem(
            "One context and one type of cache can be recommended for.", "", "See `ggq plan` for several."
        )
    ref = model_ref.reference(model)
    planned = partial(plan, ref, presets, session=session)
    found = planned(settings)
    measured = _measured(limits.records, found)
    _require_known(found, measured)
    candidates = _candidates(found, limits, measured)
    if not candidates and not settings.type_k:
        # A model whose heads are narrower than a block cannot have the smaller cache.
        with contextlib.suppress(GgufProblem):
            smaller = planned(replace(settings, type_k=_SMALL_CACHE))
            candidates = _candidates(smaller, limits, measured)
            found = smaller if candidates else found
    if not candidates:
        smaller_model = (
            None
            if found.source.repo_id is None or session.offline
            else hub.next_smaller(found.source.repo_id)
        )
        raise _nothing_fits(found, measured, settings, planned, smaller_model)
    within = [it for it in candidates if _keeps(it, limits)]
    if not within:
        raise _nothing_keeps(candidates, limits)
    chosen, *others = sorted(within, key=lambda it: it.rank, reverse=True)
    memory = chosen.load.memory
    serving = Serving(
        Load(memory.context_tokens, memory.type_k, memory.type_v, offload=chosen.load.offload),
        # Weights in another order are a second copy beside the mapped file.
        "none" if memory.repacked_bytes else "mmap",
        threads=found.threads.generation if found.threads else None,
        prompt_threads=found.threads.prompt if found.threads else None,
        companions=found.companions,
        rpc=settings.rpc if settings.draft or settings.projector else (),
        embeddings=found.is_encoder,
    )
    folder = ref.path.parent if ref.kind == "gguf" and ref.path else Path(found.source.name)
    file = folder / gguf_names.output_name(found.source.name, chosen.preset)
    return Recommendation(
        plan=found,
        chosen=chosen,
        reasons=tuple(reasons(chosen, candidates, found)),
        others=tuple(others),
        trades=tuple(trade(it, chosen) for it in others),
        serving=serving,
        file=file,
        commands={
            "make": make_command(ref, chosen.preset, found, session),
            "serve": tuple(
                serving.server_command(file, None if settings.is_elsewhere else session.toolchain)
            ),
        },
        llama=serving.binding_options(),
        limits=limits,
    )


def make_command(ref: ModelRef, preset: str, found: Plan, session: Session) -> tuple[str, ...]:
    """The command that makes what was planned."""
    presets_file = session.catalogue.own_file
    (size,) = (it.size for it in found.presets if it.preset == preset)
    return (
        "ggq", "convert-and-quantize", str(ref), "--preset", preset,
        *(["--offline"] if session.offline else []),
        *(["--imatrix", "auto"] if size.needs_imatrix else []),
        *(["--stream"] if found.must_be_streamed and not size.needs_imatrix else []),
        *(["--presets", str(presets_file)] if presets_file else []),
    )  # fmt: skip


def _candidates(found: Plan, limits: Limits, measured: Mapping[str, float]) -> list[Candidate]:
    """Every preset that fits, can be made as it is, and of whose KLD something is known."""
    taste = TASTES[limits.prefer]
    made = []
    for preset in found.presets:
        load, kld = preset.loads[0], _kld(preset, measured)
        if not load.fits or preset.size.needs_imatrix or kld is None:
            continue
        speed = load.speed.generation.tokens_per_s if load.speed else None
        is_whole, score = not found.devices or found.is_whole(load), taste.score(speed, kld)
        made.append(
            Candidate(
                preset=preset.preset,
                file_bytes=preset.size.file_bytes,
                load=load,
                kld=kld,
                measured=preset.preset in measured,
                score=score,
                # What has no speed comes after what has one. Where nothing has, a model that is whole on the
                # GPUs is the quicker one.
                # Of those that are expected to lose the same, the one of more bits.
                rank=(speed is not None, is_whole or speed is not None, score, preset.size.bits_per_weight),
            )
        )
    return made


def _require_known(found: Plan, measured: Mapping[str, float]) -> None:
    """Raises CannotServe when nothing is known of the KLD of any preset, or none can be made."""
    if any(_can_be_chosen(it, measured) for it in found.presets):
        return
    names = ", ".join(it.preset for it in found.presets)
    raise CannotServe(
        f"{names}: nothing to choose from.",
        "These need an imatrix, or nobody published what they lose.",
        "Ask for k-quants, or see `ggq plan` for their sizes.",
    )


def _can_be_chosen(preset: PresetPlan, measured: Mapping[str, float]) -> bool:
    """Whether it can be made as it is, and something is known of its KLD."""
    return not preset.size.needs_imatrix and _kld(preset, measured) is not None


def _kld(preset: PresetPlan, measured: Mapping[str, float]) -> float | None:
    """Mean KLD: measured on this model where anything was (the losses of two models are not alike), else
    published."""
    if measured:
        return measured.get(preset.preset)
    return preset.published.kld if preset.published else None


def _measured(records: Sequence[Path], found: Plan) -> dict[str, float]:
    """Preset -> mean KLD, of ggq's own records of this model.

    Raises OutputProblem for a file that is no record, CannotServe for one of another model.
    """
    made: dict[str, float] = {}
    # A preset of the user's own can have any name, which no parser of file names finds.
    names = {gguf_names.output_name(found.source.name, it.preset): it.preset for it in found.presets}
    for path in records:
        own = [it for it in Record(path).entries if it.model.parameter_count == found.parameter_count]
        for row in rows(own):
            preset = names.get(row.file_name) or gguf_names.parse_name(row.file_name).type
            if preset and row.mean_kld is not None:
                made[preset] = row.mean_kld.value
    if records and not made:
        raise CannotServe(
            f"The records have no measured KLD of {found.source.name}.",
            f"It has {found.parameter_count:,} parameters, and nothing of that size was measured there.",
            "Measure it with `ggq bench quality`, or leave --record out.",
        )
    return made


def _keeps(candidate: Candidate, limits: Limits) -> bool:
    if limits.max_kld is not None and candidate.kld > limits.max_kld:
        return False
    speed = candidate.slowest_tokens_per_s
    return limits.min_tokens_per_s is None or (speed is not None and speed >= limits.min_tokens_per_s)


def _nothing_keeps(candidates: Sequence[Candidate], limits: Limits) -> DoesNotFit:
    """Something fits the machine, and nothing the limits."""
    speeds = [it for it in candidates if it.slowest_tokens_per_s]
    nearest = []
    if limits.min_tokens_per_s is not None and speeds:
        fastest = max(speeds, key=lambda it: it.slowest_tokens_per_s or 0)
        assert fastest.load.speed is not None
        speed = rate(fastest.load.speed.full_context)
        nearest.append(f"the fastest, {fastest.preset}, makes {speed} tokens/s with a full context")
    if limits.max_kld is not None:
        best = min(candidates, key=lambda it: it.kld)
        nearest.append(f"{best.preset} loses least: {best.kld:.4f}")
    if limits.min_tokens_per_s is not None and not speeds:
        nearest.insert(0, "no speed was predicted")
        advice = "Leave --min-tps out: nothing is known of it here."
    else:
        options = {"--min-tps": limits.min_tokens_per_s, "--max-kld": limits.max_kld}
        given = [option for option, value in options.items() if value is not None]
        advice = f"Relax {' or '.join(given)}."
    why = "; ".join(nearest)
    return DoesNotFit("No preset keeps these limits.", f"{why[:1].upper()}{why[1:]}.", advice)


def _nothing_fits(
    found: Plan,
    measured: Mapping[str, float],
    settings: PlanSettings,
    planned: Callable[[PlanSettings], Plan],
    smaller_model: str | None,
) -> DoesNotFit:
    """With the nearest that does: the smallest preset in a shorter context, with a smaller cache; or the next
    smaller model."""
    possible = [it for it in found.presets if _can_be_chosen(it, measured)]
    smallest = min(possible, key=lambda it: it.loads[0].memory.missing_bytes)
    memory = smallest.loads[0].memory
    what = f"No preset of {found.source.name} fits."
    where, needed_bytes = memory.tightest
    why = (
        f"The nearest, {smallest.preset}, takes {files.human_bytes(needed_bytes)} of {where} and is"
        f" {files.human_bytes(memory.missing_bytes)} short."
    )
    if settings.n_gpu_layers:
        return DoesNotFit(what, why, "Leave --n-gpu-layers out: as many go there as fit.")
    context = memory.context_tokens // 2
    while context >= _SHORTEST_CONTEXT:
        for keys in dict.fromkeys((settings.type_k, settings.type_k or _SMALL_CACHE)):
            shorter = replace(settings, contexts=(context,), type_k=keys, no_speed=True)
            with contextlib.suppress(GgufProblem):
                again = [it for it in planned(shorter).presets if _can_be_chosen(it, measured)]
                fitting = [it.preset for it in again if it.loads[0].fits]
                if fitting:
                    ask = f"-c {context}" + (f" -ctk {keys[0]}" if keys else "")
                    return DoesNotFit(what, why, f"{fitting[-1]} fits with {ask}: ask for that.")
        context //= 2
    advice = f"the next smaller one: ggq recommend {smaller_model}" if smaller_model else "a smaller model."
    close = "Choose" if settings.is_elsewhere else "Close other programs, or choose"
    return DoesNotFit(what, why, f"{close} {advice}")
