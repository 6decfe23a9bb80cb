"""A server that starts by itself: a unit of systemd, a file of Docker Compose."""

from __future__ import annotations

import json
from pathlib import Path

from ggq.errors import CannotServe
from ggq.serving.export.bundle import Bundle, Request
from ggq.serving.server_plan import is_loopback

_IMAGE = "ghcr.io/ggml-org/llama.cpp"
_PORT_INSIDE = 8080
_START_S = 600  # a large model from a slow disk

_UNIT = """\
# Written by ggq. To /etc/systemd/system/{unit}, then: systemctl enable --now {unit}
[Unit]
Description=llama-server: {description}
After=network.target

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec=5
TimeoutStartSec={start_s}
# Ended when it has answered, or after this long.
TimeoutStopSec=15

# A user of its own that has nothing, and sees of the system what it needs.
DynamicUser=yes
UMask=0077
CacheDirectory=%p
Environment=HOME=%C/%p LLAMA_CACHE=%C/%p
ProtectSystem=strict
ProtectHome={home}
BindReadOnlyPaths={paths}
PrivateTmp=yes
PrivateUsers=yes
ProtectClock={device_closed}
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
{devices}
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
MemoryDenyWriteExecute={device_closed}
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
{network}

[Install]
WantedBy=multi-user.target
"""

_COMPOSE = """\
# Written by ggq: docker compose up -d
services:
  {service}:
    image: {image}
    command: {command}
    ports:
      - {port}
    volumes:
      - type: bind
        source: {source}
        target: /models
        read_only: true
    restart: unless-stopped
    read_only: true
    tmpfs:
      - /tmp
    cap_drop:
      - ALL
    security_opt:
      - no-new-privileges:true
    healthcheck:
      test: ["CMD", "curl", "-fsS", "http://127.0.0.1:{inside}/health"]
      interval: 30s
      start_period: 10m
{gpus}"""

_GPUS = """\
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              count: all
              capabilities: [gpu]
"""


def systemd(request: Request, folder: Path) -> Bundle:
    """A unit that may do little but answer. Raises CannotServe without a llama-server that it could start."""
    if request.server is None:
        raise CannotServe(
            "There is no llama-server that a unit could start.",
            "This build of llama.cpp has none.",
            "Run `ggq setup`, or name a build with GGQ_LLAMA_CPP.",
        )
    _require_loopback(request)
    serving, unit = request.parameters.serving, f"{_service(request)}.service"
    on_gpu = bool(serving.load.offload.n_gpu_layers)
    places = [request.model.parent, request.server.resolve().parent]
    places += [serving.companions.projector.absolute().parent] if serving.companions.projector else []
    under_home = any(str(it).startswith(("/home/", "/root/", "/run/user/")) for it in places)
    command = [
        str(request.server.absolute()), "-m", str(request.model), "-a", request.name,
        *serving.server_arguments(), "--host", request.host, "--port", str(request.port),
    ]  # fmt: skip
    text = _UNIT.format(
        unit=unit,
        description=_percent(_line(request.name)),
        command=" ".join(map(_word, command)),
        start_s=_START_S,
        home="tmpfs" if under_home else "yes",
        paths=" ".join(_word(str(it)) for it in dict.fromkeys(places)),
        devices="# A GPU is a device, and its driver compiles as it runs.\nPrivateDevices=no"
        if on_gpu
        else "PrivateDevices=yes\nDevicePolicy=closed",
        device_closed="no" if on_gpu else "yes",
        network="IPAddressDeny=any\nIPAddressAllow=localhost",
    )
    return Bundle(
        folder=folder,
        texts={unit: text},
        commands=[
            ("sudo", "cp", str(folder / unit), "/etc/systemd/system/"),
            ("sudo", "systemctl", "enable", "--now", unit),
        ],
        remarks=[
            "The unit's user must be able to read the model: every folder above it needs o+x, the file o+r."
        ],
    )


def docker(request: Request, folder: Path) -> Bundle:
    """A compose file with llama.cpp's own image; the model's folder is seen there, read-only."""
    _require_loopback(request)
    serving = request.parameters.serving
    on_gpu = bool(serving.load.offload.n_gpu_layers)
    arguments = serving.server_arguments()
    if serving.companions.projector is not None:
        inside = f"/models/{serving.companions.projector.name}"
        arguments = [inside if it == str(serving.companions.projector) else it for it in arguments]
    command = [
        "-m", f"/models/{request.model.name}", "-a", request.name, *arguments,
        "--host", "0.0.0.0", "--port", str(_PORT_INSIDE),
    ]  # fmt: skip
    text = _COMPOSE.format(
        service=_service(request),
        image=_yaml(f"{_IMAGE}:{'server-cuda' if on_gpu else 'server'}"),
        command=_yaml(command),
        port=_yaml(f"{request.host}:{request.port}:{_PORT_INSIDE}"),
        source=_yaml(str(request.model.parent)),
        inside=_PORT_INSIDE,
        gpus=_GPUS if on_gpu else "",
    )
    return Bundle(
        folder=folder,
        texts={"compose.yaml": text},
        commands=[("docker", "compose", "-f", str(folder / "compose.yaml"), "up", "-d")],
        remarks=["The image's llama.cpp is another build than the one that ggq measured with."],
    )


def _require_loopback(request: Request) -> None:
    """Raises CannotServe: a file that anybody can read is no place for a key, and without one all could use
    the server."""
    if not is_loopback(request.host):
        raise CannotServe(
            f"A server at {request.host} needs an API key, which such a file would show.",
            "",
            "Keep 127.0.0.1, and put a proxy with a key before it.",
        )


def _service(request: Request) -> str:
    kept = "".join(it if it.isascii() and (it.isalnum() or it in "_-") else "-" for it in request.name)
    return f"llama-{kept.strip('-').lower() or 'model'}"


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """An argument as systemd reads it: its own quotes, ``%`` for specifiers, ``$`` for variables."""
    plain = all(it.isalnum() or it in "/._-+:,=@" for it in text)
    escaped = _percent(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return escaped if plain and text else f'"{escaped}"'


def _yaml(value: object) -> str:
    """JSON is YAML; Compose reads ``$`` as a variable."""
    return json.dumps(value, ensure_ascii=False).replace("$", "$$")
