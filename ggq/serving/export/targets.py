"""The programs that a model can be handed over to."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ggq.serving.export import ollama, programs, services
from ggq.serving.export.bundle import Bundle, Request


class Target(StrEnum):
    """A program, or a way to run one."""

    OLLAMA = "ollama"
    LM_STUDIO = "lm-studio"
    PYTHON = "python"
    LLAMA_SERVER = "llama-server"
    SYSTEMD = "systemd"
    DOCKER = "docker"
    LLAMAFILE = "llamafile"


def bundle_for(target: Target, request: Request, output: Path | None) -> Bundle:
    """What is written for a target; nothing is yet. ``output``: a folder (None: the usual one).

    Raises CannotServe for what the target cannot do at all.
    """
    if target is Target.LM_STUDIO:
        return programs.lm_studio(request, output)
    folder = (output or Path(f"{request.name}-{target}")).absolute()
    makers = {
        Target.OLLAMA: ollama.bundle,
        Target.PYTHON: programs.python,
        Target.LLAMA_SERVER: programs.llama_server,
        Target.SYSTEMD: services.systemd,
        Target.DOCKER: services.docker,
        Target.LLAMAFILE: programs.llamafile,
    }
    return makers[target](request, folder)
