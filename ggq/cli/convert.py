"""``ggq convert``: a checkpoint to a GGUF."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ggq.cli.options import dry_run_option, model_argument, session_options
from ggq.cli.output import Output, human_seconds
from ggq.cli.settings import settings_options
from ggq.conversion import Conversion, Verification
from ggq.conversion.settings import ConvertSettings
from ggq.model_ref import ModelRef
from ggq.operations.convert import ConvertPlan, execute_convert, prepare_convert
from ggq.session import Session
from ggq.system import files


@click.command()
@model_argument()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: ./NAME-TYPE.gguf."
)
@settings_options(ConvertSettings)
@dry_run_option
@session_options(hub=True)
def convert(
    model: ModelRef,
    output: Path | None,
    settings: ConvertSettings,
    dry_run: bool,
    session: Session,
    out: Output,
) -> None:
    """Convert a checkpoint to a GGUF, and prove that it is the same model.

    MODEL is a checkpoint folder, or org/name[@revision] on the Hub. The result is compared with the
    checkpoint: its parameters, its values, its tokenizer, and its logits against those of transformers.

    \b
    ggq convert ./my-checkpoint
    ggq convert Qwen/Qwen3-0.6B --outtype f16 -o qwen3.gguf
    ggq convert google/gemma-3-4b-it --mmproj
    """
    with out.progress():
        plan = prepare_convert(model, output, settings, session, exact=dry_run)
    if dry_run:
        show_plan(out, plan)
        return
    with out.progress():
        made = execute_convert(plan, session)
    out.result(made)
    _show(out, made)
    if not settings.mmproj and made.outtype != "q8_0":  # quantized already
        out.hint(f"next: ggq quantize {shlex.quote(str(made.output))}")


def show_plan(out: Output, plan: ConvertPlan) -> None:
    """A dry run."""
    size = files.human_bytes(plan.file_bytes)
    out.fields(
        [
            ("output", str(plan.output)),
            ("type", plan.outtype),
            ("size", f"{size} ({plan.file_bytes:,} bytes)" if plan.exact else f"≈ {size}"),
            ("download", files.human_bytes(plan.download_bytes) if plan.download_bytes else "nothing"),
            ("disk free", files.human_bytes(plan.free_bytes)),
        ]
    )
    if plan.file_bytes > plan.free_bytes:
        out.warning(f"the disk is {files.human_bytes(plan.file_bytes - plan.free_bytes)} too small for this.")
    out.result(plan)


def _show(out: Output, made: Conversion) -> None:
    out.fields(
        [
            ("output", str(made.output)),
            ("size", f"{files.human_bytes(made.file_bytes)} ({made.file_bytes:,} bytes)"),
            ("architecture", made.architecture),
            ("type", made.outtype),
            ("parameters", f"{made.parameter_count:,} in {made.tensor_count} tensors"),
            *(
                [("completed", ", ".join(f"{key} = {value}" for key, value in made.completed_keys.items()))]
                if made.completed_keys
                else []
            ),
            *_checks(made.verification),
            ("took", human_seconds(made.seconds)),
        ]
    )


def _checks(found: Verification) -> list[tuple[str, str]]:
    """What was proven, a line each."""
    if found.level == "off":
        return [("checked", "not at all (--verify off)")]
    values = "every value" if found.level == "full" else "a sample of every tensor"
    if found.unread_tensors:
        values += f", but for {found.unread_tensors} tensors of a type that cannot be read"
    lines = [("values", f"no NaN, no infinity in {values}")]
    if found.checkpoint_parameters is not None:
        same = found.checkpoint_parameters == found.gguf_parameters
        text = "as many as in the checkpoint" if same else "; ".join(found.parameter_notes)
        lines.append(("count", text or f"the checkpoint has {found.checkpoint_parameters:,}"))
    if found.unpacked_compared:
        count = f"{found.unpacked_compared} of {found.unpacked_tensors} packed tensors"
        lines.append(("weights", f"{count} have the values that ggq unpacks, in a sample of rows"))
    lines.append(("tokenizer", _tokenizer(found)))
    if found.template_compared:
        agree, tried = found.template_conversations, found.template_compared
        text = f"{tried} conversations are rendered as by transformers"
        if agree < tried:
            text = f"{tried - agree} of {tried} conversations differ from transformers' (see the warnings)"
        lines.append(("template", text))
    if found.stop_tokens:
        told = ", ".join(map(str, found.stop_tokens))
        lost = f"; not at {', '.join(map(str, found.stop_tokens_lost))}" if found.stop_tokens_lost else ""
        lines.append(("stops at", f"{told}, as the checkpoint says" if not lost else f"some of {told}{lost}"))
    if found.vectors_cosine is not None:
        pooled = f"; pooled by {found.pooling} {found.pooled_cosine:.6f}" if found.pooled_cosine else ""
        lines.append(
            (
                "vectors",
                f"cosine {found.vectors_cosine:.6f} with transformers' over {found.positions} tokens "
                f"(lowest {found.lowest_cosine:.6f}){pooled}",
            )
        )
    elif found.logits_cosine is None:
        lines.append(("logits", f"not compared: {found.why_not}"))
    else:
        lines.append(
            (
                "logits",
                f"cosine {found.logits_cosine:.6f} with transformers' over {found.positions} positions "
                f"(lowest {found.lowest_cosine:.6f}); best token agrees at {found.top1_agreement:.0%}",
            )
        )
    if found.original_context is not None:
        lines.append(("long context", _long_context(found)))
    if found.window is not None:
        lines.append(("window", _window(found)))
    return lines


def _window(found: Verification) -> str:
    """What was compared behind a sliding window."""
    told = "it differs, or was not compared (see the warnings)"
    if found.window_cosine is not None:
        told = f"cosine {found.window_cosine:.6f}"
    return f"behind the window (of {found.window:,} tokens): {told}"


def _long_context(found: Verification) -> str:
    """What was compared at positions beyond the original context."""
    parts = []
    if found.beyond_cosine is not None:
        parts.append(f"cosine {found.beyond_cosine:.6f}")
    if found.rotations:
        parts.append(f"{found.rotations} rotations agree")
    told = ", ".join(parts) or "it differs, or was not compared (see the warnings)"
    return f"beyond the original {found.original_context:,} tokens: {told}"


def _tokenizer(found: Verification) -> str:
    """How many texts agree, of how many."""
    if not found.tokenizer_compared:
        return f"not compared: {found.tokenizer_why_not or 'a projector has none'}"
    whose = f"the ids of {found.tokenizer_reference}"
    if found.tokenizer_strings == found.tokenizer_compared:
        return f"{found.tokenizer_compared} texts give {whose}"
    wrong = found.tokenizer_compared - found.tokenizer_strings
    return f"{wrong} of {found.tokenizer_compared} texts do not give {whose} (see the warnings)"
