"""``ggq export``: a GGUF for another program, with what was chosen for this machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ggq.errors import ToolchainProblem, UsageProblem
from ggq.llamacpp.fit_params import SERVER
from ggq.operations.ready import ready
from ggq.serving import parameters
from ggq.serving.export import Bundle, Request, Target, bundle_for, ollama, write
from ggq.serving.places import projector_beside
from ggq.serving.settings import LoadSettings, Use
from ggq.session import Session
from ggq.settings import Option, choice, filled
from ggq.system import process

_FILE_NAME_LENGTH = 200


@dataclass(frozen=True)
class ExportSettings:
    """Where it goes, what it is called there, and how it is run."""

    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            metavar="FOLDER",
            folder=True,
            help="Folder. Default: NAME-PROGRAM here; LM Studio's own.",
        ),
    ] = None
    name: Annotated[str | None, Option("--name", help="The model's name there. Default: the file's.")] = None
    publisher: Annotated[
        str, Option("--publisher", help="The folder that LM Studio files a model under.", shown_default="ggq")
    ] = "ggq"
    host: Annotated[str, Option("--host", help="The address of a server.")] = "127.0.0.1"
    port: Annotated[int, Option("--port", least=1, help="The port of a server.")] = 8080
    create: Annotated[bool, Option("--create", help="Have Ollama take the model in at once.")] = False
    force: Annotated[bool, Option("--force", help="Overwrite files that are there.")] = False
    load: LoadSettings = field(default_factory=LoadSettings)


@dataclass(frozen=True)
class Exported:
    """``files``: that were written; ``commands``: what to type now; ``remarks``: what the program cannot do
    or needs; ``created``: it has the model already."""

    target: Target
    name: str
    files: tuple[Path, ...]
    commands: Sequence[Sequence[str]]
    remarks: Sequence[str]
    created: bool = False


def export(
    model: str | Path,
    to: Target | str,
    settings: ExportSettings | None = None,
    session: Session | None = None,
    **keywords: Any,
) -> Exported:
    """Hand a model over: a GGUF file, a folder with some, or a model that is made first.

    ``keywords``: fields of the settings. Raises CannotServe for what the program cannot do, DoesNotFit,
    GgufProblem, OutputProblem, ToolFailed, UsageProblem.
    """
    settings = filled(ExportSettings, settings, keywords)
    session = session or Session()
    target = to if isinstance(to, Target) else choice(to, "program", Target)
    if settings.create and target is not Target.OLLAMA:
        raise UsageProblem("--create is for Ollama.", f"{target} has no such command.", "Leave --create out.")
    program = shutil.which(ollama.PROGRAM)
    if settings.create and program is None:
        raise UsageProblem(
            "Ollama is not here to take the model in.",
            "There is no program ollama on PATH.",
            "Install it, or leave --create out and type the commands later.",
        )
    request = _request(model, settings, session)
    bundle = bundle_for(target, request, settings.output)
    written = write(bundle, request, session, force=settings.force)
    commands = list(bundle.commands)
    if settings.create:
        process.run([str(program), *commands.pop(0)[1:]])
    return Exported(target, request.name, written, commands, bundle.remarks, settings.create)


def prepare(
    model: str | Path, to: Target, settings: ExportSettings, session: Session
) -> tuple[Request, Bundle]:
    """What would be written. Raises as ``export``."""
    request = _request(model, settings, session)
    return request, bundle_for(to, request, settings.output)


def _request(model: str | Path, settings: ExportSettings, session: Session) -> Request:
    file = ready(model, session, settings.load).file
    chosen = parameters.choose(session.toolchain, file.path, settings.load)
    projector = projector_beside(file) if chosen.use is Use.TEXT else None
    if projector is not None:
        chosen = parameters.choose(session.toolchain, file.path, settings.load, projector=projector)
    server = None
    with contextlib.suppress(ToolchainProblem):
        server = session.toolchain.tool(SERVER)
    return Request(
        parameters=chosen,
        name=_name(settings.name or file.path.stem.split("-00001-of-")[0]),
        server=server,
        host=settings.host,
        port=settings.port,
        publisher=settings.publisher,
    )


def _name(text: str) -> str:
    """A name that can be a file's."""
    kept = "".join(it if it.isalnum() or it in "._-+ " else "-" for it in text).strip(" .-")
    return kept[:_FILE_NAME_LENGTH] or "model"
