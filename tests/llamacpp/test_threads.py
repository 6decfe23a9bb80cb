"""Which numbers of threads are tried, and which one is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ggq.llamacpp import bench, threads


@pytest.mark.parametrize(
    ("usable", "expected"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (16, (4, 8, 12, 16))]
)
def test_thread_candidates(usable: int, expected: tuple[int, ...]) -> None:
    assert threads.thread_candidates(usable) == expected


def trial(count: int, tokens_per_s: float, *, prompt: bool) -> bench.BenchResult:
    line = (Path(__file__).parent / "captured" / "bench.jsonl").read_text().splitlines()[0]
    (result,) = bench.results([line])
    return replace(
        result,
        threads=count,
        prompt_tokens=10 if prompt else 0,
        generated_tokens=0 if prompt else 10,
        samples_ns=(round(1e10 / tokens_per_s),),
    )


def test_the_fewest_threads_that_are_as_fast() -> None:
    prompt = [trial(count, value, prompt=True) for count, value in ((1, 100), (2, 190), (4, 300))]
    generation = [trial(count, value, prompt=False) for count, value in ((1, 50), (2, 99), (4, 100))]
    chosen = threads.choose_threads([*prompt, *generation])
    assert (chosen.prompt, chosen.generation) == (4, 2)
    assert [it.threads for it in chosen.trials] == [1, 2, 4]
    assert chosen.trials[0].prompt_tokens_per_s == pytest.approx(100)
    alone = threads.choose_threads(prompt)
    assert (alone.prompt, alone.generation, alone.trials[0].generation_tokens_per_s) == (4, 4, None)
