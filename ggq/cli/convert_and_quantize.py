"""``ggq convert-and-quantize``: the main job, from a model's name to files that run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.options import (
    dry_run_option,
    engine_options,
    force_option,
    hub_options,
    output_options,
    outtype_option,
    preset_options,
    quantize_options,
    threads_option,
    verify_option,
)
from ggq.cli.output import Output, plain
from ggq.cli.quantize import show_files, show_plan
from ggq.errors import DoesNotFit, NeedsWeights
from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations import auto_preset
from ggq.operations import convert_and_quantize as pipeline
from ggq.operations.auto_preset import Outcome
from ggq.operations.convert_and_quantize import PipelineResult, Settings
from ggq.operations.dry_run import plan_convert_and_quantize
from ggq.operations.recommend import Recommendation
from ggq.presets import catalogue as presets
from ggq.system import files
from ggq.system.texts import Text


@click.command("convert-and-quantize")
@click.argument("model")
@preset_options
@click.option(
    "--outdir", type=click.Path(path_type=Path, file_okay=False), help="Default: ./NAME, or beside a GGUF.",
)  # fmt: skip
@click.option("--keep-base", is_flag=True, help="Keep the 16-bit GGUF, too.")
@click.option(
    "--stream", is_flag=True,
    help="Read the weights from the Hub while they are quantized, and keep nothing of them.",
)  # fmt: skip
@outtype_option("bf16", "f16", "f32")
@verify_option
@quantize_options
@engine_options
@threads_option
@hub_options
@force_option
@dry_run_option
@output_options
def convert_and_quantize(
    model: str,
    preset_names: tuple[str, ...],
    presets_file: Path | None,
    outdir: Path | None,
    keep_base: bool,
    stream: bool,
    outtype: str,
    verify: str,
    options: QuantizeOptions,
    calibration: Text | None,
    parse_special: bool,
    engine: str,
    max_memory_bytes: int,
    threads: int | None,
    revision: str | None,
    offline: bool,
    force: bool,
    dry_run: bool,
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
    catalogue = presets.load(presets_file)
    settings = Settings(
        outtype=outtype, options=options, calibration=calibration, parse_special=parse_special, engine=engine,
        max_memory_bytes=max_memory_bytes, threads=threads, verify=verify, keep_base=keep_base, force=force,
        stream=stream,
    )  # fmt: skip
    chosen = None
    names = preset_names or (auto_preset.WORD,)
    left_to_ggq = [name.lower() for name in names] == [auto_preset.WORD]
    if left_to_ggq and (options != QuantizeOptions() or calibration is not None):
        names = pipeline.DEFAULT_PRESETS
    elif left_to_ggq:
        before = None if force else auto_preset.chosen_before(model, outdir, revision=revision)
        try:
            with out.progress() as listener:
                chosen = auto_preset.predict(
                    model, before, revision=revision, offline=offline, download=not (dry_run or stream),
                    catalogue=catalogue, listener=listener,
                )  # fmt: skip
        except (DoesNotFit, NeedsWeights) as problem:
            if before is None:
                raise
            out.warning(f"Nothing is predicted of {before}: {problem.why}")
        if before is not None:
            out.text(f"{before} was chosen here before (--force chooses again).\n")
            names = (before,)
        elif chosen is not None:
            show_choice(out, chosen)
            names = (chosen.chosen.preset,)
    if dry_run:
        with out.progress() as listener:
            plan = plan_convert_and_quantize(
                model, names, outdir, settings, revision=revision, offline=offline, catalogue=catalogue,
                listener=listener,
            )  # fmt: skip
        show_plan(out, plan)
        return
    with out.progress() as listener:
        if chosen is None:
            result = pipeline.convert_and_quantize(
                model, names, outdir, settings, revision=revision, offline=offline, catalogue=catalogue,
                listener=listener,
            )  # fmt: skip
            outcomes: tuple[Outcome, ...] = ()
        else:
            made = auto_preset.make(
                model, chosen, outdir, settings, revision=revision, offline=offline, catalogue=catalogue,
                listener=listener,
            )  # fmt: skip
            result, outcomes = made.result, made.outcomes
    show_files(out, result.files)
    show_outcomes(out, outcomes)
    show_end(out, result)
    out.result(result if chosen is None else {**plain(result), "outcomes": outcomes})


def show_choice(out: Output, chosen: Recommendation) -> None:
    """Which preset is made, and why."""
    out.text(f"{chosen.chosen.preset} is recommended for this machine (--preset chooses another):")
    for reason in chosen.reasons:
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
    return files.human_bytes(int(value)) if outcome.what == "RAM" else f"{value:.3g} t/s"


def show_end(out: Output, result: PipelineResult) -> None:
    """How the conversion was proven, and the next commands to type."""
    cosine = result.verification.get("logits_cosine")
    if cosine is not None:
        out.text(f"The base answers as the checkpoint does: cosine of their logits {cosine:.6f}.")
    vectors = result.verification.get("vectors_cosine")
    if vectors is not None:
        out.text(f"The base gives the checkpoint's vectors: cosine {vectors:.6f}.")
    usual = [file for file in result.files if file.preset in pipeline.DEFAULT_PRESETS]
    first = (usual or result.files)[0].paths[0]
    shown = shlex.quote(str(first))
    out.hint(f'\nrun it:      ggq run {shown} "Once upon a time"')
    out.hint(f"measure it:  ggq bench {shlex.quote(str(first.parent)) if result.base else shown}")
    out.hint(f"look at it:  ggq inspect {shown}")
