"""The file to take, of those that were measured on one machine, and what the others would gain and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggq.measurement import tables
from ggq.publishing.collection import Collection, Measured
from ggq.publishing.report_charts import comparable, kld
from ggq.system import files

# Generated tokens per second (None: not measured) and mean KLD -> how good that is; higher is better.
Score = Callable[[float | None, float], float]


@dataclass(frozen=True)
class Choice:
    """``chosen`` of ``model`` on ``machine``, with ``reasons`` in sentences; ``others``, best first, with
    what each would gain and cost."""

    model: str
    machine: str
    chosen: Measured
    reasons: tuple[str, ...]
    others: tuple[tuple[Measured, str], ...]


def choices(found: Collection, score: Score) -> list[Choice]:
    """A choice for each model and machine where a loss was measured."""
    made = []
    for model in found.models:
        losses = {it.row.sha256: it for it in comparable(found.of(model))}
        for machine in found.machines_of(model):
            candidates = [it for it in found.of(model, machine) if it.row.sha256 in losses]
            if candidates:
                made.append(_choose(found, candidates, score))
    return made


def _choose(found: Collection, candidates: Sequence[Measured], score: Score) -> Choice:
    # Of those that have a speed alone, where any has: what is not known is no reason to prefer a file.
    timed = [it for it in candidates if _speed(it) is not None] or list(candidates)
    ranked = sorted(timed, key=lambda it: (-score(_speed(it), kld(it)), it.row.file_bytes))
    best = ranked[0]
    others = [(it, trade(it, best)) for it in ranked[1:]]
    return Choice(best.model, best.machine, best, tuple(_reasons(found, best, ranked)), tuple(others))


def _speed(it: Measured) -> float | None:
    rate = it.row.generation_tokens_per_s
    return rate.value if rate else None


def _reasons(found: Collection, best: Measured, ranked: Sequence[Measured]) -> list[str]:
    row = best.row
    reasons = []
    if (chosen := found.chosen.get(best.model)) is not None:
        same = "the same" if chosen == best.preset else chosen
        reasons.append(f"Before it was made, ggq chose {same} by its predictions.")
    if row.generation_tokens_per_s is None:
        reasons.append("No speed was measured: what loses least is preferred.")
    else:
        reads = row.prompt_tokens_per_s
        reading = f", and reads {tables.plus_minus(reads, 2)}" if reads else ""
        reasons.append(f"It generates {tables.plus_minus(row.generation_tokens_per_s, 2)} tokens/s{reading}.")
    better = [it for it in ranked if kld(it) < kld(best)]
    text = f"Its mean KLD is {tables.relative(row.mean_kld)} nats per token"
    if better:
        nearest = max(better, key=kld)
        reasons.append(f"{text}; {nearest.preset} would have {trade(nearest, best)}.")
    else:
        reasons.append(f"{text}, the least of all that were measured here.")
    if row.ram_bytes:
        vram = f" and {files.human_bytes(row.vram_bytes)} of VRAM" if row.vram_bytes else ""
        reasons.append(f"It took {files.human_bytes(row.ram_bytes)} of RAM{vram} at its peak.")
    return reasons


def trade(other: Measured, chosen: Measured) -> str:
    """What another file would gain and cost: ``KLD 0.0041, 12% slower, 1.2 GB larger``."""
    words = [f"KLD {tables.relative(other.row.mean_kld).partition('±')[0]}"]
    mine, theirs = _speed(chosen), _speed(other)
    if mine and theirs:
        ratio = theirs / mine - 1
        words.append(f"{abs(ratio):.0%} {'faster' if ratio > 0 else 'slower'}")
    more = other.row.file_bytes - chosen.row.file_bytes
    words.append(f"{files.human_bytes(abs(more))} {'larger' if more > 0 else 'smaller'}")
    return ", ".join(words)
