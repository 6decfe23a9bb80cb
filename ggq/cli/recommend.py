"""``ggq recommend``: which preset to take on this machine, why, and what to type."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import click

from ggq.cli.options import hub_options, output_options, preset_options
from ggq.cli.output import Output
from ggq.cli.plan import plan_options, rate
from ggq.errors import UsageProblem
from ggq.operations import plan
from ggq.operations.plan import PlanSettings
from ggq.operations.recommend import PREFERENCES, Limits, Preference, Recommendation
from ggq.operations.recommend import recommend as choose
from ggq.presets import catalogue as presets


@click.command()
@click.argument("model")
@preset_options
@plan_options
@click.option(
    "--min-tps", type=click.FloatRange(min=0),
    help="Tokens per second to generate at least, with a full context.",
)  # fmt: skip
@click.option("--max-loss", type=click.FloatRange(min=0), help="Mean KL divergence to accept at most.")
@click.option(
    "--prefer", type=click.Choice(PREFERENCES), default="balanced", show_default=True,
    help="What counts more where both are to be had.",
)  # fmt: skip
@click.option(
    "--record", "records", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
    help="Record of `ggq bench` of this model: its measured loss counts. May be repeated.",
)  # fmt: skip
@hub_options
@output_options
def recommend(
    model: str,
    preset_names: tuple[str, ...],
    presets_file: Path | None,
    settings: PlanSettings,
    min_tps: float | None,
    max_loss: float | None,
    prefer: Preference,
    records: tuple[Path, ...],
    revision: str | None,
    offline: bool,
    out: Output,
) -> None:
    """Choose a preset of MODEL and its placement for this machine, before anything is downloaded.

    Exit 3, with the nearest that does, when nothing fits.

    \b
    ggq recommend Qwen/Qwen3-8B
    ggq recommend Qwen/Qwen3-8B --ctx 16384 --min-tps 8 --prefer quality
    ggq recommend Qwen/Qwen3-8B --ram 16G --vram 8G
    """
    if len(settings.contexts) > 1 or len(settings.cache_types) > 1:
        raise UsageProblem(
            "One context and one type of cache can be recommended for.", "", "See `ggq plan` for several."
        )
    with out.progress() as listener:
        found = choose(
            model,
            preset_names or plan.DEFAULT_PRESETS,
            Limits(min_tps, max_loss, prefer),
            settings,
            records=records,
            revision=revision,
            offline=offline,
            catalogue=presets.load(presets_file),
            listener=listener,
        )
    if presets_file is not None:
        make = (*found.commands["make"], "--presets", str(presets_file))
        found = replace(found, commands={**found.commands, "make": make})
    show(out, found)
    out.result(found)


def show(out: Output, found: Recommendation) -> None:
    """The choice, why, what else there is, and what to type."""
    out.text(f"{found.plan.source.name}: {found.chosen.preset}\n")
    for reason in found.reasons:
        out.paragraph(f"- {reason}")
    if found.others:
        out.text()
        out.table(
            ["instead", "tg t/s", "what it would gain and cost"],
            [
                [it.preset, rate(it.load.speed.generation) if it.load.speed else "-", trade]
                for it, trade in list(zip(found.others, found.trades, strict=True))[:3]
            ],
            right=(1,),
        )
    out.text("\nmake it:   " + shlex.join(found.commands["make"]))
    out.text("serve it:  " + shlex.join(found.commands["serve"]))
    if found.llama is not None:
        given = ", ".join(f"{key}={value!r}" for key, value in found.llama.items())
        out.text(f"in Python: Llama({str(found.file)!r}, {given})")
    elif found.chosen.load.offload.n_gpu_layers:
        out.text("in Python: llama-cpp-python has no option for this placement.")
