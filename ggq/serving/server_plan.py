"""What a server will be: its models and how each is run, its address, page and log."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from ggq.errors import UsageProblem
from ggq.llamacpp.fit_params import SERVER
from ggq.llamacpp.server_endpoint import Endpoint, any_free_port, port_is_free
from ggq.serving import page, parameters
from ggq.serving.page import PageChoice
from ggq.serving.parameters import Parameters
from ggq.serving.places import projector_beside
from ggq.serving.settings import LoadSettings, Use
from ggq.session import Session
from ggq.settings import Option
from ggq.system import places

DEFAULT_PORT = 8080
AUTO_KEY = "auto"
_PORTS_TRIED = 20
_KEY_BYTES = 24


@dataclass(frozen=True)
class ServeSettings:
    """How to serve. ``load`` is for every model."""

    host: Annotated[
        str, Option("--host", help="Address to listen on. All but this machine's own need --api-key.")
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        Option(
            "--port", least=0, help="Port; 0: any that is free. Default: 8080, or the next one that is free."
        ),
    ] = None
    api_key: Annotated[
        str | None,
        Option(
            "--api-key",
            metavar="KEY|auto",
            help="What clients must send; auto makes a key. Others cannot see it in GGQ_SERVE_API_KEY.",
        ),
    ] = None
    parallel: Annotated[
        int,
        Option(
            "-np", "--parallel", least=1, help="Clients that are answered at once, each with a whole context."
        ),
    ] = 1
    most_models: Annotated[
        int | None,
        Option(
            "--models-max", least=1, help="Of several models, so many are in memory at once. Default: as fit."
        ),
    ] = None
    embeddings: Annotated[
        bool, Option("--embeddings", help="Answer with vectors, whatever the model is made for.")
    ] = False
    reranking: Annotated[bool, Option("--reranking", help="Answer with scores of texts for a query.")] = False
    page: Annotated[
        PageChoice,
        Option(
            "--page",
            help="The page at /: llama.cpp's own where it was built, ggq's, or none.",
            shown_default="auto",
        ),
    ] = PageChoice.AUTO
    log_file: Annotated[
        Path | None,
        Option("--log-file", metavar="FILE", help="The server's log. Default: in the user's log folder."),
    ] = None
    load: LoadSettings = field(default_factory=LoadSettings)

    def check(self) -> None:
        """Raises UsageProblem for what contradicts itself, or would be open to others."""
        if self.embeddings and self.reranking:
            raise UsageProblem("--embeddings and --reranking exclude each other.", "", "Give one of them.")
        if not self.api_key and not is_loopback(self.host):
            raise UsageProblem(
                f"A server at {self.host} needs an API key.",
                "Everybody who reaches that address could use it.",
                "Give --api-key auto, or a key of yours in GGQ_SERVE_API_KEY.",
            )

    @property
    def use(self) -> Use | None:
        """What was asked for; None: as each model is made for."""
        return Use.EMBEDDINGS if self.embeddings else Use.RERANKING if self.reranking else None


@dataclass(frozen=True)
class ServerPlan:
    """``models``: by the name that clients use; ``most_models``: of several, so many at once in memory."""

    program: Path
    models: dict[str, Parameters]
    endpoint: Endpoint
    log_file: Path
    most_models: int
    settings: ServeSettings

    @property
    def is_router(self) -> bool:
        return len(self.models) > 1

    def command(self) -> list[str]:
        """llama-server's command line for one model; of several each has its own, in an INI file."""
        if self.is_router:
            return [str(self.program), *self.endpoint.arguments()]
        ((name, only),) = self.models.items()
        run = only.serving.server_arguments()
        return [
            str(self.program),
            "-m",
            str(only.file.path.absolute()),
            "-a",
            name,
            *run,
            *self.endpoint.arguments(),
        ]


def prepare(models: Sequence[Path], settings: ServeSettings, session: Session) -> ServerPlan:
    """Decide everything about a server of these GGUF files.

    Raises UsageProblem (a port that is taken, an address without a key), DoesNotFit, GgufProblem,
    ToolchainProblem.
    """
    settings.check()
    program = session.toolchain.tool(SERVER)
    room = parameters.room_now(session.toolchain)
    chosen: dict[str, Parameters] = {}
    for path in models:
        found = parameters.choose(
            session.toolchain, path, settings.load, parallel=settings.parallel, use=settings.use, room=room
        )
        projector = projector_beside(found.file) if found.use is Use.TEXT else None
        if projector is not None:
            found = parameters.choose(
                session.toolchain, path, settings.load, parallel=settings.parallel, use=found.use,
                projector=projector, room=room,
            )  # fmt: skip
        chosen[_name(path, chosen)] = found
    key = secrets.token_urlsafe(_KEY_BYTES) if settings.api_key == AUTO_KEY else settings.api_key
    port = _port(settings.host, settings.port)
    shown = page.folder(settings.page, session.toolchain, with_key=bool(key))
    return ServerPlan(
        program=program,
        models=chosen,
        endpoint=Endpoint(settings.host, port, key, shown, settings.page is PageChoice.OFF),
        log_file=(settings.log_file or places.logs() / f"serve-{port}.log").absolute(),
        most_models=settings.most_models or _at_once(list(chosen.values())),
        settings=replace(settings, api_key=key),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(path: Path, taken: dict[str, Parameters]) -> str:
    """A name for clients: the file's, without its ending and what INI files need; of its folder, too, where
    two are alike."""
    name = path.stem.split("-00001-of-")[0]
    if name in taken:
        name = f"{path.absolute().parent.name}/{name}"
    while name in taken:
        name += "+"
    return name.replace("[", "(").replace("]", ")")


def _port(host: str, wanted: int | None) -> int:
    """Raises UsageProblem for one that is taken, and for an address that is not this machine's."""
    free = any_free_port(host)
    if free is None:
        raise UsageProblem(
            f"One cannot listen at {host!r}.", "It is no address of this machine.", "Try --host 127.0.0.1."
        )
    if wanted == 0:
        return free
    if wanted is not None:
        if not port_is_free(host, wanted):
            raise UsageProblem(
                f"Port {wanted} of {host} is taken, or this user may not use it.",
                "",
                "Give another one, or leave --port out: then a free one is chosen.",
            )
        return wanted
    return next(
        (it for it in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED) if port_is_free(host, it)), free
    )


def _at_once(models: Sequence[Parameters]) -> int:
    """How many of them, the largest first, are in memory at once at most."""
    needs = sorted((it.memory.ram_bytes for it in models), reverse=True)
    left = models[0].room.ram_bytes
    count = 0
    for need in needs:
        left -= need
        if left < 0:
            break
        count += 1
    devices: dict[str, int] = {}
    for fitting, it in enumerate(sorted(models, key=lambda it: -it.memory.ram_bytes)):
        for device in it.memory.devices:
            devices[device.name] = devices.get(device.name, 0) + device.needed_bytes
            if devices[device.name] > it.room.vram_bytes.get(device.name, 0):
                return max(1, min(count, fitting))
    return max(1, count)
