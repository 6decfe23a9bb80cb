"""llama-bench: tokens per second of a prompt and of generation, and the devices that it would use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq.errors import DoesNotFit, GgqError, GgufProblem, ToolchainProblem, UsageProblem, signal_name
from ggq.gguf import file as gguf_file
from ggq.llamacpp import endings, tool_output
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import hardware, process
from ggq.system.files import human_bytes
from ggq.system.hardware import Device, DeviceKind

TOOL = "llama-bench"

_MIB = 1 << 20
_LISTING_TIMEOUT_S = 30  # a first look at CUDA takes seconds; a busy RPC server answers nobody else
# When ggml gives up it would call a debugger for a trace of its stack, which takes seconds.
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}


@dataclass(frozen=True)
class BenchOptions:
    """What is to be measured: every length of ``prompt_tokens`` and of ``generated_tokens``, after each of
    ``depths`` tokens in the context, with each number of ``threads``.

    ``flash_attention``, ``load_mode``: words of FlashAttention and LoadMode; ``type_k``, ``type_v``: of
    the cache, words of CacheType; ``n_batch``, ``n_ubatch``: tokens that are given, and computed, at once.
    """

    prompt_tokens: tuple[int, ...] = ()
    generated_tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = (0,)
    threads: tuple[int, ...] = (1,)
    offload: Offload = field(default_factory=Offload)
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    load_mode: str = "auto"
    n_batch: int = 2048
    n_ubatch: int = 512
    repetitions: int = 5
    warm_up: bool = True

    def arguments(self) -> list[str]:
        """The command line, but for the tool and the model."""
        return [
            "-p", _listed(self.prompt_tokens or (0,)), "-n", _listed(self.generated_tokens or (0,)),
            "-d", _listed(self.depths), "-t", _listed(self.threads), *self.offload.arguments(separator="/"),
            "-ctk", self.type_k, "-ctv", self.type_v, "-fa", self.flash_attention, "-lm", self.load_mode,
            "-b", str(self.n_batch), "-ub", str(self.n_ubatch), "-r", str(self.repetitions),
            *([] if self.warm_up else ["--no-warmup"]), "-o", "jsonl",
        ]  # fmt: skip

    @property
    def test_count(self) -> int:
        lengths = len(self.prompt_tokens) + len(self.generated_tokens)
        return lengths * len(self.depths) * len(self.threads)

    @property
    def longest_context(self) -> int:
        """Tokens in the context at the end of the longest test."""
        return max(self.depths) + max((*self.prompt_tokens, *self.generated_tokens))


@dataclass(frozen=True)
class BenchResult:
    """One test, as a line of llama-bench's JSON tells it.

    ``prompt_tokens`` or ``generated_tokens`` is 0; ``flash_attention``: a word of FlashAttention;
    ``gpu_names``: all GPUs that the tool saw, used or not. The samples are one per repetition.
    """

    build_commit: str
    cpu_name: str
    gpu_names: str
    backends: str
    model_type: str
    model_bytes: int
    parameter_count: int
    threads: int
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    n_gpu_layers: int
    n_cpu_moe: int
    tensor_split: str
    flash_attention: str
    load_mode: str
    prompt_tokens: int
    generated_tokens: int
    depth_tokens: int
    samples_ns: tuple[int, ...]
    samples_tokens_per_s: tuple[float, ...]


def devices(toolchain: Toolchain, rpc: tuple[str, ...] = ()) -> tuple[Device, ...]:
    """The devices that llama.cpp could put layers on, those of the ``rpc`` servers (``host:port``) too: a
    server's address is its description.

    Raises UsageProblem for an address that is none, ToolchainProblem when a server cannot be reached, and
    ToolFailed when a driver takes the tool with it.
    """
    if not rpc and not toolchain.may_see_gpus:
        return ()
    servers = ["--rpc", ",".join(rpc)] if rpc else []
    done = process.run(
        [toolchain.tool(TOOL), *servers, "--list-devices"],
        env=ENVIRONMENT,
        timeout_s=_LISTING_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        if rpc and done.seconds >= _LISTING_TIMEOUT_S:
            raise _unreachable(",".join(rpc), f"It gave no answer within {_LISTING_TIMEOUT_S} s.")
        raise _known_failure(done) or endings.failed(done, of_file=False)
    return listed_devices(done.stdout)


def listed_devices(lines: Iterable[str]) -> tuple[Device, ...]:
    """Parse ``llama-bench --list-devices``. Raises ToolchainProblem for a line that is not known.

    What has no memory of its own (a BLAS library) holds no layers and is left out. Whether a GPU is an
    integrated one is not said here, but by ``devices.gpus``.
    """
    heading, *rest = [line for line in lines if line.strip()] or [""]
    if heading != "Available devices:" or not rest:
        raise tool_output.unknown(f"{TOOL} --list-devices", "there is no list of devices")
    found = []
    for line in rest if rest != ["  (none)"] else []:
        match = re.fullmatch(r"  (\S+): (.*) \((\d+) MiB, (\d+) MiB free\)", line)
        if match is None:
            raise tool_output.unknown(f"{TOOL} --list-devices", f"{line.strip()!r} is not a device")
        name, description, total, free = match.groups()
        kind = DeviceKind.RPC if name.startswith("RPC") else DeviceKind.GPU
        found.append(Device(name, description, kind, int(total) * _MIB, int(free) * _MIB))
    return tuple(device for device in found if device.memory_total_bytes)


def run(toolchain: Toolchain, model: Path, options: BenchOptions) -> tuple[BenchResult, ...]:
    """Measure ``model``, in the order of the tool. The first shard stands for a model of several.

    Raises UsageProblem for what llama-bench does not take, DoesNotFit for want of memory, ToolchainProblem
    for an RPC server that is out of reach or lost half-way and for output that is not known, GgufProblem for
    a model that llama.cpp refuses, ToolFailed for any other end (``returncode`` < 0: a signal).
    """
    command = [str(toolchain.tool(TOOL)), "-m", str(model.absolute()), *options.arguments()]
    if "," in str(model.absolute()):
        raise UsageProblem(
            f"{model} has a comma in its name.", f"{TOOL} reads a comma as the end of a name.", "Rename it."
        )
    done = process.run(command, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise _known_failure(done) or _refusal(command, model, options, done)
    found = results(done.stdout)
    if len(found) != options.test_count or any(len(it.samples_ns) != options.repetitions for it in found):
        raise tool_output.unknown(
            TOOL,
            f"{options.test_count} tests of {options.repetitions} runs were asked for; {len(found)} came",
        )
    return found


def results(lines: Iterable[str]) -> tuple[BenchResult, ...]:
    """Parse ``llama-bench -o jsonl``. Raises ToolchainProblem for a line that is not known."""
    return tuple(_result(line) for line in lines if line.strip())


def _result(line: str) -> BenchResult:
    try:
        raw = json.loads(line)
        result = BenchResult(
            build_commit=_text(raw, "build_commit"),
            cpu_name=_text(raw, "cpu_info"),
            gpu_names=_text(raw, "gpu_info"),
            backends=_text(raw, "backends"),
            model_type=_text(raw, "model_type"),
            model_bytes=_integer(raw, "model_size"),
            parameter_count=_integer(raw, "model_n_params"),
            threads=_integer(raw, "n_threads"),
            n_batch=_integer(raw, "n_batch"),
            n_ubatch=_integer(raw, "n_ubatch"),
            type_k=_text(raw, "type_k"),
            type_v=_text(raw, "type_v"),
            n_gpu_layers=_integer(raw, "n_gpu_layers"),
            n_cpu_moe=_integer(raw, "n_cpu_moe"),
            tensor_split=_text(raw, "tensor_split"),
            # enum llama_flash_attn_type
            flash_attention={-1: "auto", 0: "off", 1: "on"}[_integer(raw, "flash_attn")],
            load_mode=_text(raw, "load_mode"),
            prompt_tokens=_integer(raw, "n_prompt"),
            generated_tokens=_integer(raw, "n_gen"),
            depth_tokens=_integer(raw, "n_depth"),
            samples_ns=tuple(int(value) for value in raw["samples_ns"]),
            samples_tokens_per_s=tuple(float(value) for value in raw["samples_ts"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise tool_output.unknown(TOOL, f"{line[:120]!r} is not a test's result ({error})") from error
    tokens = result.prompt_tokens + result.generated_tokens
    pairs = list(zip(result.samples_ns, result.samples_tokens_per_s, strict=False))
    # Tokens per second are printed with six digits.
    agree = all(ns > 0 and math.isclose(1e9 * tokens / ns, rate, rel_tol=1e-4) for ns, rate in pairs)
    same_count = len(result.samples_ns) == len(result.samples_tokens_per_s) == len(pairs)
    if not (pairs and same_count and agree):
        raise tool_output.unknown(TOOL, "its times and its tokens per second do not agree")
    return result


def _text(raw: Mapping[str, Any], key: str) -> str:
    if not isinstance(raw[key], str):
        raise TypeError(f"{key} is not a text")
    return str(raw[key])


def _integer(raw: Mapping[str, Any], key: str) -> int:
    if not isinstance(raw[key], int):
        raise TypeError(f"{key} is not an integer")
    return int(raw[key])


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(str(number) for number in numbers)


# --- failures --------------------------------------------------------------------------------------------


def _known_failure(done: process.Completed) -> GgqError | None:
    """The causes that the tool names itself: its command line, and its RPC servers (ggml-rpc.cpp)."""
    text = "\n".join((*done.stderr, *done.stdout))
    if found := re.search(r"Failed to parse endpoint: (.*)", text):
        return UsageProblem(f"{found[1]} is not the address of an RPC server.", "", "Write it as host:port.")
    if found := re.search(r"Failed to connect to (.*)", text):
        return _unreachable(found[1], "llama.cpp could not connect to it.")
    if found := re.search(r"RPC handshake failed for (.*)", text):
        return _unreachable(found[1], "What answers there is no RPC server of this llama.cpp.")
    # Whichever comes first: reading from the broken connection, or writing to it.
    if "Remote RPC server crashed" in text or ("--rpc" in done.command and _died_by(done, "SIGPIPE")):
        return ToolchainProblem(
            "The RPC server was lost half-way.",
            "It ended, or the connection to it broke, while the model was running there.",
            "Look at its own log and its memory, start it again, then run the same command.",
        )
    if found := re.search(r"invalid parameter for argument: (.*)", text):
        given = dict(zip(done.command, done.command[1:], strict=False)).get(found[1], "")
        return UsageProblem(
            f"{TOOL} does not take {found[1]} {given}.".replace(" .", "."), "", f"See `{TOOL} --help`."
        )
    return None


def _died_by(done: process.Completed, signal: str) -> bool:
    return done.returncode < 0 and signal_name(-done.returncode) == signal


def _unreachable(server: str, why: str) -> ToolchainProblem:
    return ToolchainProblem(
        f"The RPC server {server} cannot be reached.",
        why,
        "Start `ggml-rpc-server -H ADDRESS -p PORT` there, and check the address and firewalls.",
    )


def _refusal(command: list[str], model: Path, options: BenchOptions, done: process.Completed) -> GgqError:
    """Why the tool ended badly, when it did not say: out of memory, or what it says when run verbosely."""
    if done.out_of_memory:
        return _does_not_fit(model, options, "The kernel's out-of-memory killer ended llama-bench (SIGKILL).")
    if done.returncode < 0:
        return endings.failed(done, "Run `ggq doctor`: it tries every quantization type on this machine.")
    # llama-bench keeps llama.cpp's words to itself unless asked for them.
    lines = process.run([*command, "-v"], env=ENVIRONMENT, check=False).stderr
    text = "\n".join(lines)
    if re.search(r"failed to allocate|insufficient memory|unable to allocate|out of memory", text):
        asked = re.search(r"failed to allocate (\S+) buffer of size (\d+)", text)
        return _does_not_fit(
            model,
            options,
            f"{human_bytes(int(asked[2]))} on {asked[1]} were refused." if asked else "Memory was refused.",
        )
    if found := re.search(r"error loading model: (.*)", text):
        return GgufProblem(
            f"llama.cpp does not load {model.name}.", f"{found[1].rstrip('.')}.", "Make it again."
        )
    if found := re.search(r"llama_init_from_model: (.*)", text):
        return UsageProblem(
            f"{model.name} cannot be run so.", f"{found[1].rstrip('.')}.", "Change that option."
        )
    return endings.failed(done)


def _does_not_fit(model: Path, options: BenchOptions, why: str) -> DoesNotFit:
    weights = sum(path.stat().st_size for path in gguf_file.shards(model) if path.exists())
    return DoesNotFit(
        f"{model.name} with a context of {options.longest_context:,} tokens does not fit.",
        f"{why} The model has {human_bytes(weights)}; {human_bytes(hardware.available_ram_bytes())} of RAM"
        " are free.",
        "Take a smaller preset, fewer layers on the GPU, a shorter context, or a cache of q8_0.",
    )
