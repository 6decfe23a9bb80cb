"""``ggq plan``: what the presets of a model weigh, need and do, from its headers alone."""

from __future__ import annotations

import math
import shlex

import click

from ggq.cli.options import model_argument, preset_option, session_options
from ggq.cli.output import Output, human_seconds
from ggq.cli.settings import settings_options
from ggq.estimation.estimator import PresetSize
from ggq.estimation.speed import RateEstimate
from ggq.model_ref import ModelRef
from ggq.operations import plan as plans
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.plan_types import LoadPlan, Plan, PresetPlan
from ggq.operations.recommend import make_command
from ggq.presets.published_kld import PublishedKld
from ggq.session import Session
from ggq.system import files

_OTHERS_SHOWN = 2
_LEAST_SHOWN = 0.0001


@click.command()
@model_argument()
@preset_option
@settings_options(PlanSettings)
@session_options(hub=True, presets=True)
def plan(
    model: ModelRef, presets: tuple[str, ...], settings: PlanSettings, session: Session, out: Output
) -> None:
    """Say what each preset of MODEL will weigh, to the byte, need in memory, and do on this machine.

    Of a model on the Hub only its config, its tokenizer and the headers of its weights are read. A
    file with that header and without weights is given to llama.cpp, which says its memory and runs it.

    \b
    ggq plan Qwen/Qwen3-0.6B
    ggq plan Qwen/Qwen3-8B --preset q4_k_m,q6_k -c 4096,32768 -ctk f16,q8_0
    ggq plan ./my-checkpoint --no-speed --json
    """
    with out.progress():
        found = plans.plan(model, presets, settings, session=session)
    show(out, found)
    if any(cell.fits for it in found.presets for cell in it.loads):
        out.hint(f"\nmake one:  {shlex.join(make_command(model, _usual(found), found, session))}")
    out.result(found)


def show(out: Output, found: Plan) -> None:
    """A table for each context and type of cache; its words below."""
    own = f", context {found.context_length:,}" if found.context_length else ""
    out.text(f"{found.source.name}: {found.parameter_count:,} parameters{own}")
    fell_back = ["fell back"] if any(it.size.fallback_count for it in found.presets) else []
    for index, cell in enumerate(found.presets[0].loads):
        memory = cell.memory
        cache = memory.type_k if memory.type_k == memory.type_v else f"{memory.type_k}/{memory.type_v}"
        out.text(f"\ncontext {memory.context_tokens:,}, cache {cache}:")
        devices = list(found.devices)
        placed = ["ngl"] if found.devices else []
        speeds = ["pp t/s", "tg t/s"] if any(it.loads[index].speed for it in found.presets) else []
        out.table(
            ["preset", "file bytes", "bpw", *fell_back, "RAM", *devices, *placed, *speeds, "KLD", "fits"],
            [_row(it, index, found, bool(speeds), bool(fell_back)) for it in found.presets],
            right=range(1, 5 + len(fell_back) + len(devices) + len(placed) + len(speeds)),
            compact=True,
        )
    _explain(out, found)


def _explain(out: Output, found: Plan) -> None:
    """What the columns are, and how sure they are."""
    free = files.human_bytes(found.presets[0].loads[0].memory.ram_free_bytes)
    out.paragraph(
        f"Sizes are exact. Memory is llama.cpp's own account, with the context filled; {free} of RAM may be"
        " used."
    )
    beside = found.companions_room
    if found.companions.are_there:
        gpu = sum(beside.vram_bytes.values())
        out.paragraph(
            f"What is loaded beside it takes {files.human_bytes(beside.ram_bytes)} of RAM"
            + (f" and {files.human_bytes(gpu)} on devices." if gpu else ".")
        )
    speeds = [cell.speed for it in found.presets for cell in it.loads if cell.speed]
    if speeds and found.threads:
        prompt, generation = found.threads.prompt, found.threads.generation
        threads = f"{prompt} and {generation} threads" if prompt != generation else f"threads: {prompt}"
        out.paragraph(
            f"pp, tg: prompt and generation in an empty context, {threads}, from runs of the file"
            " without its weights, ± a standard error."
        )
        missing = [it.preset for it in found.presets if it.loads[0].speed is None]
        if missing:
            out.paragraph(f"No speed of {', '.join(missing)}: they do not fit, or --budget was spent.")
    elif found.is_elsewhere:
        out.paragraph("No speed: this is about another machine.")
    _explain_published(out, found)
    _explain_contents(out, found)
    if any(it.size.needs_imatrix for it in found.presets):
        out.paragraph(
            "*: cannot be made without an imatrix (--imatrix). The size is that with one, but for"
            " the few bytes of its name in the header."
        )
    for it in found.presets:
        if it.size.remark:
            out.warning(it.size.remark)
    if found.must_be_streamed:
        needed, free = (files.human_bytes(it) for it in (found.source.download_bytes, found.disk_free_bytes))
        out.paragraph(
            f"The checkpoint takes {needed} of disk, {free} are free: --stream is the only way here; it keeps"
            " nothing of the weights."
        )
    read = (
        f", {files.human_bytes(found.source.network_bytes)} read from the Hub"
        if found.source.network_bytes
        else ""
    )
    out.info(f"Planned in {human_seconds(found.seconds)}{read}; no weights were read.")


