"""``ggq quantize``: a base GGUF over presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.options import (
    dry_run_option,
    engine_options,
    force_option,
    output_options,
    preset_options,
    quantize_options,
    threads_option,
)
from ggq.cli.output import Output, human_seconds, plain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations import convert_and_quantize
from ggq.operations.convert_and_quantize import QuantizedFile, Settings
from ggq.operations.dry_run import PipelinePlan, PlannedBase, PlannedFile, plan_quantize
from ggq.presets import catalogue as presets
from ggq.quantization import imatrix_coverage
from ggq.system import files
from ggq.system.texts import Text


@click.command()
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
    parse_special: bool,
    engine: str,
    max_memory_bytes: int,
    threads: int | None,
    force: bool,
    dry_run: bool,
    out: Output,
) -> None:
    """Quantize a 16-bit GGUF as llama-quantize does, and check each result against its recipe.

    Without --preset it is Q4_K_M. All presets are made in one pass, where that gives llama-quantize's bytes.
    Stop it at any moment: the same command goes on where it was.

    \b
    ggq quantize Qwen3-0.6B-BF16.gguf --preset q4_k_m
    ggq quantize Qwen3-0.6B-BF16.gguf --preset k-quants --outdir quants
    ggq quantize Qwen3-0.6B-BF16.gguf --preset iq2_xs --imatrix auto
    ggq quantize Qwen3-0.6B-BF16.gguf --preset q4_k_m --dry-run
    """
    catalogue = presets.load(presets_file)
    names = preset_names or convert_and_quantize.DEFAULT_PRESETS
    settings = Settings(
        options=options, calibration=calibration, parse_special=parse_special, engine=engine,
        max_memory_bytes=max_memory_bytes, threads=threads, force=force,
    )  # fmt: skip
    if dry_run:
        with out.progress() as listener:
            plan = plan_quantize(base, names, outdir, settings, catalogue=catalogue, listener=listener)
        show_plan(out, plan)
        return
    with out.progress() as listener:
        result = convert_and_quantize.quantize(
            base, names, outdir, settings, catalogue=catalogue, listener=listener
        )
    show_files(out, result.files)
    out.result(result)


def show_plan(out: Output, plan: PipelinePlan) -> None:
    """A dry run: files to the byte, and what they need of the network and the disk."""
    exact = all(file.exact for file in plan.files)
    fell_back = any(file.size.fallback_count for file in plan.files)
    out.table(
        ["file", "size", "bytes", "bpw", *["fell back"] * fell_back, "state"],
        [
            *([_base_row(plan.base, exact, fell_back)] if plan.base else []),
            *(_file_row(file, fell_back) for file in plan.files),
        ],
        right=range(1, 5 if fell_back else 4),
        compact=True,
    )
    out.fields(
        [
            ("download", _download(plan)),
            ("disk needed", f"{files.human_bytes(plan.needed_bytes)} in {plan.outdir}"),
            ("disk free", files.human_bytes(plan.free_bytes)),
        ]
    )
    if plan.missing_bytes:
        beside = ", the download beside it" if plan.shares_disk and plan.download_bytes else ""
        out.warning(f"the disk is {files.human_bytes(plan.missing_bytes)} too small for this{beside}.")
    if not exact:
        out.warning(
            "these sizes are estimated from nominal bits: only the weights can tell more of this model."
        )
    if plan.makes_imatrix:
        out.info(
            "The importance matrix is made first. The sizes are those with it, if its text reaches every"
            " tensor that the model uses."
        )
    for file in plan.files:
        if file.why:
            out.info(f"llama-quantize makes {file.preset}: {file.why}")
        if remark := imatrix_coverage.words(file.uncovered, file.preset):
            out.warning(remark)
        if file.size.needs_imatrix and not plan.makes_imatrix:
            out.warning(f"{file.preset} needs an importance matrix (--imatrix auto|FILE).")
    warn_of_fallbacks(out, [file.preset for file in plan.files if file.size.mostly_fell_back])
    out.result({**plain(plan), "needed_bytes": plan.needed_bytes})


def _base_row(base: PlannedBase, exact: bool, fell_back: bool) -> list[str]:
    state = "to keep" if base.kept else "on the way"
    return [base.name, *_sizes(base.file_bytes, exact), "-", *["-"] * fell_back, state]


def _file_row(file: PlannedFile, fell_back: bool) -> list[str]:
    count = f"{file.size.fallback_count} of {file.size.quantized_count}" if file.size.fallback_count else "-"
    return [
        file.name,
        *_sizes(file.size.file_bytes, file.exact),
        f"{file.size.bits_per_weight:.2f}" if file.exact else "-",
        *[count] * fell_back,
        "as it was" if file.made else "to make",
    ]


def _sizes(count: int, exact: bool) -> tuple[str, str]:
    """For a person, and to the byte."""
    return (files.human_bytes(count), f"{count:,}") if exact else (f"≈ {files.human_bytes(count)}", "-")


def _download(plan: PipelinePlan) -> str:
    if not plan.download_bytes:
        return "nothing"
    kept = ", of which the weights are not kept" if plan.is_streamed else ""
    return f"{files.human_bytes(plan.download_bytes)}{kept}"


def show_files(out: Output, made: Sequence[QuantizedFile]) -> None:
    """The table of what was made."""
    out.table(
        ["preset", "file", "size", "bits/weight", "fell back", "time"],
        [
            [
                file.preset,
                file.paths[0].name + (f" +{len(file.paths) - 1}" if len(file.paths) > 1 else ""),
                files.human_bytes(file.size.file_bytes),
                f"{file.size.bits_per_weight:.2f}",
                str(file.size.fallback_count) if file.size.fallback_count else "-",
                _time(file),
            ]
            for file in made
        ],
        right=(2, 3, 4, 5),
    )
    for count, seconds in sorted({_pass(file) for file in made if _is_new_together(file)}):
        which = "Both" if count == 2 else f"All {count}"
        out.text(f"{which} were made in one pass, in {human_seconds(seconds)}.")
    warn_of_fallbacks(out, [file.preset for file in made if file.size.mostly_fell_back])


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
