"""``ggq recommend``: which preset to take on this machine, why, and what to type."""

from __future__ import annotations

import shlex

import click

from ggq.cli.options import model_argument, preset_option, session_options
from ggq.cli.output import Output
from ggq.cli.plan import rate
from ggq.cli.settings import settings_options
from ggq.model_ref import ModelRef
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.recommend import recommend as choose
from ggq.operations.recommend_types import Limits, Recommendation
from ggq.session import Session


@click.command()
@model_argument()
@preset_option
@settings_options(PlanSettings)
@settings_options(Limits, "limits")
@session_options(hub=True, presets=True)
def recommend(
    model: ModelRef,
    presets: tuple[str, ...],
    settings: PlanSettings,
    limits: Limits,
    session: Session,
    out: Output,
) -> None:
    """Choose a preset of MODEL and its placement for this machine, before anything is downloaded.

    Exit 3, with the nearest that does, when nothing fits.

    \b
    ggq recommend Qwen/Qwen3-8B
    ggq recommend Qwen/Qwen3-8B -c 16384 --min-tps 8 --prefer quality
    ggq recommend Qwen/Qwen3-8B --ram 16G --vram 8G
    """
    with out.progress():
        found = choose(model, presets, limits, settings, session=session)
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
