"""How many threads a machine runs a model with best: short runs of llama-bench, and the choice among them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ggq.llamacpp.bench import BenchResult

_AS_FAST = 0.02  # fewer threads are taken when they are slower by no more than this


@dataclass(frozen=True)
class ThreadTrial:
    """Median tokens per second of a short run with so many threads."""

    threads: int
    prompt_tokens_per_s: float | None
    generation_tokens_per_s: float | None


@dataclass(frozen=True)
class ThreadChoice:
    """Threads for prompt and for generation; ``trials``: the short runs behind the choice, if any."""

    prompt: int
    generation: int
    trials: tuple[ThreadTrial, ...] = ()


def thread_candidates(usable: int) -> tuple[int, ...]:
    """A few numbers of threads worth a try, none above ``usable``: a quarter, half, three quarters, all."""
    return tuple(sorted({max(1, usable * quarters // 4) for quarters in (1, 2, 3, 4)}))


def choose_threads(found: Sequence[BenchResult]) -> ThreadChoice:
    """From short runs: for prompt and for generation the fewest threads within 2 % of the fastest.

    Where one of the two was not run, it gets the other's.
    """
    prompt = _medians([result for result in found if result.prompt_tokens])
    generation = _medians([result for result in found if result.generated_tokens])
    return ThreadChoice(
        prompt=_fewest(prompt or generation),
        generation=_fewest(generation or prompt),
        trials=tuple(
            ThreadTrial(threads, prompt.get(threads), generation.get(threads))
            for threads in sorted({*prompt, *generation})
        ),
    )


def _medians(found: Sequence[BenchResult]) -> dict[int, float]:
    return {
        it.threads: 1e9 * (it.prompt_tokens + it.generated_tokens) / statistics.median(it.samples_ns)
        for it in found
    }


def _fewest(medians: dict[int, float]) -> int:
    enough = (1 - _AS_FAST) * max(medians.values())
    return min(threads for threads, median in medians.items() if median >= enough)
