"""``ggq plan``: what the presets of a model weigh and need, from its headers alone."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ggq import files, foresee, presets
from ggq.bench.settings import offload_for
from ggq.cli.bench.options import layers_option
from ggq.cli.options import Listed, hub_options, output_options, preset_options
from ggq.cli.output import Output, human_seconds
from ggq.foresee import Plan, PlanSettings, PresetPlan
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp import toolchain


@click.command(short_help="What presets weigh and need, before a download.")
@click.argument("model")
@preset_options
@click.option(
    "-c", "--ctx", "contexts", type=Listed(click.IntRange(min=16)), default=(),
    help="Contexts in tokens, as 4096,32768. Default: 4096, or what the model has.",
)  # fmt: skip
@click.option(
    "--kv", "cache_types", type=Listed(click.Choice(llama_bench.CACHE_TYPES)), default="f16",
    show_default=True, help="Types of the cache, as f16,q8_0.",
)  # fmt: skip
@layers_option
@hub_options
@output_options
def plan(
    model: str,
    preset_names: tuple[str, ...],
    presets_file: Path | None,
    contexts: tuple[int, ...],
    cache_types: tuple[str, ...],
    n_gpu_layers: int | None,
    revision: str | None,
    offline: bool,
    out: Output,
) -> None:
    """Say what each preset of MODEL will weigh, to the byte, and need in memory on this machine.

    Of a model on the Hub only its config, its tokenizer and the headers of its weights are read; llama.cpp is
    then asked about a file with the right header and holes for weights. Speed is not foretold yet.

    \b
    ggq plan Qwen/Qwen3-0.6B
    ggq plan Qwen/Qwen3-8B --preset q4_k_m,q6_k --ctx 4096,32768 --kv f16,q8_0
    ggq plan ./my-checkpoint --json
    """
    tools = toolchain.find()
    settings = PlanSettings(
        contexts=contexts,
        cache_types=tuple((kind, kind) for kind in cache_types),
        offload=offload_for(tools, n_gpu_layers, ()),
    )
    with out.progress() as listener:
        found = foresee.plan(
            model,
            preset_names or foresee.DEFAULT_PRESETS,
            settings,
            revision=revision,
            offline=offline,
            catalogue=presets.load(presets_file),
            toolchain=tools,
            listener=listener,
        )
    show(out, found)
    out.hint(f"\nmake one:  ggq convert-and-quantize {shlex.quote(model)} --preset {_usual(found)}")
    out.result(found)


def show(out: Output, found: Plan) -> None:
    """A table for each context and type of cache; its words below."""
    own = f", context {found.context_length:,}" if found.context_length else ""
    out.text(f"{found.model}: {found.parameter_count:,} parameters{own}")
    for index, memory in enumerate(found.presets[0].memory):
        cache = memory.type_k if memory.type_k == memory.type_v else f"{memory.type_k}/{memory.type_v}"
        out.text(f"\ncontext {memory.context_tokens:,}, cache {cache}:")
        devices = [device.name for device in memory.devices]
        out.table(
            ["preset", "file", "bytes", "bpw", "RAM", *devices, "fits", "KLD prior"],
            [_row(preset, index) for preset in found.presets],
            right=range(1, 5 + len(devices)),
            compact=True,
        )
    free = files.human_bytes(found.presets[0].memory[0].ram_free_bytes)
    out.paragraph(
        f"Sizes are exact. RAM is llama.cpp's own account, with the context filled; {free} are available now."
    )
    priors = {preset.prior.model: preset.prior.source for preset in found.presets if preset.prior}
    for name, source in priors.items():
        out.paragraph(f"KLD prior: published for {name} ({source}), not measured on this model.")
    if any(preset.needs_imatrix for preset in found.presets):
        out.paragraph("*: cannot be made without an importance matrix (--imatrix).")
    read = f", {files.human_bytes(found.network_bytes)} read from the Hub" if found.network_bytes else ""
    out.info(f"Planned in {human_seconds(found.seconds)}{read}; no weights were read.")


def _row(preset: PresetPlan, index: int) -> list[str]:
    memory = preset.memory[index]
    missing = memory.missing_bytes
    prior = preset.prior.mean_kld if preset.prior else None
    return [
        preset.preset + "*" * preset.needs_imatrix,
        files.human_bytes(preset.file_bytes),
        f"{preset.file_bytes:,}",
        f"{preset.bits_per_weight:.2f}",
        files.human_bytes(memory.ram_bytes),
        *(files.human_bytes(device.needed_bytes) for device in memory.devices),
        f"no: {files.human_bytes(missing)} short" if missing else "yes",
        "-" if prior is None else f"{prior:.4f}",
    ]


def _usual(found: Plan) -> str:
    names = [preset.preset for preset in found.presets]
    return "Q4_K_M" if "Q4_K_M" in names else names[0]
