"""``ggq quantize``: a base GGUF over presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq import files, pipeline, presets
from ggq.bench.corpus import Text
from ggq.cli.options import (
    dry_run_option,
    engine_options,
    force_option,
    output_options,
    preset_options,
    quantize_options,
    threads_option,
)
from ggq.cli.output import Output, human_seconds
from ggq.llamacpp.tools import QuantizeOptions
from ggq.pipeline import QuantizedFile, Settings
from ggq.quantize.choice import Choice
from ggq.quantize.recipe import Recipe


@click.command(short_help="Quantize a 16-bit GGUF over presets.")
@click.argument("base", type=click.Path(path_type=Path))
@preset_options
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), help="Default: beside the base.")
@quantize_options
@engine_options
@threads_option
@force_option
@dry_run_option
@output_options
def quantize(
    base: Path,
    preset_names: tuple[str, ...],
    presets_file: Path | None,
    outdir: Path | None,
    options: QuantizeOptions,
    calibration: Text | None,
    engine: str,
    max_memory_bytes: int,
    threads: int | None,
    force: bool,
    dry_run: bool,
    out: Output,
) -> None:
    """Quantize a 16-bit GGUF as llama-quantize does, and check each result against its recipe.

    All presets are made in one pass, where that gives llama-quantize's bytes. Stop it at any moment: the same
    command goes on where it was.

    \b
    ggq quantize Qwen3-0.6B-BF16.gguf --preset q4_k_m
    ggq quantize Qwen3-0.6B-BF16.gguf --preset k-quants --outdir quants
    ggq quantize Qwen3-0.6B-BF16.gguf --preset iq2_xs --imatrix auto
    ggq quantize Qwen3-0.6B-BF16.gguf --preset q4_k_m --dry-run
    """
    catalogue = presets.load(presets_file)
    names = preset_names or pipeline.DEFAULT_PRESETS
    settings = Settings(
        options=options, calibration=calibration, engine=engine, max_memory_bytes=max_memory_bytes,
        threads=threads, force=force,
    )  # fmt: skip
    if dry_run:
        found = pipeline.recipes(base, names, settings, catalogue=catalogue)
        show_recipes(out, found, outdir or base.parent, makes_imatrix=calibration is not None)
        return
    with out.progress() as listener:
        result = pipeline.quantize(base, names, outdir, settings, catalogue=catalogue, listener=listener)
    show_files(out, result.files)
    out.result(result)


def show_recipes(
    out: Output, found: Sequence[tuple[Recipe, Choice | None]], outdir: Path, *, makes_imatrix: bool
) -> None:
    """The table of a dry run: exact bytes, bits per weight, fallbacks, engines, and the disk.
    ``makes_imatrix``: the run would make an importance matrix first."""
    recipes = [recipe for recipe, _ in found]
    out.table(
        ["preset", "bytes", "size", "bits/weight", "fell back", "engine"],
        [
            [
                recipe.preset.name,
                f"{recipe.file_bytes:,}",
                files.human_bytes(recipe.file_bytes),
                f"{recipe.bits_per_weight:.2f}",
                f"{len(recipe.fallbacks)} of {recipe.quantized_count}",
                choice.engine if choice else "-",
            ]
            for recipe, choice in found
        ],
        right=(1, 2, 3, 4),
    )
    total = sum(recipe.file_bytes for recipe in recipes)
    free = files.free_bytes(outdir)
    out.text(f"{files.human_bytes(total)} in all; {files.human_bytes(free)} free in {outdir}.")
    for recipe, choice in found:
        if choice and choice.why:
            out.info(f"llama-quantize makes {recipe.preset.name}: {choice.why}")
    if makes_imatrix:
        out.warning(
            "these sizes are without the importance matrix that is made first: with it llama-quantize may"
            " choose other types for some tensors, and the header is longer."
        )
    for recipe in recipes:
        if recipe.needs_imatrix and not makes_imatrix:
            out.warning(f"{recipe.preset.name} needs an importance matrix (--imatrix auto|FILE).")
    warn_of_fallbacks(out, [recipe.preset.name for recipe in recipes if recipe.mostly_fell_back])
    out.result(
        {
            "files": [
                {
                    "preset": recipe.preset.name,
                    "file_bytes": recipe.file_bytes,
                    "bits_per_weight": recipe.bits_per_weight,
                    "fallback_count": len(recipe.fallbacks),
                    "quantized_count": recipe.quantized_count,
                    "needs_imatrix": recipe.needs_imatrix,
                    "engine": choice.engine if choice else None,
                    "why": choice.why if choice else "",
                }
                for recipe, choice in found
            ],
            "needed_bytes": total,
            "free_bytes": free,
        }
    )


def show_files(out: Output, made: Sequence[QuantizedFile]) -> None:
    """The table of what was made."""
    out.table(
        ["preset", "file", "size", "bits/weight", "fell back", "time"],
        [
            [
                file.preset,
                file.paths[0].name + (f" +{len(file.paths) - 1}" if len(file.paths) > 1 else ""),
                files.human_bytes(file.file_bytes),
                f"{file.bits_per_weight:.2f}",
                str(file.fallback_count) if file.fallback_count else "-",
                _time(file),
            ]
            for file in made
        ],
        right=(2, 3, 4, 5),
    )
    for count, seconds in sorted({_pass(file) for file in made if _is_new_together(file)}):
        out.text(f"All {count} were made in one pass, in {human_seconds(seconds)}.")
    warn_of_fallbacks(out, [file.preset for file in made if file.mostly_fell_back])


def _time(file: QuantizedFile) -> str:
    if file.reused:
        return "as it was"
    return "together" if _is_new_together(file) else human_seconds(file.seconds)


def _is_new_together(file: QuantizedFile) -> bool:
    return not file.reused and len(file.swept_with) > 1


def _pass(file: QuantizedFile) -> tuple[int, float]:
    """Of how many presets, and how long it took."""
    return len(file.swept_with), file.seconds


def warn_of_fallbacks(out: Output, names: Sequence[str]) -> None:
    """One plain warning when most tensors of a preset got another type."""
    if names:
        out.warning(
            f"most tensors of {', '.join(names)} fell back to another type: this model's rows do not"
            " divide by the presets' blocks of 256, so these files are larger than their names promise."
        )
