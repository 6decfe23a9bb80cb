"""``ggq recommend``: of all presets of a model the one for this machine, why, and the commands to type."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ggq import hub, model_ref
from ggq.errors import CannotServe, DoesNotFit, GgufProblem
from ggq.estimation import preset_content
from ggq.estimation.speed import RateEstimate
from ggq.gguf import names as gguf_names
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.memory import Load
from ggq.llamacpp.server import Serving
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement.record import Record
from ggq.measurement.summary import rows
from ggq.operations.plan import DEFAULT_PRESETS, LoadPlan, Plan, PlanSettings, PresetPlan, plan
from ggq.presets import catalogue as presets
from ggq.progress import Listener, silent
from ggq.system import files

Preference = Literal["quality", "balanced", "speed"]
PREFERENCES: tuple[Preference, ...] = ("quality", "balanced", "speed")
_USUAL_CACHE, _SMALL_CACHE = ("f16", "f16"), ("q8_0", "q8_0")
_SHORTEST_CONTEXT = 512


@dataclass(frozen=True)
class Taste:
    """How speed and loss are weighed: a choice's score is ``log2(min(t/s, enough)) - weight * loss``.

    ``enough``: generated tokens per second beyond which more is worth nothing; ``weight``: halvings of speed
    that one nat of mean KL divergence is worth.
    """

    enough: float
    weight: float

    def score(self, tokens_per_s: float | None, loss: float) -> float:
        speed = math.log2(min(tokens_per_s, self.enough)) if tokens_per_s else 0.0
        return speed - self.weight * loss


# Silent reading goes at about 240 words a minute (Brysbaert 2019, doi 10.1016/j.jml.2019.104047), some 6
# tokens/s. The weights are a judgement: with 10, Q4_K_M is preferred to Q5_K_M where that is over 13 % slower
# (published losses), and Q3_K_M to Q4_K_M only where it is over 63 % faster.
TASTES: Mapping[Preference, Taste] = {
    "quality": Taste(enough=6, weight=30),
    "balanced": Taste(enough=30, weight=10),
    "speed": Taste(enough=math.inf, weight=4),
}


@dataclass(frozen=True)
class Limits:
    """What a choice must keep. ``min_tokens_per_s``: of generation, still with a full context; ``max_loss``:
    mean KLD in nats per token."""

    min_tokens_per_s: float | None = None
    max_loss: float | None = None
    prefer: Preference = "balanced"


@dataclass(frozen=True)
class Candidate:
    """A preset in one placement. ``loss`` in nats per token, ``measured`` on this model or published for
    another; ``score``: by the taste, higher is better; ``rank``: by which they are sorted, the score last."""

    preset: str
    file_bytes: int
    load: LoadPlan
    loss: float
    measured: bool
    score: float
    rank: tuple[bool, bool, float, float]

    @property
    def tokens_per_s(self) -> float | None:
        return self.load.speed.generation.tokens_per_s if self.load.speed else None

    @property
    def slowest_tokens_per_s(self) -> float | None:
        """At the end of a full context."""
        return self.load.speed.full_context.tokens_per_s if self.load.speed else None


@dataclass(frozen=True)
class Recommendation:
    """``chosen``, with ``reasons`` in words; ``others``, best first, and ``trades``: what each would gain and
    cost. ``file``: where it will be; ``commands``: to make it and to serve it; ``llama``: keyword arguments
    for llama-cpp-python (None: it cannot do this)."""

    plan: Plan
    chosen: Candidate
    reasons: tuple[str, ...]
    others: tuple[Candidate, ...]
    trades: tuple[str, ...]
    serving: Serving
    file: Path
    commands: Mapping[str, tuple[str, ...]]
    llama: Mapping[str, Any] | None
    limits: Limits = field(default_factory=Limits)


def recommend(
    model: str | Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    limits: Limits | None = None,
    settings: PlanSettings | None = None,
    *,
    records: Sequence[Path] = (),
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> Recommendation:
    """Choose a preset and its placement for this machine (or the one of ``settings``).

    Of ``settings`` the first context and type of cache count. Where nothing fits with it, a cache of q8_0 is
    tried. ``records``: of ``ggq bench``, whose measured KLD of this model takes the published one's place.

    Raises DoesNotFit with the nearest that does, and what ``foresee.plan`` raises.
    """
    limits, settings = limits or Limits(), settings or PlanSettings()
    toolchain = toolchain or toolchains.find()
    names = tuple(preset_names)

    def planned(with_settings: PlanSettings) -> Plan:
        return plan(
            model, names, with_settings, revision=revision, offline=offline, catalogue=catalogue,
            toolchain=toolchain, listener=listener,
        )  # fmt: skip

    found = planned(settings)
    measured = _measured(records, found)
    _require_known(found, measured)
    candidates = _candidates(found, limits, measured)
    if not candidates and settings.cache_types[0] == _USUAL_CACHE:
        # A model whose heads are narrower than a block cannot have the smaller cache.
        with contextlib.suppress(GgufProblem):
            smaller = planned(replace(settings, cache_types=(_SMALL_CACHE,)))
            candidates = _candidates(smaller, limits, measured)
            found = smaller if candidates else found
    if not candidates:
        smaller_model = (
            None if found.source.repo_id is None or offline else hub.next_smaller(found.source.repo_id)
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
    ref = model_ref.parse_reference(str(model), revision)
    folder = ref.path.parent if ref.kind == "gguf" and ref.path else Path(found.source.name)
    file = folder / gguf_names.output_name(found.source.name, chosen.preset)
    return Recommendation(
        plan=found,
        chosen=chosen,
        reasons=tuple(_reasons(chosen, candidates, found)),
        others=tuple(others),
        trades=tuple(_trade(it, chosen) for it in others),
        serving=serving,
        file=file,
        commands={
            "make": make_command(model, chosen.preset, found, revision=revision, offline=offline),
            "serve": tuple(serving.server_command(file, None if settings.is_elsewhere else toolchain)),
        },
        llama=serving.binding_options(),
        limits=limits,
    )


def make_command(
    model: str | Path, preset: str, found: Plan, *, revision: str | None, offline: bool
) -> tuple[str, ...]:
    """The command that makes what was planned."""
    (size,) = (it.size for it in found.presets if it.preset == preset)
    return (
        "ggq", "convert-and-quantize", str(model), "--preset", preset,
        *(["--revision", revision] if revision else []),
        *(["--offline"] if offline else []),
        *(["--imatrix", "auto"] if size.needs_imatrix else []),
        *(["--stream"] if found.must_be_streamed and not size.needs_imatrix else []),
    )  # fmt: skip


def _candidates(found: Plan, limits: Limits, measured: Mapping[str, float]) -> list[Candidate]:
    """Every preset that fits, can be made as it is, and of whose loss something is known."""
    taste = TASTES[limits.prefer]
    made = []
    for preset in found.presets:
        load, loss = preset.loads[0], _loss(preset, measured)
        if not load.fits or preset.size.needs_imatrix or loss is None:
            continue
        speed = load.speed.generation.tokens_per_s if load.speed else None
        is_whole, score = not found.devices or found.is_whole(load), taste.score(speed, loss)
        made.append(
            Candidate(
                preset=preset.preset,
                file_bytes=preset.size.file_bytes,
                load=load,
                loss=loss,
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
    """Raises CannotServe when nothing is known of the loss of any preset, or none can be made."""
    if any(_can_be_chosen(it, measured) for it in found.presets):
        return
    names = ", ".join(it.preset for it in found.presets)
    raise CannotServe(
        f"{names}: nothing to choose from.",
        "These need an importance matrix, or nobody published what they lose.",
        "Ask for k-quants, or see `ggq plan` for their sizes.",
    )


def _can_be_chosen(preset: PresetPlan, measured: Mapping[str, float]) -> bool:
    """Whether it can be made as it is, and something is known of its loss."""
    return not preset.size.needs_imatrix and _loss(preset, measured) is not None


def _loss(preset: PresetPlan, measured: Mapping[str, float]) -> float | None:
    """Mean KLD: measured on this model where anything was (the losses of two models are not alike), else
    published."""
    if measured:
        return measured.get(preset.preset)
    return preset.prior.loss if preset.prior else None


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
            f"The records have no measured loss of {found.source.name}.",
            f"It has {found.parameter_count:,} parameters, and nothing of that size was measured there.",
            "Measure it with `ggq bench quality`, or leave --record out.",
        )
    return made


def _keeps(candidate: Candidate, limits: Limits) -> bool:
    if limits.max_loss is not None and candidate.loss > limits.max_loss:
        return False
    speed = candidate.slowest_tokens_per_s
    return limits.min_tokens_per_s is None or (speed is not None and speed >= limits.min_tokens_per_s)


# --- words -----------------------------------------------------------------------------------------------


def _reasons(chosen: Candidate, candidates: Sequence[Candidate], found: Plan) -> Iterator[str]:
    """Why this one: memory, speed, loss."""
    memory = chosen.load.memory
    size = files.human_bytes
    parts = [f"{size(memory.ram_bytes)} of the {size(memory.ram_free_bytes)} of RAM that may be used"]
    for device in memory.devices:
        if device.needed_bytes and device.free_bytes is not None:
            parts.append(f"{size(device.needed_bytes)} of {size(device.free_bytes)} on {device.name}")
    if chosen.load.offload.n_gpu_layers:
        layers = f"{chosen.load.offload.n_gpu_layers} of {found.layer_count} layers"
        names = [it.name for it in memory.devices if it.needed_bytes]
        parts.append(f"{layers} on {' and '.join(names or found.devices)}")
    context = f"with {memory.context_tokens:,} tokens of context, cache {memory.type_k}"
    yield f"It fits: {', '.join(parts)}, {context}."
    if chosen.load.speed is None:
        whole = " of those that fit whole on the GPU" if found.is_whole(chosen.load) else ""
        yield f"No speed was predicted: what loses least{whole} is preferred."
    else:
        speed = chosen.load.speed
        yield (
            f"It generates {_rate(speed.generation)} tokens/s (± {speed.generation.relative_error:.0%}),"
            f" {_rate(speed.full_context)} with a full context, and reads {_rate(speed.prompt)}."
        )
    own = next(it for it in found.presets if it.preset == chosen.preset)
    yield from preset_content.remarks(own.preset, own.size, found.alike)
    prior = own.prior
    whose = "mean KLD, measured"
    if prior and not chosen.measured:
        whose = f"{prior.measure}, published for {prior.model}"
        if own.prior_preset not in (None, own.preset):
            whose = f"{prior.measure}, published for {own.prior_preset} of {prior.model}"
    better = [it for it in candidates if it.loss < chosen.loss]
    text = f"Its loss is {chosen.loss:.4f} ({whose})"
    if better:
        nearest = max(better, key=lambda it: it.loss)
        yield f"{text}; {nearest.preset} would have {_trade(nearest, chosen)}."
    else:
        yield f"{text}, the least of all that fit."


def _rate(estimate: RateEstimate) -> str:
    value = estimate.tokens_per_s
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _trade(other: Candidate, chosen: Candidate) -> str:
    """What another choice gains and costs."""
    words = [f"loss {other.loss:.4f}"]
    if other.tokens_per_s and chosen.tokens_per_s:
        ratio = other.tokens_per_s / chosen.tokens_per_s - 1
        words.append(f"{abs(ratio):.0%} {'faster' if ratio > 0 else 'slower'}")
    more = other.file_bytes - chosen.file_bytes
    words.append(f"{files.human_bytes(abs(more))} {'larger' if more > 0 else 'smaller'}")
    return ", ".join(words)


def _nothing_keeps(candidates: Sequence[Candidate], limits: Limits) -> DoesNotFit:
    """Something fits the machine, and nothing the limits."""
    speeds = [it for it in candidates if it.slowest_tokens_per_s]
    nearest = []
    if limits.min_tokens_per_s is not None and speeds:
        fastest = max(speeds, key=lambda it: it.slowest_tokens_per_s or 0)
        assert fastest.load.speed is not None
        speed = _rate(fastest.load.speed.full_context)
        nearest.append(f"the fastest, {fastest.preset}, makes {speed} tokens/s with a full context")
    if limits.max_loss is not None:
        best = min(candidates, key=lambda it: it.loss)
        nearest.append(f"{best.preset} loses least: {best.loss:.4f}")
    if limits.min_tokens_per_s is not None and not speeds:
        nearest.insert(0, "no speed was predicted")
        advice = "Leave --min-tps out: it cannot be judged here."
    else:
        options = {"--min-tps": limits.min_tokens_per_s, "--max-loss": limits.max_loss}
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
        for cache in dict.fromkeys((settings.cache_types[0], _SMALL_CACHE)):
            shorter = replace(settings, contexts=(context,), cache_types=(cache,), speed_budget_s=0)
            with contextlib.suppress(GgufProblem):
                again = [it for it in planned(shorter).presets if _can_be_chosen(it, measured)]
                fitting = [it.preset for it in again if it.loads[0].fits]
                if fitting:
                    ask = f"--ctx {context} --kv {cache[0]}"
                    return DoesNotFit(what, why, f"{fitting[-1]} fits with {ask}: ask for that.")
        context //= 2
    advice = f"the next smaller one: ggq recommend {smaller_model}" if smaller_model else "a smaller model."
    close = "Choose" if settings.is_elsewhere else "Close other programs, or choose"
    return DoesNotFit(what, why, f"{close} {advice}")
