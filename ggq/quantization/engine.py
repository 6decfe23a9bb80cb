"""Which engine makes a preset's file: the sweep, or llama-quantize itself. The bytes are the same."""

from __future__ import annotations

from dataclasses import dataclass

from ggq.errors import UsageProblem
from ggq.gguf.file import GgufFile
from ggq.llamacpp.toolchain import Toolchain
from ggq.quantization.one_pass import obstacle
from ggq.quantization.recipe import Recipe

AUTO, SWEEP, TOOL = "auto", "sweep", "llama-quantize"
ENGINES = (AUTO, SWEEP, TOOL)


@dataclass(frozen=True)
class Choice:
    """``engine``: SWEEP or TOOL; ``why``: what keeps the sweep from making the file, if something does."""

    engine: str
    why: str = ""


def check(engine: str) -> None:
    """Raises UsageProblem for a word that is no engine's."""
    if engine not in ENGINES:
        raise UsageProblem(f"There is no engine {engine!r}.", "", f"Choose one of {', '.join(ENGINES)}.")


def choose(engine: str, toolchain: Toolchain, base: GgufFile, recipe: Recipe) -> Choice:
    """``engine``: one of ENGINES. Raises UsageProblem where it is SWEEP and that cannot make the file."""
    if engine == TOOL:
        return Choice(TOOL)
    why = obstacle(toolchain, base, recipe)
    if why is None:
        return Choice(SWEEP)
    if engine == SWEEP:
        raise UsageProblem(
            f"The sweep cannot make {recipe.preset.name}.",
            why,
            "Leave --engine out: llama-quantize makes what the sweep cannot.",
        )
    return Choice(TOOL, why)
