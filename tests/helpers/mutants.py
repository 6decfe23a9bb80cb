"""Files that were damaged in some places, for hypothesis: it shows the smallest damage that fails."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tiers import tier

# The same cases in every run: `make fuzz` is for others.
settings.register_profile(
    "ggq",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=tier(300, 3000),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ggq")


def mutants(whole: bytes, end: int, pieces: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """``whole`` with bytes before ``end`` replaced, by any byte or one of ``pieces``; some are cut off."""
    piece = st.one_of(st.sampled_from(pieces), st.binary(min_size=1, max_size=1))
    change = st.tuples(st.integers(0, end - 1), piece)
    one, several = st.builds(lambda it: [it], change), st.lists(change, min_size=2, max_size=6)
    cut = st.builds(_damaged, st.just(whole), several, st.integers(0, len(whole)))
    return st.one_of(*(st.builds(_damaged, st.just(whole), it) for it in (one, several)), cut)


def _damaged(whole: bytes, changes: Sequence[tuple[int, bytes]], length: int | None = None) -> bytes:
    raw = bytearray(whole)
    for place, piece in changes:
        raw[place : place + 1] = piece
    return bytes(raw[:length])


@contextmanager
def little_memory(most_bytes: int = 50 << 20) -> Iterator[None]:
    """What is done inside must not have more than that at once. tracemalloc must be on."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    yield
    taken = tracemalloc.get_traced_memory()[1] - before
    assert taken < most_bytes, f"{taken:,} bytes"
