"""GPUs as ggml sees them. The machines that run these tests need not have one, so a small library with ggml's
own interface stands in for a driver that works, and for one that crashes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp import devices
from ggq.llamacpp.toolchain import Toolchain
from ggq.setup import selftest
from ggq.system import process
from ggq.system.hardware import Device, DeviceKind

STAND_IN = """
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int loaded, devices[4] = {0, 1, 2, 3};  /* a CPU, a GPU, an integrated GPU, an accelerator */
void ggml_backend_load_all_from_path(const char * path) { loaded = strlen(path) > 0; if (CRASH) abort(); }
size_t ggml_backend_dev_count(void) { return loaded ? 4 : 0; }
void * ggml_backend_dev_get(size_t index) { return &devices[index]; }
int ggml_backend_dev_type(int * device) { return *device; }
const char * ggml_backend_dev_name(int * device) { return *device == 1 ? "CUDA0" : "Vulkan1"; }
const char * ggml_backend_dev_description(int * device) { return "A card"; }
void ggml_backend_dev_memory(int * device, size_t * free, size_t * total) {
    *free = 150000000000u; *total = *device * 100000000000u;
}
"""


def stand_in(folder: Path, crash: bool) -> Toolchain:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (folder / "ggml.c").write_text(STAND_IN)
    library = folder / "libggml.so"
    process.run([compiler, "-shared", "-fPIC", f"-DCRASH={int(crash)}", "-o", library, folder / "ggml.c"])
    return Toolchain("named", folder, folder, None, None)


def test_gpus_and_their_memory(tmp_path: Path) -> None:
    assert devices.gpus(stand_in(tmp_path, crash=False)) == (
        Device("CUDA0", "A card", DeviceKind.GPU, 100_000_000_000, 150_000_000_000),
        Device("Vulkan1", "A card", DeviceKind.IGPU, 200_000_000_000, 150_000_000_000),
    )


def test_a_driver_that_crashes_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        devices.gpus(stand_in(tmp_path, crash=True))
    assert caught.value.returncode == -signal.SIGABRT


def test_a_self_test_on_such_a_driver_blames_the_gpu(tmp_path: Path) -> None:
    with pytest.raises(ToolchainProblem, match="does not run on this machine's GPU") as caught:
        selftest.run(stand_in(tmp_path, crash=True))
    assert "SIGABRT" in caught.value.why and "--backend cpu" in caught.value.next_step


def test_a_library_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        devices.gpus(Toolchain("named", tmp_path, tmp_path, None, None))
    assert "libggml.so" in caught.value.tail[-1]


@pytest.mark.tool
def test_the_real_library_answers(toolchain: Toolchain) -> None:
    for gpu in devices.gpus(toolchain):
        assert gpu.name and 0 < gpu.memory_free_bytes <= gpu.memory_total_bytes
