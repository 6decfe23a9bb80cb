"""Building: resumed, repeated without what the machine refuses, and never finished by half.

llama.cpp itself compiles for minutes, so most of these tests compile a stand-in: a small project with
llama.cpp's name, targets and options, by the real CMake, Ninja and compiler, with ggq's own hook. Where even
that would be too much, ``_compile`` only notes its flags, and the test says so. What fetches the source and
installs the binding is replaced throughout: test_source.py and test_binding.py are about those. And no
machine can be made to refuse AMX, so the self-tests that crash are doubles.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ggq.errors import DiskFull, OutputProblem, ToolchainProblem, ToolFailed
from ggq.llamacpp import binding, toolchain
from ggq.llamacpp.pin import pin
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Event, Listener, Notice, Step, silent
from ggq.setup import build, compiling, variants
from ggq.setup import fast_quants as quants
from ggq.setup import sdist as source
from ggq.setup.build import BuildOptions
from ggq.setup.variants import BASELINE, NATIVE, PORTABLE, WITHOUT_AMX, Backend
from ggq.system import files, hardware

TOOLS = ("llama-quantize", "llama-server")
CMAKELISTS = f"""
cmake_minimum_required(VERSION 3.14)
project(llama.cpp CXX)
option(GGML_NATIVE "" ON)
option(GGML_AVX "" ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)
add_library(llama-common SHARED common.cpp)
target_include_directories(llama-common PRIVATE ${{CMAKE_SOURCE_DIR}})
foreach(tool {" ".join(TOOLS)})
    add_executable(${{tool}} main.cpp)
    target_link_libraries(${{tool}} llama-common)
endforeach()
# One step that takes as long as a test likes.
add_custom_target(slow COMMAND sh ${{CMAKE_SOURCE_DIR}}/slow.sh)
add_dependencies(llama-server slow)
"""
STAND_IN = {
    "CMakeLists.txt": CMAKELISTS,
    "log.h": "struct common_log;\ncommon_log * common_log_main();\nvoid common_log_flush(common_log *);\n",
    "common.cpp": '#include "log.h"\n#include <cstdio>\ncommon_log * common_log_main() { return nullptr; }\n'
    'void common_log_flush(common_log *) { std::fputs("flushed\\n", stderr); }\n'
    "int common() { return 0; }\n",
    "main.cpp": "int common();\nint main() { return common(); }\n",
    "slow.sh": "",
    "convert_hf_to_gguf.py": "",
}
PASSED = {"Q4_K_M": "ok"}


def passes(candidate: Toolchain, listener: Listener) -> dict[str, str]:
    return PASSED


def dies(*signals: signal.Signals) -> Callable[[Toolchain, Listener], dict[str, str]]:
    """A self-test that ends by each signal in turn, and then passes."""
    left = list(signals)

    def self_test(candidate: Toolchain, listener: Listener) -> dict[str, str]:
        if left:
            raise ToolFailed(["llama-bench"], -left.pop(0), ["ggml_cpu_init"])
        return PASSED

    return self_test


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ggq's own llama.cpp, with the stand-in's source once it is fetched."""
    return make_home(tmp_path / "home", monkeypatch)