def fallen(size: PresetSize) -> str:
    """``144 of 169``: tensors that fell back."""
    return f"{size.fallback_count} of {size.quantized_count}" if size.fallback_count else "-"


def _explain_contents(out: Output, found: Plan) -> None:
    """Presets that are not what their names say."""
    mostly = [it for it in found.presets if it.size.mostly_fell_back]
    if mostly:
        types = ", ".join(f"{it.preset} is mostly {it.size.main_type}" for it in mostly)
        out.warning(
            "this model's rows do not divide by the presets' blocks, and most tensors fall back to another"
            f" type: {types}. Their KLD is that of the preset with this type."
        )
    for names in found.alike:
        out.warning(f"{' and '.join(names)} come out alike: every tensor has the same type in each of them.")


def _explain_published(out: Output, found: Plan) -> None:
    """Whose KLDs the column has, and how far those of other models are from them."""
    shown = [(it.preset, it.published) for it in found.presets if it.published]
    models = {published.model: published for _, published in shown}
    for name, published in models.items():
        own = "" if len(models) == 1 else f" of {', '.join(it for it, of in shown if of.model == name)}"
        out.paragraph(
            f"KLD{own}: {published.measure} published for {name} ({published.source}),"
            " not measured on this model."
        )
    others: dict[str, list[tuple[str, PublishedKld]]] = {}
    for it in found.presets:
        for published in it.other_published:
            others.setdefault(published.model, []).append((it.preset, published))
    nearest = sorted(others.values(), key=lambda losses: losses[0][1].distance(found.parameter_count))
    for losses in nearest[:_OTHERS_SHOWN]:
        figures = ", ".join(f"{preset} {published.kld:.4f}" for preset, published in losses)
        first = losses[0][1]
        out.paragraph(f"How far it spreads: of {first.model} ({first.measure}) they were {figures}.")


def _row(preset: PresetPlan, index: int, found: Plan, with_speed: bool, fell_back: bool) -> list[str]:
    cell = preset.loads[index]
    needed = {device.name: device.needed_bytes for device in cell.memory.devices}
    kld = preset.published.kld if preset.published else None
    return [
        preset.preset + "*" * preset.size.needs_imatrix,
        f"{preset.size.file_bytes:,}",
        f"{preset.size.bits_per_weight:.2f}",
        *([fallen(preset.size)] if fell_back else []),
        files.human_bytes(cell.memory.ram_bytes),
        *(files.human_bytes(needed[name]) if name in needed else "-" for name in found.devices),
        *([layers(cell)] if found.devices else []),
        *(_rates(cell) if with_speed else []),
        "-" if kld is None else f"{kld:.4f}" if kld >= _LEAST_SHOWN else f"{kld:.0e}",
        "yes" if cell.fits else f"no: {files.human_bytes(cell.memory.missing_bytes)} short",
    ]


def _rates(cell: LoadPlan) -> list[str]:
    return [rate(cell.speed.prompt), rate(cell.speed.generation)] if cell.speed else ["-", "-"]


def layers(cell: LoadPlan) -> str:
    """The layers on devices; ``33-4e``: the experts of four are on the CPU."""
    count = cell.offload.n_gpu_layers
    experts = f"-{cell.offload.n_cpu_moe}e" if cell.offload.n_cpu_moe else ""
    return f"{count}{experts}"


def rate(estimate: RateEstimate) -> str:
    """``5.3 ±0.2``: as many digits as the error is worth."""
    error = estimate.tokens_per_s * estimate.relative_error
    digits = max(0, -math.floor(math.log10(error)))
    return f"{estimate.tokens_per_s:.{digits}f} ±{error:.{digits}f}"


def _usual(found: Plan) -> str:
    names = [preset.preset for preset in found.presets]
    return "Q4_K_M" if "Q4_K_M" in names else names[0]
