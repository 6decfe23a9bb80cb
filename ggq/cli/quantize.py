"""``ggq quantize``: a 16-bit GGUF over presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.options import dry_run_option, outdir_option, preset_option, session_options
from ggq.cli.output import Output, human_seconds, plain
from ggq.cli.settings import settings_options
from ggq.operations.execute import execute
from ggq.operations.job_plan import JobPlan, PlannedBase, PlannedFile
from ggq.operations.prepare import prepare
from ggq.operations.preset_files import QuantizedFile
from ggq.operations.quantize import quantize_request
from ggq.operations.request import DEFAULT_PRESETS, Settings
from ggq.quantization import imatrix_coverage
from ggq.session import Session
from ggq.system import files


@click.command()
@click.argument("base", metavar="GGUF", type=click.Path(path_type=Path))
@preset_option
@outdir_option
@settings_options(Settings, leave=("outtype", "verify", "keep_base", "stream"))
@dry_run_option
@session_options(presets=True)
def quantize(
    base: Path,
    presets: tuple[str, ...],
    outdir: Path | None,
    settings: Settings,
    dry_run: bool,
    session: Session,
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
    with out.progress():
        asked = quantize_request(base, presets or DEFAULT_PRESETS, outdir, settings, session)
        plan = prepare(asked, session)
    if dry_run:
        show_plan(out, plan)
        return
    with out.progress():
        result = execute(plan, session)
    show_files(out, result.files)
    out.result(result)


def show_plan(out: Output, plan: JobPlan) -> None:
    """A dry run: files to the byte, and what they need of the network and the disk."""
    exact = plan.is_exact
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
            "The imatrix is made first. The sizes are those with it, if its text reaches every"
            " tensor that the model uses."
        )
    for file in plan.files:
        if file.why:
            out.info(f"llama-quantize makes {file.preset}: {file.why}")
        if remark := imatrix_coverage.words(file.uncovered, file.preset):
            out.warning(remark)
        if file.size.needs_imatrix and not plan.makes_imatrix:
            out.warning(f"{file.preset} needs an imatrix (--imatrix auto|FILE).")
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


def _download(plan: JobPlan) -> str:
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
    return not file.reused and len(file.made_with) > 1


def _pass(file: QuantizedFile) -> tuple[int, float]:
    """Of how many presets, and how long it took."""
    return len(file.made_with), file.seconds


def warn_of_fallbacks(out: Output, names: Sequence[str]) -> None:
    """One plain warning when most tensors of a preset got another type."""
    if names:
        out.warning(
            f"most tensors of {', '.join(names)} fell back to another type: this model's rows do not"
            " divide by the presets' blocks of 256, so these files are larger than their names promise."
        )