def make_home(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    def fetch(home: Path, wanted: object, listener: Listener) -> None:
        if not (home / "src").is_dir():
            (home / "src").mkdir()
            for name, text in STAND_IN.items():
                (home / "src" / name).write_text(text)

    patch.setattr(toolchain, "home", lambda: folder)
    patch.setattr(variants, "TOOLS", TOOLS)
    patch.setattr(compiling, "TOOLS", TOOLS)
    patch.setattr(toolchain, "TOOLS", TOOLS)
    patch.setattr(source, "fetch", fetch)
    patch.setattr(binding, "install", lambda *arguments: None)
    return folder


@pytest.fixture
def flags_of_each_build(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Nothing is compiled: the flags of each attempt are noted, and a tool is put where it would be."""
    noted: list[tuple[str, ...]] = []

    def compile_(home: Path, flags: tuple[str, ...], jobs: int | None, listener: Listener) -> str:
        noted.append(flags)
        for name in TOOLS:
            tool = home / "build" / "bin" / name
            tool.parent.mkdir(parents=True, exist_ok=True)
            tool.write_text("#!/bin/sh\n")
            tool.chmod(0o755)
        return "GNU 12.2.0"

    monkeypatch.setattr(compiling, "compile_all", compile_)
    return noted


def cached(home: Path, name: str) -> str | None:
    """A variable of CMake's cache."""
    for line in (home / "build" / "CMakeCache.txt").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition("=")[2]
    return None


def objects_built(events: list[Event]) -> int:
    return sum(isinstance(event, Step) and event.name == "build llama.cpp" for event in events)


# ---- compiling, with the stand-in ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_build_is_made_recorded_and_not_made_again(home: Path) -> None:
    events: list[Event] = []
    made = build.setup(BuildOptions(Backend.CPU), events.append, passes)
    assert made.origin == "built" and made.commit == pin().commit
    assert made.build is not None
    assert made.build.backends == ("cpu", "rpc") and made.build.variant == "native" and not made.build.avoided
    assert made.build.self_test == PASSED
    assert made.build.compiler.split()[0] in ("GNU", "Clang", "AppleClang")
    assert "-DGGML_NATIVE=ON" in made.build.cmake_flags
    assert all(made.tool(name).is_file() for name in TOOLS)
    assert json.loads((home / "build.json").read_text())["schema_version"] == 1
    # ggq's hook is in: the tools flush their log at exit.
    ended = subprocess.run([made.tool("llama-quantize")], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "flushed\n")

    events.clear()
    again = build.setup(BuildOptions(Backend.CPU), events.append, passes)
    assert again == made and events == []


@pytest.mark.slow
def test_a_build_that_others_could_write_is_made_again(home: Path) -> None:
    before = os.umask(0)
    try:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    finally:
        os.umask(before)
    writable = [path for path in (home, *home.rglob("*")) if path.lstat().st_mode & 0o022]
    assert not [path for path in writable if not path.is_symlink()]
    (home / "src" / "main.cpp").chmod(0o666)
    (home / "src" / "main.cpp").write_text("int main() { return 7; }")
    events: list[Event] = []
    made = build.setup(BuildOptions(Backend.CPU), events.append, passes)
    assert any("main.cpp can be written by every user" in it.text for it in events if isinstance(it, Notice))
    assert subprocess.run([made.tool("llama-quantize")], capture_output=True).returncode == 0
    home.chmod(0o777)
    with pytest.raises(ToolchainProblem, match="somebody else can change") as caught:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert caught.value.why == f"{home} can be written by every user."


@pytest.mark.slow
def test_other_options_build_again_and_nothing_of_the_old_ones_stays(home: Path) -> None:
    build.setup(BuildOptions(Backend.CPU, portable=True), silent, dies(signal.SIGILL))
    assert (cached(home, "GGML_NATIVE"), cached(home, "GGML_AVX")) == ("OFF", "OFF")
    made = build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert made.build is not None and made.build.variant == "native"
    assert (cached(home, "GGML_NATIVE"), cached(home, "GGML_AVX")) == ("ON", "ON")


@pytest.mark.slow
def test_a_native_build_for_another_cpu_is_thrown_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.setup(BuildOptions(Backend.CPU), silent, passes)
    (home / "build" / "object-for-the-old-cpu.o").write_text("")
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx512f",))
    events: list[Event] = []
    build.setup(BuildOptions(Backend.CPU), events.append, passes)
    assert objects_built(events) > len(TOOLS)
    assert not (home / "build" / "object-for-the-old-cpu.o").exists()


@pytest.mark.slow
def test_a_checkout_that_was_moved_builds_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.setup(BuildOptions(Backend.CPU), silent, passes)
    moved = home.rename(tmp_path / "moved")
    make_home(moved, monkeypatch)
    (moved / "build.json").unlink()
    assert build.setup(BuildOptions(Backend.CPU), silent, passes).bin_dir == moved / "build" / "bin"


@pytest.mark.slow
def test_a_compiler_error_is_shown_kept_and_resumed_after(home: Path) -> None:
    source.fetch(home.mkdir() or home, pin(), silent)
    good = (home / "src" / "common.cpp").read_text()
    (home / "src" / "common.cpp").write_text("#error this compiler is too old\n" + good)
    with pytest.raises(ToolchainProblem, match="could not be built") as caught:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert "#error this compiler is too old" in caught.value.why
    log = home / "build" / "ggq-build.log"
    assert str(log) in caught.value.next_step and "too old" in log.read_text()
    assert not (home / "build.json").exists() and toolchain.built() is None

    (home / "src" / "common.cpp").write_text(good)
    assert build.setup(BuildOptions(Backend.CPU), silent, passes).build is not None


def test_a_configuration_error_is_shown(home: Path) -> None:
    source.fetch(home.mkdir() or home, pin(), silent)
    broken = CMAKELISTS.replace("option(GGML_AVX", 'message(FATAL_ERROR "no such backend")\noption(GGML_AVX')
    (home / "src" / "CMakeLists.txt").write_text(broken)
    with pytest.raises(ToolchainProblem) as caught:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert "CMake Error" in caught.value.why and "no such backend" in caught.value.why


KILLED = """
import sys
from pathlib import Path
import pytest
sys.path.insert(0, {here!r})
import test_build
from ggq.setup import build, variants
with pytest.MonkeyPatch.context() as patch:
    test_build.make_home(Path(sys.argv[1]), patch)
    listener = lambda event: print(event, flush=True)
    build.setup(build.BuildOptions(variants.Backend.CPU, jobs=1), listener, test_build.passes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="this system is not Linux")
def test_kill_9_half_way_stops_ninja_leaves_nothing_finished_and_is_resumed(home: Path) -> None:
    source.fetch(home.mkdir() or home, pin(), silent)
    (home / "src" / "slow.sh").write_text("sleep 8")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(here=str(Path(__file__).parent)), home],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    steps = (re.search(r"done=(\d+), total=(\d+)", line) for line in child.stdout)
    found = next((step for step in steps if step), None)
    assert found is not None, "it did not begin to compile"
    time.sleep(1)
    assert running_in(home / "build")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (home / "build.json").exists() and toolchain.built() is None
    deadline = time.monotonic() + 10
    while "ninja" in running_in(home / "build") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "ninja" not in running_in(home / "build")

    (home / "src" / "slow.sh").write_text("")
    events: list[Event] = []
    made = build.setup(BuildOptions(Backend.CPU), events.append, passes)
    assert made.build is not None and made.tool("llama-server").is_file()
    assert objects_built(events) <= int(found[2]) - int(found[1]), "it began again"


def running_in(folder: Path) -> set[str]:
    """The names of the programs that have ``folder`` among their arguments."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(folder) in arguments:
                found.add(Path(arguments[0]).name)
    return found


def test_two_at_once_are_refused(home: Path) -> None:
    home.mkdir()
    with files.lock(home), pytest.raises(OutputProblem, match="Another ggq is at work"):
        build.setup(BuildOptions(Backend.CPU), silent, passes)


def test_quantizers_that_do_not_run_here_are_done_without(
    flags_of_each_build: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(candidate: Toolchain) -> tuple[str, ...]:
        raise ToolFailed(["python"], -signal.SIGILL, [])

    monkeypatch.setattr(quants, "proven", refused)
    events: list[Event] = []
    made = build.setup(BuildOptions(Backend.CPU), events.append, passes)
    assert len(flags_of_each_build) == 1 and made.build is not None
    assert made.build.variant == "native" and made.quick_types == ()
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert "quicker quantizers are not used" in notice.text and "SIGILL" in notice.text


def test_what_was_proven_is_recorded(
    flags_of_each_build: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quants, "proven", lambda candidate: ("Q4_K",))
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx2",))
    made = build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert made.quick_types == ("Q4_K",) and toolchain.built() == made


# ---- what the system lacks -------------------------------------------------------------------------------


def test_no_compiler_says_how_to_get_one(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolchainProblem, match="no C\\+\\+ compiler") as caught:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert "apt install g++" in caught.value.next_step


def test_a_compiler_may_be_named_with_its_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my-c++").write_text("")
    (tmp_path / "my-c++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "my-c++ -m64")
    compiling.check_programs()


def test_an_old_cmake_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "cmake"
    old.write_text("#!/bin/sh\necho cmake version 3.18.4\n")
    old.chmod(0o755)
    monkeypatch.setattr(compiling, "program", lambda name: str(old))
    with pytest.raises(ToolchainProblem, match="CMake is too old") as caught:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert "3.18.4" in caught.value.why and "install --upgrade cmake" in caught.value.next_step


def test_cmake_and_ninja_come_from_this_environment_even_without_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert Path(compiling.program("cmake")).parent == Path(compiling.program("ninja")).parent
    with pytest.raises(ToolchainProblem, match="no-such-program is missing"):
        compiling.program("no-such-program")


def test_too_little_disk_is_said_before_compiling(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 10_000_000)
    with pytest.raises(DiskFull, match="not enough disk for building") as caught:
        build.setup(BuildOptions(Backend.CPU), silent, passes)
    assert "500 MB" in caught.value.why


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ("ggml.o: No space left on device", DiskFull, "Free some space"),
        ("c++: fatal error: Killed signal terminated program cc1plus", ToolchainProblem, "--jobs 1"),
        ("ninja: fatal: something else", ToolchainProblem, "ggq-build.log"),
    ],
)
def test_a_build_that_ends_badly_says_what_to_do(
    words: str, kind: type[DiskFull | ToolchainProblem], says: str, tmp_path: Path
) -> None:
    error = compiling.explain(["[1/2] c++ …", words], tmp_path / "ggq-build.log")
    assert isinstance(error, kind) and says in error.next_step


def test_a_read_only_home_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(toolchain, "home", lambda: tmp_path / "file" / "llama.cpp")
    with pytest.raises(OutputProblem, match="cannot be written"):
        build.setup(BuildOptions(Backend.CPU), silent, passes)


# ---- the ladder: nothing is compiled here -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL])
def test_amx_that_the_machine_refuses_is_left_out(
    number: signal.Signals, flags_of_each_build: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx2", "amx_tile", "amx_int8"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    events: list[Event] = []
    made = build.setup(BuildOptions(Backend.CPU), events.append, dies(number))
    first, second = flags_of_each_build
    assert "-DGGML_NATIVE=ON" in first and not any("amx" in flag for flag in first)
    assert "-DGGML_NATIVE=ON" in second
    for language in ("C", "CXX"):
        assert f"-DCMAKE_{language}_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" in second
    assert made.build is not None and made.build.variant == "native-without-amx"
    assert f"killed by {number.name}" in made.build.avoided and "AMX" in made.build.avoided
    assert events == [Notice(made.build.avoided, "warning")]
    assert toolchain.built() == made


def test_every_rung_is_tried(
    flags_of_each_build: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("amx_tile",))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    made = build.setup(BuildOptions(Backend.CPU), silent, dies(*[signal.SIGILL] * 3))
    assert made.build is not None and made.build.variant == "baseline"
    assert len(flags_of_each_build) == 4 and "-DGGML_AVX2=OFF" in flags_of_each_build[-1]
    assert made.build.avoided.count("SIGILL") == 3


def test_a_machine_that_refuses_everything_is_said(
    home: Path, flags_of_each_build: list[tuple[str, ...]]
) -> None:
    with pytest.raises(ToolchainProblem, match="does not pass its self-test") as caught:
        build.setup(BuildOptions(Backend.CPU), silent, dies(*[signal.SIGILL] * 9))
    assert "killed by SIGILL" in caught.value.why
    assert not (home / "build.json").exists()


@pytest.mark.parametrize("returncode", [1, -signal.SIGKILL, -signal.SIGABRT])
def test_other_failures_are_no_reason_to_compile_again(
    returncode: int, home: Path, flags_of_each_build: list[tuple[str, ...]]
) -> None:
    def fails(candidate: Toolchain, listener: Listener) -> dict[str, str]:
        raise ToolFailed(["llama-bench"], returncode, ["it went wrong"])

    with pytest.raises(ToolchainProblem, match="does not pass its self-test"):
        build.setup(BuildOptions(Backend.CPU), silent, fails)
    assert len(flags_of_each_build) == 1 and not (home / "build.json").exists()


def test_the_ladder_of_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx2",))
    assert variants.ladder(portable=False) == (NATIVE, PORTABLE, BASELINE)
    assert variants.ladder(portable=True) == (PORTABLE, BASELINE)
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("amx_tile",))
    assert variants.ladder(portable=False) == (NATIVE, WITHOUT_AMX, PORTABLE, BASELINE)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("asimddp",))
    assert variants.ladder(portable=False) == (NATIVE, PORTABLE)


# ---- backends --------------------------------------------------------------------------------------------


def put_programs(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("programs", "backends"),
    [
        (["nvcc", "nvidia-smi"], ("cpu", "rpc", "cuda")),
        (["nvidia-smi"], ("cpu", "rpc")),
        (["glslc"], ("cpu", "rpc")),
        ([], ("cpu", "rpc")),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="this system is macOS, where auto is Metal")
def test_auto_takes_cuda_where_compiler_and_driver_are(
    programs: list[str], backends: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", put_programs(tmp_path / "bin", *programs))
    assert variants.backends(Backend.AUTO) == backends


@pytest.mark.parametrize(
    ("backend", "missing"),
    [(Backend.CUDA, "nvcc"), (Backend.VULKAN, "glslc"), (Backend.METAL, "macOS only")],
)
def test_a_backend_that_cannot_be_built_says_what_is_missing(
    backend: Backend, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", put_programs(tmp_path / "bin"))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ToolchainProblem) as caught:
        variants.backends(backend)
    assert missing in caught.value.why and "ggq setup --backend" in caught.value.next_step


def test_cuda_keeps_the_compiler_flags_of_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_cublas", lambda: (("-I/cublas",), ("-DCUDA_cublas_LIBRARY=/l.so",)))
    flags = variants.flags(("cpu", "rpc", "cuda"), WITHOUT_AMX)
    assert "-DGGML_CUDA=ON" in flags and "-DCUDA_cublas_LIBRARY=/l.so" in flags
    assert "-DCMAKE_CXX_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16 -I/cublas" in flags
    assert "-DCMAKE_CUDA_FLAGS=-I/cublas" in flags
    assert not any(
        flag.startswith("-DCMAKE_C") and "FLAGS" in flag for flag in variants.flags(("cpu",), NATIVE)
    )


# ---- a llama.cpp that is there already --------------------------------------------------------------------


@pytest.fixture
def existing(tmp_path: Path, home: Path) -> Path:
    folder = tmp_path / "theirs"
    put_programs(folder, "llama-quantize")
    (folder / "llama-completion").write_text("#!/bin/sh\necho 'version: 1 (0123abc)' >&2\n")
    (folder / "llama-completion").chmod(0o755)
    return folder


def test_an_existing_build_is_tested_and_gets_what_it_lacks(
    existing: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[tuple[object, ...]] = []
    monkeypatch.setattr(binding, "installed_version", lambda: None)
    monkeypatch.setattr(binding, "install", lambda *arguments: installed.append(arguments))
    adopted = build.adopt(existing, silent, passes)
    assert adopted.origin == "named" and adopted.bin_dir == existing
    assert adopted.converter == home / "src" / "convert_hf_to_gguf.py"
    assert installed == [(home, pin(), existing, silent)]
    assert "0123abc" in adopted.caveats[0]
    assert not (home / "build").exists()


def test_an_existing_build_that_crashes_is_refused(existing: Path, home: Path) -> None:
    with pytest.raises(ToolchainProblem, match="does not pass ggq's self-test") as caught:
        build.adopt(existing, silent, dies(signal.SIGILL))
    assert "SIGILL" in caught.value.why and "GGQ_LLAMA_CPP" in caught.value.next_step
    assert not home.exists()
