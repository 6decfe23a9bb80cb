"""Where llama-server listens, to whom it answers, whether it is ready; several models at one address."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_HEALTH_TIMEOUT_S = 5
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Endpoint:
    """``host``, ``port``: where to listen; ``api_key``: what clients must send (None: nothing); ``page``: a
    folder whose index.html is served at ``/`` (None: llama.cpp's own page, if this build has it);
    ``no_page``: not even that."""

    host: str
    port: int
    api_key: str | None = field(default=None, repr=False)
    page: Path | None = None
    no_page: bool = False

    @property
    def reachable_host(self) -> str:
        """An address of this machine at which it answers."""
        return _ANY.get(self.host, self.host)

    @property
    def url(self) -> str:
        host = self.reachable_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def arguments(self) -> list[str]:
        """For llama-server. Pages of other addresses may not read its answers: no browser lets them."""
        return [
            "--host", self.host, "--port", str(self.port), "--cors-origins", "localhost",
            *(["--path", str(self.page.absolute())] if self.page and not self.no_page else []),
            *(["--no-ui"] if self.no_page else []),
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The key is told this way: a command line can be read by everybody."""
        return {"LLAMA_API_KEY": self.api_key} if self.api_key else {}

    def is_ready(self) -> bool:
        """Whether it answers that its model is loaded."""
        connection = http.client.HTTPConnection(self.reachable_host, self.port, timeout=_HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there; as llama-server asks, so one that was closed just now counts."""
    return _bound(host, port) is not None


def any_free_port(host: str) -> int | None:
    """A port that the system chooses; None where one cannot listen at this address."""
    return _bound(host, 0)


def _bound(host: str, port: int) -> int | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError:
        return None


# --- several models: llama-server's router ----------------------------------------------------------------


def router_ini(models: Mapping[str, tuple[Path, Sequence[str]]]) -> str:
    """The INI file of a router: name -> the model's file and its arguments, as ``Serving`` writes them."""
    lines = ["version = 1"]
    for name, (path, arguments) in models.items():
        lines += ["", f"[{name}]", f"model = {path.absolute()}"]
        lines += [f"{key} = {value}" for key, value in _pairs(arguments)]
    return "\n".join(lines) + "\n"


def router_arguments(ini: Path, most_models: int) -> list[str]:
    """For llama-server without a model of its own. Models are loaded when they are first asked for."""
    return ["--models-preset", str(ini.absolute()), "--models-max", str(most_models)]


def router_environment(empty: Path) -> dict[str, str]:
    """So that it offers the models of its INI file alone, and none of a cache."""
    return {"LLAMA_CACHE": str(empty.absolute())}


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """``-c 4096 --embeddings`` -> ``c = 4096``, ``embeddings = true``."""
    found: list[tuple[str, str]] = []
    for word in arguments:
        if word.startswith("-") and not word[1:2].isdigit():
            found.append((word.lstrip("-"), "true"))
        else:
            found[-1] = (found[-1][0], word)
    return found
