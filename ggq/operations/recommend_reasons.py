"""Why a preset was chosen, and what others would gain and cost, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggq.estimation import preset_content
from ggq.estimation.speed import RateEstimate
from ggq.operations.plan_types import Plan
from ggq.operations.recommend_types import Candidate
from ggq.system import files


def reasons(chosen: Candidate, candidates: Sequence[Candidate], found: Plan) -> Iterator[str]:
    """Why this one: memory, speed, KLD."""
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
            f"It generates {rate(speed.generation)} tokens/s (± {speed.generation.relative_error:.0%}),"
            f" {rate(speed.full_context)} with a full context, and reads {rate(speed.prompt)}."
        )
    own = next(it for it in found.presets if it.preset == chosen.preset)
    yield from preset_content.remarks(own.preset, own.size, found.alike)
    published = own.published
    whose = "measured"
    if published and not chosen.measured:
        measure = f"{published.measure}, " if published.of_perplexity else ""
        whose = f"{measure}published for {published.model}"
        if own.published_preset not in (None, own.preset):
            whose = f"{measure}published for {own.published_preset} of {published.model}"
    better = [it for it in candidates if it.kld < chosen.kld]
    text = f"Its mean KLD is {chosen.kld:.4f} ({whose})"
    if better:
        nearest = max(better, key=lambda it: it.kld)
        yield f"{text}; {nearest.preset} would have {trade(nearest, chosen)}."
    else:
        yield f"{text}, the least of all that fit."


def rate(estimate: RateEstimate) -> str:
    value = estimate.tokens_per_s
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def trade(other: Candidate, chosen: Candidate) -> str:
    """What another choice gains and costs."""
    words = [f"KLD {other.kld:.4f}"]
    if other.tokens_per_s and chosen.tokens_per_s:
        ratio = other.tokens_per_s / chosen.tokens_per_s - 1
        words.append(f"{abs(ratio):.0%} {'faster' if ratio > 0 else 'slower'}")
    more = other.file_bytes - chosen.file_bytes
    words.append(f"{files.human_bytes(abs(more))} {'larger' if more > 0 else 'smaller'}")
    return ", ".join(words)
