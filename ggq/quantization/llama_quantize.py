"""llama-quantize at work on one preset: run, read back, compared with the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ggq.errors import GgqError, ToolFailed
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp import tool_output, tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Listener, Step, silent
from ggq.quantization.engine import Batch, EngineName, Quantized, Workplace, prove
from ggq.quantization.recipe import Recipe, refuse_without_imatrix
from ggq.quantization.tensor_source import Source
from ggq.system import files


class LlamaQuantize:
    """The tool itself, once for each preset."""

    name = EngineName.LLAMA_QUANTIZE
    needs_file = True

    def obstacle(self, toolchain: Toolchain, base: GgufFile, recipe: Recipe) -> str | None:
        return None

    def make(self, recipes: Sequence[Recipe], source: Source, place: Workplace) -> Iterator[Batch]:
        for recipe in recipes:
            made = quantize_one(
                place.session.toolchain,
                source.base.path,
                recipe,
                place.staging / gguf_names.output_name(place.model, recipe.preset.name),
                threads=place.threads,
                listener=place.session.listener,
            )
            yield Batch((recipe,), (made,), {"engine": self.name.value})


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
    return ToolFailed(failure.command, failure.returncode, (reason,), "Run `ggq inspect` on the 16-bit GGUF.")


def _refuse_full_disk(output: Path, recipe: Recipe) -> None:
    written = sum(path.stat().st_size for path in output.parent.iterdir())
    files.require_space(
        output.parent, max(0, recipe.size.file_bytes - written), f"the {recipe.preset.name} file"
    )
