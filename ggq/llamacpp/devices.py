"""The devices that this llama.cpp computes on, asked of its own library in a child process."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

from ggq.errors import ToolFailed
from ggq.llamacpp import endings
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import codec, python_child
from ggq.system.hardware import Device, DeviceKind

# enum ggml_backend_dev_type: the CPU itself (0), accelerators that share its memory (3) and ggml's device
# of devices (4) are not GPUs.
_KINDS = {1: DeviceKind.GPU, 2: DeviceKind.IGPU}
_TIMEOUT_S = 60  # a first look at CUDA may take seconds


def gpus(toolchain: Toolchain) -> tuple[Device, ...]:
    """The GPUs as ggml sees them, with their memory now.

    Raises ToolFailed when the library cannot be loaded or the driver takes the child process with it.
    """
    done = endings.checked(
        python_child.run(__name__, toolchain.lib_dir.absolute(), timeout_s=_TIMEOUT_S, check=False),
        of_file=False,
    )
    try:
        return codec.decode(tuple[Device, ...], json.loads(done.stdout[-1]))
    except (IndexError, ValueError) as error:
        raise ToolFailed(done.command, done.returncode, done.tail) from error


def sharing_ram(toolchain: Toolchain) -> frozenset[str]:
    """The names of GPUs that have no memory of their own. Raises as ``gpus``."""
    return frozenset(it.name for it in gpus(toolchain) if it.shares_ram)


def _devices(lib_dir: Path) -> list[dict[str, Any]]:
    """What ``ggml-backend.h`` tells of each GPU, in this very process."""
    library = ctypes.CDLL(str(_library(lib_dir)))
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    for function in (library.ggml_backend_dev_name, library.ggml_backend_dev_description):
        function.argtypes = [ctypes.c_void_p]
        function.restype = ctypes.c_char_p
    library.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    library.ggml_backend_dev_type.restype = ctypes.c_int
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_pointer, size_pointer]
    library.ggml_backend_dev_memory.restype = None
    # Backends may be libraries of their own; look for them beside this one only, not in the current folder.
    library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    library.ggml_backend_load_all_from_path.restype = None
    library.ggml_backend_load_all_from_path(str(lib_dir).encode())

    devices = []
    for index in range(library.ggml_backend_dev_count()):
        device = library.ggml_backend_dev_get(index)
        kind = _KINDS.get(library.ggml_backend_dev_type(device))
        if kind is None:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        devices.append(
            {
                "name": library.ggml_backend_dev_name(device).decode(),
                "description": library.ggml_backend_dev_description(device).decode(errors="replace"),
                "kind": kind,
                "memory_total_bytes": total.value,
                "memory_free_bytes": free.value,
            }
        )
    return devices


def _library(lib_dir: Path) -> Path:
    names = ("libggml.so", "libggml.dylib", "ggml.dll")
    return next((lib_dir / name for name in names if (lib_dir / name).exists()), lib_dir / names[0])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_devices(Path(sys.argv[1]))) + "\n")
