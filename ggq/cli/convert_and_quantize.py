"""``ggq convert-and-quantize``: the main job, from a model's name to files that run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.options import dry_run_option, model_argument, outdir_option, preset_option, session_options
from ggq.cli.output import Output
from ggq.cli.quantize import show_files, show_plan
from ggq.cli.settings import settings_options
from ggq.model_ref import ModelRef
from ggq.operations.auto_preset import AutoChoice
from ggq.operations.execute import PipelineResult, execute
from ggq.operations.outcomes import Outcome
from ggq.operations.prepare import prepare
from ggq.operations.request import DEFAULT_PRESETS, Settings, request
from ggq.session import Session
from ggq.system import files


@click.command("convert-and-quantize")
@model_argument()
@preset_option
@outdir_option
@settings_options(Settings)
@dry_run_option
@session_options(hub=True, presets=True)
def convert_and_quantize(
    model: ModelRef,
    presets: tuple[str, ...],
    outdir: Path | None,
    settings: Settings,
    dry_run: bool,
    session: Session,
    out: Output,
) -> None:
    """Download MODEL, convert it, check the conversion, and quantize it.

    MODEL is org/name[@revision] on the Hub, a checkpoint folder, or a 16-bit GGUF file. Without --preset
    (or with `auto`) the one that `ggq recommend` names is made, and what was predicted of it is measured.
    With options for llama-quantize, of which a recommendation does not know, it is Q4_K_M. Stop it at any
    moment: the same command goes on where it was, with the preset chosen then.

    With --stream the disk needs room for the result alone. A run that breaks off goes on with the first
    tensor that is not finished. The conversion is not checked.

    \b
    ggq convert-and-quantize Qwen/Qwen3-0.6B
    ggq convert-and-quantize Qwen/Qwen3-0.6B --preset k-quants --dry-run
    ggq convert-and-quantize ./my-checkpoint --preset q4_k_m,q8_0 --keep-base
    ggq convert-and-quantize Qwen/Qwen3-32B --preset q4_k_m --stream
    """
    with out.progress():
        plan = prepare(request(model, presets, outdir, settings, session), session, download=not dry_run)
    if plan.choice is not None:
        show_choice(out, plan.choice)
    if dry_run:
        show_plan(out, plan)
        return
    with out.progress():
        result = execute(plan, session)
    show_files(out, result.files)
    show_outcomes(out, result.outcomes)
    show_end(out, result)
    out.result(result)


def show_choice(out: Output, choice: AutoChoice) -> None:
    """Which preset is made, and why."""
    if choice.remembered:
        out.text(f"{choice.preset.name} was chosen here before (--force chooses again).\n")
        return
    out.text(f"{choice.preset.name} is recommended for this machine (--preset chooses another):")
    for reason in choice.recommendation.reasons if choice.recommendation else ():
        out.paragraph(f"- {reason}")
    out.text()


def show_outcomes(out: Output, outcomes: Sequence[Outcome]) -> None:
    """What was predicted, and what it came to."""
    if outcomes:
        out.text()
        out.table(
            ["", "predicted", "measured", "off by", ""],
            [
                [
                    it.what,
                    _figure(it, it.predicted),
                    _figure(it, it.measured),
                    "-" if it.predicted is None else f"{it.predicted / it.measured - 1:+.1%}",
                    it.setting,
                ]
                for it in outcomes
            ],
            right=(1, 2, 3),
        )


def _figure(outcome: Outcome, value: float | None) -> str:
    if value is None:
        return "-"
    if outcome.what == "file":
        return f"{value:,.0f} B"
    return (
        files.human_bytes(int(value))
        if outcome.what == "RAM"
        else f"{value:,.0f} t/s"
        if value >= 100
        else f"{value:.3g} t/s"
    )


def show_end(out: Output, result: PipelineResult) -> None:
    """How the conversion was proven, and the next commands to type."""
    cosine = result.verification.get("logits_cosine")
    if cosine is not None:
        out.text(f"The 16-bit GGUF answers as the checkpoint does: cosine of their logits {cosine:.6f}.")
    vectors = result.verification.get("vectors_cosine")
    if vectors is not None:
        out.text(f"The 16-bit GGUF gives the checkpoint's vectors: cosine {vectors:.6f}.")
    usual = [file for file in result.files if file.preset in DEFAULT_PRESETS]
    first = (usual or result.files)[0].paths[0]
    shown = shlex.quote(str(first))
    out.hint(f'\nrun it:      ggq run {shown} "Once upon a time"')
    out.hint(f"measure it:  ggq bench {shlex.quote(str(first.parent)) if result.base else shown}")
    out.hint(f"look at it:  ggq inspect {shown}")
