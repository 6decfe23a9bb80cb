"""llama.cpp's own proposals: a placement that fits a device, and what a projector takes beside the model."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggq.errors import GgufProblem
from ggq.llamacpp import bench, endings
from ggq.llamacpp.memory import FIT_TOOL, Load
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process

SERVER = "llama-server"

_MIB = 1 << 20
_SERVER_TIMEOUT_S = 60
_ANSWER = re.compile(r'-c (?P<context>\d+) -ngl (?P<layers>-?\d+)(?: -ts [\d,]+)?(?: -ot "(?P<kept>.+)")?')
_KEPT = re.compile(r"blk\\\.\d+\\\.[^,=]+=CPU(?=,|$)")
_PROJECTOR = re.compile(r"adding (?P<mib>[\d.]+) MiB to fit_params_target for device (?P<name>\S+)$")


@dataclass(frozen=True)
class Fit:
    """A placement that llama-fit-params proposes. ``n_gpu_layers``: -1 for all; ``kept_layers``: of so many
    of them it would keep experts, or a part of them, on the CPU. It takes the last ones for that."""

    n_gpu_layers: int
    kept_layers: int


def propose(toolchain: Toolchain, model: Path, load: Load, margins_bytes: Sequence[int]) -> Fit | None:
    """Ask for the most layers that leave ``margins_bytes`` of what is free on each device, in llama.cpp's
    order. The offload's own numbers must not be set: only its ``rpc`` and ``devices`` are told.

    None where it has no answer, or none for this context. Its answer is a proposal: what is free may change
    from one moment to the next.
    """
    margins = ",".join(str(math.ceil(margin / _MIB)) for margin in margins_bytes)
    command: list[str | Path] = [toolchain.tool(FIT_TOOL), "-m", model, *load.arguments()]
    only = ["-dev", ",".join(load.offload.devices)] if load.offload.devices else []
    done = process.run(
        [*command, *_servers(load.offload.rpc), *only, "-fitt", margins], env=bench.ENVIRONMENT, check=False
    )
    return None if done.returncode else parse_fit(done.stdout, load.context_tokens)


def parse_fit(lines: Iterable[str], context_tokens: int) -> Fit | None:
    """Parse the answer of ``llama-fit-params``; None when it is not there, or for another context."""
    for line in lines:
        found = _ANSWER.fullmatch(line.strip())
        if found and int(found["context"]) == context_tokens:
            return Fit(int(found["layers"]), len(_KEPT.findall(found["kept"] or "")))
    return None


def projector_bytes(
    toolchain: Toolchain, projector: Path, rpc: Sequence[str] = (), *, offload: bool = True
) -> dict[str, int]:
    """What a projector (``mmproj``) takes by device (``CUDA0``, ``CPU``): weights and buffers.

    It is llama-server's word (mtmd_get_memory_usage): with the buffers for an image of the size that it warms
    up with; a model that takes pictures of any size can need more for a larger one. ``offload``: False for
    ``--no-mmproj-offload``. Its buffers are made on the device for a moment.

    Raises GgufProblem for a file that is no projector that llama.cpp knows, ToolFailed, ToolchainProblem.
    """
    # It tells before it loads the model: of an empty file, which it refuses, and ends.
    done = process.run(
        [
            toolchain.tool(SERVER), "-m", os.devnull, "--mmproj", projector, *_servers(rpc),
            *([] if offload else ["--no-mmproj-offload"]),
            "--host", "127.0.0.1", "--port", "0", "-lv", "5",
        ],
        env=bench.ENVIRONMENT,
        timeout_s=_SERVER_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    if done.returncode < 0:
        raise endings.failed(done)
    found = parse_projector((*done.stdout, *done.stderr))
    if not found:
        raise GgufProblem(
            f"llama.cpp does not take {projector.name} as a projector.",
            "It told nothing of its memory.",
            "Make it with `ggq convert --mmproj`.",
        )
    return found


def parse_projector(lines: Iterable[str]) -> dict[str, int]:
    """Bytes by device from the log of ``llama-server -lv 5``, which has them in hundredths of a MiB."""
    found: dict[str, int] = {}
    for line in lines:
        if match := _PROJECTOR.search(line):
            found[match["name"]] = math.ceil((float(match["mib"]) + 0.01) * _MIB)
    return found


def _servers(rpc: Sequence[str]) -> list[str]:
    return ["--rpc", ",".join(rpc)] if rpc else []
