"""Which engine makes a file: the one pass where it gives llama-quantize's bytes, else llama-quantize."""

from __future__ import annotations

from dataclasses import dataclass

from ggq.errors import UsageProblem
from ggq.gguf.file import GgufFile
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.presets.catalogue import Preset
from ggq.quantization.engine import Engine, EngineName
from ggq.quantization.imatrix_file import Importance
from ggq.quantization.llama_quantize import LlamaQuantize
from ggq.quantization.one_pass import OnePass
from ggq.quantization.recipe import Recipe, ask

# In the order in which they are tried.
ENGINES: tuple[Engine, ...] = (OnePass(), LlamaQuantize())


@dataclass(frozen=True)
class Choice:
    """``why``: what keeps the engine from making the file that would be taken first, if something does."""

    engine: Engine
    why: str = ""


def choose(name: EngineName, toolchain: Toolchain, base: GgufFile, recipe: Recipe) -> Choice:
    """The engine ``name``, or the first that can. Raises UsageProblem where the one asked for cannot."""
    why = ""
    for engine in ENGINES:
        if name not in (EngineName.AUTO, engine.name):
            continue
        obstacle = engine.obstacle(toolchain, base, recipe)
        if obstacle is None:
            return Choice(engine, why)
        why = why or obstacle
    raise UsageProblem(
        f"The {name} engine cannot make {recipe.preset.name}.",
        why,
        f"Leave --engine out: {EngineName.LLAMA_QUANTIZE} makes what others cannot.",
    )


@dataclass(frozen=True)
class Decision:
    """What is made of a base, and by which engine (``choice`` None: an imatrix is missing)."""

    recipe: Recipe
    choice: Choice | None


def decide(
    toolchain: Toolchain,
    base: GgufFile,
    preset: Preset,
    options: QuantizeOptions,
    name: EngineName,
    matrix: Importance | None = None,
) -> Decision:
    """Ask llama-quantize for the recipe, and choose the engine. ``matrix``: see ``recipe.ask``.

    Raises as ``ask`` and ``choose`` do.
    """
    recipe = ask(toolchain, base, preset, options, matrix)
    if recipe.size.needs_imatrix:
        return Decision(recipe, None)
    return Decision(recipe, choose(name, toolchain, base, recipe))


def engine(name: EngineName) -> Engine:
    """The engine of a name that is one's own."""
    return next(it for it in ENGINES if it.name == name)
