"""llama.cpp's RPC server on loopback: this machine's CPU as a device that llama.cpp treats like a GPU."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

from ggq.errors import ToolchainProblem
from ggq.llamacpp.toolchain import Toolchain

_WAIT_S = 10.0


@contextlib.contextmanager
def loopback_device(toolchain: Toolchain) -> Iterator[str]:
    """``host:port`` of a ggml-rpc-server that lives as long as the block. It listens on 127.0.0.1 alone: the
    protocol knows no authentication.

    Raises ToolchainProblem when it is missing or does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(toolchain.tool("ggml-rpc-server")), "-d", "CPU", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _await(server, port)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _WAIT_S
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise ToolchainProblem(
        "ggml-rpc-server does not start.", f"It opened no port within {_WAIT_S:.0f} s.", "Run `ggq doctor`."
    )
