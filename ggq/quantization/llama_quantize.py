"""llama-quantize at work on one preset: run, read back, compared with the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggq.errors import GgqError, GgufProblem, ToolFailed
from ggq.gguf import file as gguf_file
from ggq.llamacpp import tool_output, tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Listener, Step, silent
from ggq.quantization.recipe import Recipe, differences, refuse_without_imatrix
from ggq.system import files


@dataclass(frozen=True)
class Quantized:
    """The files of one preset as they were written. ``seconds``: the tool's; of a sweep, which makes several
    presets at once, those of them all. ``peak_memory_bytes``: resident; None: not told."""

    paths: tuple[Path, ...]
    file_bytes: int
    seconds: float
    peak_memory_bytes: int | None


def quantize_one(
    toolchain: Toolchain,
    base: Path,
    recipe: Recipe,
    output: Path,
    *,
    threads: int | None = None,
    listener: Listener = silent,
) -> Quantized:
    """Write ``output`` (a path in a staging folder) and prove that it is what the recipe says.

    With ``keep_split`` the shards' names are made from ``output``'s. Raises UsageProblem when an imatrix
    is missing, DiskFull, ToolFailed, GgufProblem when the result differs from the recipe.
    """
    name = recipe.preset.name
    refuse_without_imatrix(recipe)
    files.require_space(output.parent, recipe.size.file_bytes, f"the {name} file")
    step = f"quantize {name}"

    def watch(done: float, total: float) -> None:
        listener(Step(step, done, total, "tensors"))

    try:
        done = tools.quantize(toolchain, base, output, recipe.preset.ftype, recipe.options, threads, watch)
    except ToolFailed as failure:
        raise _in_words(failure, output, recipe) from failure
    paths = _written(output, recipe)
    if sum(path.stat().st_size for path in paths) != recipe.size.file_bytes:
        # llama-quantize does not notice every failed write, so its exit 0 is not the proof.
        _refuse_full_disk(output, recipe)
    prove(paths, recipe)
    return Quantized(paths, recipe.size.file_bytes, done.seconds, done.peak_rss_bytes)


def prove(paths: Sequence[Path], recipe: Recipe) -> None:
    """Hold finished files against their recipe, sizes and types. Raises GgufProblem where they differ."""
    name = recipe.preset.name
    file_bytes = sum(path.stat().st_size for path in paths)
    if file_bytes != recipe.size.file_bytes:
        raise GgufProblem(
            f"{file_bytes} bytes were written for {name}.",
            f"The recipe has {recipe.size.file_bytes}.",
            "Report this, with the model's name and `ggq doctor --json`.",
        )
    wrong = differences(recipe, gguf_file.read_all(paths[0]))
    if wrong:
        raise GgufProblem(
            f"The {name} file is not what its recipe says.",
            f"{len(wrong)} tensors differ, the first: {wrong[0]}.",
            "Report this, with the model's name and `ggq doctor --json`.",
        )


def _written(output: Path, recipe: Recipe) -> tuple[Path, ...]:
    if not recipe.options.keep_split:
        return (output,)
    return tuple(sorted(output.parent.glob(f"{output.stem}-*-of-*.gguf")))


def _in_words(failure: ToolFailed, output: Path, recipe: Recipe) -> GgqError:
    _refuse_full_disk(output, recipe)
    if failure.returncode == -9:
        return ToolFailed(
            failure.command,
            failure.returncode,
            ("The kernel ends a process so when memory runs out.",),
            "Close other programs, then run the same command again.",
        )
    if failure.returncode < 0:
        return failure
    reason = tool_output.quantize_reason(failure.tail)
    return ToolFailed(failure.command, failure.returncode, (reason,), "Run `ggq inspect` on the base.")


def _refuse_full_disk(output: Path, recipe: Recipe) -> None:
    written = sum(path.stat().st_size for path in output.parent.iterdir())
    files.require_space(
        output.parent, max(0, recipe.size.file_bytes - written), f"the {recipe.preset.name} file"
    )
