"""The GGUF's logits in other regimes than a short prompt's: beyond the original context, behind a window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ggq.conversion import compare_logits, longrope, scaled_context, sliding_window
from ggq.errors import GgufProblem
from ggq.gguf.file import GgufFile
from ggq.llamacpp.inference import LoadedGguf
from ggq.llamacpp.toolchain import Toolchain


def others(
    right_side: compare_logits.Reference,
    plain: Any,
    made: GgufFile,
    toolchain: Toolchain,
    threads: int,
    *,
    exact_cache: bool,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was found in the regimes for which the GGUF is loaded again with other numbers in its header:
    ``beyond``, of a model with two sets of rotary factors, and ``window``.

    ``plain``: llama.cpp's logits of the prompt. Raises GgufProblem when llama.cpp does not load the file.
    """

    def loaded_with(overrides: Mapping[str, int]) -> LoadedGguf:
        return LoadedGguf(toolchain, made.path, threads, overrides=overrides)

    original = right_side.original_context
    if right_side.beyond is not None and original is not None:
        with loaded_with(longrope.overrides(made.path, original, beyond=True)) as there:
            yield "beyond", beyond(right_side, there, exact_cache=exact_cache)
    window = right_side.window
    if window is None:
        return
    key = sliding_window.key(made)
    written = made.integer(key)
    told = {"window": window.size, "tried": window.tried, "written": written}
    if window.logits is None or window.tried == window.size:
        yield "window", {**told, **sliding_window.compare(window, plain, plain)}
    elif not written:
        yield "window", {**told, "lost": True}  # there is no key that llama.cpp could read
    else:
        within = longrope.overrides(made.path, original, beyond=False)
        try:
            with loaded_with({**within, key: window.tried}) as there:
                found = there.logits(right_side.tokens, exact_cache=exact_cache)
        except GgufProblem as problem:
            why_not = f"llama.cpp takes no other in its place: {compare_logits.first_line(problem)}"
            yield "window", {**told, "why_not": why_not}
            return
        yield "window", {**told, **sliding_window.compare(window, plain, found)}


def beyond(right_side: compare_logits.Reference, loaded: LoadedGguf, *, exact_cache: bool) -> dict[str, Any]:
    """How alike the two sides are beyond the original context, in logits and rotations.

    ``right_side``: of a model whose context is scaled; ``loaded``: with the factors for there.
    """
    expected = right_side.beyond
    assert expected is not None
    found: dict[str, Any] = {"original": expected.scaled.original, "kind": expected.scaled.kind}
    if expected.why_not:
        return {**found, "why_not": expected.why_not}
    try:
        logits, rotations = loaded.far_logits(
            right_side.tokens, expected.near, expected.position, exact_cache=exact_cache
        )
    except (GgufProblem, LookupError) as problem:
        return {**found, "why_not": f"llama.cpp fails: {compare_logits.first_line(problem)}"}
    if expected.has_fixed_factors and expected.logits is not None and logits is not None:
        behind = expected.near + 1  # the first far token sees itself only
        found |= compare_logits.compare(expected.logits[behind:], logits[behind:])
    elif expected.has_fixed_factors:
        found["logits_why_not"] = "not all of its layers can be given a text with a gap"
    return {**found, **scaled_context.compare(expected, rotations)}
