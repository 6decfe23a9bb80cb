"""``ggq plan``: what the presets of a model weigh, need and do, from its headers alone."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ggq.cli.bench.options import Layers, rpc_option
from ggq.cli.options import Listed, Seconds, Size, hub_options, output_options, preset_options, threads_option
from ggq.cli.output import Output, human_seconds
from ggq.estimation.estimator import PresetSize
from ggq.estimation.speed import RateEstimate
from ggq.llamacpp.words import CacheType
from ggq.operations import plan as foresee
from ggq.operations.plan import LoadPlan, Plan, PlanSettings, PresetPlan
from ggq.operations.recommend import make_command
from ggq.presets import catalogue as presets
from ggq.presets.published_losses import PublishedLoss
from ggq.system import files

_OTHERS_SHOWN = 2
_LEAST_SHOWN = 0.0001

F = TypeVar("F", bound=Callable[..., Any])


def plan_options(function: F) -> F:
    """``-c --kv -ngl --rpc -t --budget --ram --vram …``; the command gets ``settings: PlanSettings``."""

    @click.option(
        "-c", "--ctx", "contexts", type=Listed(click.IntRange(min=16)), default=(),
        help="Contexts in tokens, as 4096,32768 (`ggq recommend` takes one). Default: 4096, or the model's.",
    )  # fmt: skip
    @click.option(
        "--kv", "cache_types", type=Listed(click.Choice([it.value for it in CacheType])), default="f16",
        show_default=True, help="Types of the cache, as f16,q8_0 (`ggq recommend` takes one).",
    )  # fmt: skip
    @click.option(
        "-ngl", "--n-gpu-layers", type=Layers(),
        help="Layers on GPUs, the output layer counted. Default: as many as fit.",
    )  # fmt: skip
    @rpc_option
    @threads_option
    @click.option(
        "--budget", "budget_s", type=Seconds(), default=f"{foresee.DEFAULT_BUDGET_S:.0f}s",
        show_default=True, help="How long hollow models may run to predict the speed.",
    )  # fmt: skip
    @click.option("--no-speed", is_flag=True, help="Foretell no speed.")
    @click.option(
        "--draft", type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="A GGUF of a draft model that is loaded beside it: its memory is counted.",
    )  # fmt: skip
    @click.option(
        "--mmproj", "projector", type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="A projector (mmproj) that is loaded beside it: its memory is counted.",
    )  # fmt: skip
    @click.option("--ram", "ram_bytes", type=Size(), help="For another machine: its RAM, as 16G.")
    @click.option("--vram", "vram_bytes", type=Size(), help="For another machine: a GPU's memory; 0: none.")
    @click.option(
        "--gpu-count", type=click.IntRange(min=1), default=1, show_default=True,
        help="For another machine: how many such GPUs.",
    )  # fmt: skip
    @click.option(
        "--reserve-ram", "reserve_ram_bytes", type=Size(),
        help="RAM to leave to others. Default: a tenth, at most 1 GiB.",
    )  # fmt: skip
    @click.option(
        "--reserve-vram", "reserve_vram_bytes", type=Size(),
        help="The same on each GPU.",
    )  # fmt: skip
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        contexts: tuple[int, ...],
        cache_types: tuple[str, ...],
        n_gpu_layers: int | None,
        rpc: tuple[str, ...],
        threads: int | None,
        budget_s: float,
        no_speed: bool,
        draft: Path | None,
        projector: Path | None,
        ram_bytes: int | None,
        vram_bytes: int | None,
        gpu_count: int,
        reserve_ram_bytes: int | None,
        reserve_vram_bytes: int | None,
        **kwargs: Any,
    ) -> Any:
        settings = PlanSettings(
            contexts=contexts,
            cache_types=tuple((kind, kind) for kind in cache_types),
            n_gpu_layers=n_gpu_layers,
            rpc=rpc,
            speed_budget_s=0 if no_speed else budget_s,
            threads=threads,
            draft=draft,
            projector=projector,
            ram_bytes=ram_bytes,
            vram_bytes=vram_bytes,
            gpu_count=gpu_count,
            reserve_ram_bytes=reserve_ram_bytes,
            reserve_vram_bytes=reserve_vram_bytes,
        )
        return function(*args, settings=settings, **kwargs)

    return wrapped  # type: ignore[return-value]


@click.command()
@click.argument("model")
@preset_options
@plan_options
@hub_options
@output_options
def plan(
    model: str,
    preset_names: tuple[str, ...],
    presets_file: Path | None,
    settings: PlanSettings,
    revision: str | None,
    offline: bool,
    out: Output,
) -> None:
    """Say what each preset of MODEL will weigh, to the byte, need in memory, and do on this machine.

    Of a model on the Hub only its config, its tokenizer and the headers of its weights are read. A
    file with that header and without weights is given to llama.cpp, which says its memory and runs it.

    \b
    ggq plan Qwen/Qwen3-0.6B
    ggq plan Qwen/Qwen3-8B --preset q4_k_m,q6_k --ctx 4096,32768 --kv f16,q8_0
    ggq plan ./my-checkpoint --no-speed --json
    """
    with out.progress() as listener:
        found = foresee.plan(
            model,
            preset_names or foresee.DEFAULT_PRESETS,
            settings,
            revision=revision,
            offline=offline,
            catalogue=presets.load(presets_file),
            listener=listener,
        )
    show(out, found)
    if not any(cell.fits for it in found.presets for cell in it.loads):
        out.result(found)
        return
    make = make_command(model, _usual(found), found, revision=revision, offline=offline)
    if presets_file is not None:
        make = (*make, "--presets", str(presets_file))
    out.hint(f"\nmake one:  {shlex.join(make)}")
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
            ["preset", "file bytes", "bpw", *fell_back, "RAM", *devices, *placed, *speeds, "prior", "fits"],
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
    _explain_priors(out, found)
    _explain_contents(out, found)
    if any(it.size.needs_imatrix for it in found.presets):
        out.paragraph(
            "*: cannot be made without an importance matrix (--imatrix). The size is that with one, but for"
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
            f" type: {types}. Their prior is that of the preset with this type."
        )
    for names in found.alike:
        out.warning(f"{' and '.join(names)} come out alike: every tensor has the same type in each of them.")


def _explain_priors(out: Output, found: Plan) -> None:
    """Whose losses the column prior has, and how far those of other models are from them."""
    priors = [(it.preset, it.prior) for it in found.presets if it.prior]
    models = {prior.model: prior for _, prior in priors}
    for name, prior in models.items():
        own = "" if len(models) == 1 else f" of {', '.join(it for it, of in priors if of.model == name)}"
        out.paragraph(
            f"prior{own}: {prior.measure} published for {name} ({prior.source}), not measured on this model."
        )
    others: dict[str, list[tuple[str, PublishedLoss]]] = {}
    for it in found.presets:
        for published in it.other_priors:
            others.setdefault(published.model, []).append((it.preset, published))
    nearest = sorted(others.values(), key=lambda losses: losses[0][1].distance(found.parameter_count))
    for losses in nearest[:_OTHERS_SHOWN]:
        shown = ", ".join(f"{preset} {published.loss:.4f}" for preset, published in losses)
        first = losses[0][1]
        out.paragraph(f"How far it spreads: of {first.model} ({first.measure}) they were {shown}.")


def _row(preset: PresetPlan, index: int, found: Plan, with_speed: bool, fell_back: bool) -> list[str]:
    cell = preset.loads[index]
    needed = {device.name: device.needed_bytes for device in cell.memory.devices}
    prior = preset.prior.loss if preset.prior else None
    return [
        preset.preset + "*" * preset.size.needs_imatrix,
        f"{preset.size.file_bytes:,}",
        f"{preset.size.bits_per_weight:.2f}",
        *([fallen(preset.size)] if fell_back else []),
        files.human_bytes(cell.memory.ram_bytes),
        *(files.human_bytes(needed[name]) if name in needed else "-" for name in found.devices),
        *([layers(cell)] if found.devices else []),
        *(_rates(cell) if with_speed else []),
        "-" if prior is None else f"{prior:.4f}" if prior >= _LEAST_SHOWN else f"{prior:.0e}",
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
