"""What llama.cpp says that a model takes, and a run that fills its context while the system's word is taken.

llama-fit-params predicts the buffers without reading a weight (common_memory_breakdown_print in
common/fit.cpp). The run is llama-bench's: its context is exactly the prompt and the tokens it generates, it
needs no text and no tokenizer, and with ``-v`` llama.cpp logs every buffer as it is made. A tool rather than
the binding in a child of ours: what is measured is what people run, without a Python around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ggq.errors import GgufProblem
from ggq.llamacpp import bench, endings, tool_output
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process
from ggq.system.memory_sampler import GpuPeak, GpuSampler, MemoryPeaks, ProcessSampler

FIT_TOOL = "llama-fit-params"
GENERATED_TOKENS = 8
SHORTEST_CONTEXT = 2 * GENERATED_TOKENS

_MIB = 1 << 20
# A row's three figures are whole MiB, each rounded down.
ROUNDING_BYTES = 3 * _MIB
_BUFFER = re.compile(r"^\w+: +(?P<name>\S+) +(?P<use>\S.*?) buffer size = +(?P<mib>[\d.]+) MiB$")
_USES = re.compile(r"model|output|KV|RS|compute|DSV4 \S+ state")


@dataclass(frozen=True)
class Load:
    """How a model is loaded. ``context_tokens``; ``type_k``, ``type_v``: of the cache, words of
    bench.CACHE_TYPES; ``flash_attention``: a word of bench.FLASH_ATTENTION; ``n_batch``, ``n_ubatch``: tokens
    that are given, and computed, at once."""

    context_tokens: int
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    offload: Offload = field(default_factory=Offload)
    n_batch: int = 2048
    n_ubatch: int = 512

    def arguments(self) -> list[str]:
        """For llama-fit-params' command line; those of the offload are its own."""
        return [
            "-c", str(self.context_tokens), "-ctk", self.type_k, "-ctv", self.type_v,
            "-fa", self.flash_attention, "-b", str(self.n_batch), "-ub", str(self.n_ubatch),
        ]  # fmt: skip


@dataclass(frozen=True)
class BreakdownRow:
    """The buffers in one place, each predicted in whole MiB, rounded down.

    ``kind``: ``device`` (``CUDA0``, ``RPC0``), ``host`` (all plain memory of the CPU) or ``buffer_type`` (of
    the CPU as well, as ``CPU_REPACK``: weights in another order). ``context_bytes``: the cache; the two last
    are a device's own memory, None elsewhere.
    """

    kind: Literal["device", "host", "buffer_type"]
    name: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int
    device_total_bytes: int | None = None
    device_free_bytes: int | None = None

    @property
    def sum_bytes(self) -> int:
        return self.model_bytes + self.context_bytes + self.compute_bytes

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is an RPC server's device, whose memory cannot be seen from here."""
        return self.kind == "device" and self.name.startswith("RPC")


@dataclass(frozen=True)
class Breakdown:
    """What llama.cpp predicts. ``process_bytes``: RAM that the predicting process took, which had
    everything but the buffers: program, vocabulary, graph. None where the system does not tell."""

    rows: tuple[BreakdownRow, ...]
    process_bytes: int | None = None

    @property
    def devices(self) -> tuple[BreakdownRow, ...]:
        return tuple(row for row in self.rows if row.kind == "device")

    @property
    def host(self) -> tuple[BreakdownRow, ...]:
        """All rows of the CPU's memory."""
        return tuple(row for row in self.rows if row.kind != "device")

    @property
    def host_bytes(self) -> int:
        """RAM for everything, the weights included, whether they are mapped or not."""
        return sum(row.sum_bytes for row in self.host) + (self.process_bytes or 0)

    def anonymous_bytes(self, load_mode: str) -> int:
        """The buffers in memory of the process's own: with mmap, plain weights stay pages of their file."""
        mapped = sum(row.model_bytes for row in self.host if row.kind == "host")
        return sum(row.sum_bytes for row in self.host) - (mapped if load_mode == "mmap" else 0)


@dataclass(frozen=True)
class Buffer:
    """A buffer as llama.cpp made it. ``use``: model, output, KV, RS (the state of a recurrent layer) or
    compute; ``place``: ``own`` memory of the process, pages of the mapped ``file``, host memory ``pinned`` by
    a GPU's driver, or a ``device``."""

    name: str
    use: str
    place: Literal["own", "file", "pinned", "device"]
    size_bytes: int


@dataclass(frozen=True)
class FilledContext:
    """A run whose prompt and generated tokens filled the context. ``gpus``: None where no NVIDIA GPU was
    used, or the driver does not tell."""

    buffers: tuple[Buffer, ...]
    peaks: MemoryPeaks
    gpus: tuple[GpuPeak, ...] | None
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    @property
    def vram_bytes(self) -> int | None:
        """Of all GPUs; None where nothing is known of any."""
        return sum(gpu.own_bytes for gpu in self.gpus) if self.gpus else None

    def buffers_bytes(self, place: str) -> int:
        return sum(buffer.size_bytes for buffer in self.buffers if buffer.place == place)


def breakdown(toolchain: Toolchain, model: Path, load: Load) -> Breakdown:
    """What ``model`` would take, predicted without reading its weights: it may have none.

    The tool predicts a load without mmap, whatever it is told. Raises GgufProblem with llama.cpp's words
    when it refuses, ToolchainProblem when an RPC server cannot be reached or the output is not known.
    """
    if load.offload.n_gpu_layers and load.offload.rpc:
        bench.devices(toolchain, load.offload.rpc)
    command: list[str | Path] = [
        toolchain.tool(FIT_TOOL), "-m", model, *load.arguments(), *load.offload.arguments(), "--log-jsonl",
    ]  # fmt: skip
    with ProcessSampler() as memory:
        done = process.run(
            [*command, "-fitp", "on"],
            env=bench.ENVIRONMENT,
            watch=process.Watch(on_stdout=memory.look, on_start=memory.watch),
            check=False,
        )
    if done.returncode:
        # It aborts, and its reason is lost in the logger's thread; without -fitp it ends in order.
        reason = refusal(process.run(command, env=bench.ENVIRONMENT, check=False).stdout)
        if reason is None:
            raise endings.failed(done)
        if _NOT_LOADED in reason:
            what = "llama.cpp does not load this model."
            raise GgufProblem(what, reason, "Get it again from its source, or make the file again.")
        raise GgufProblem(
            f"llama.cpp does not take {model.name} with these settings.",
            reason,
            "Change the setting that it names, or make the file again.",
        )
    # The kernel's own high-water mark misses nothing between two samples.
    process_bytes = max(memory.peaks.resident_bytes, done.peak_rss_bytes or 0)
    return replace(parse_breakdown(done.stdout), process_bytes=process_bytes or None)


def parse_breakdown(lines: Iterable[str]) -> Breakdown:
    """Parse ``llama-fit-params -fitp on --log-jsonl``. Raises ToolchainProblem when the rows are not there,
    or not known."""
    found = [line["data"] for line in _json_lines(lines) if line.get("type") == "fit_memory_breakdown"]
    if len(found) != 1:
        raise tool_output.unknown(FIT_TOOL, f"{len(found)} memory breakdowns where one should be")
    try:
        if found[0]["unit"] != "MiB":
            raise ValueError(f"its unit is {found[0]['unit']}")
        rows = tuple(_row(raw) for raw in found[0]["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise tool_output.unknown(
            FIT_TOOL, f"a memory breakdown with something new in it ({error})"
        ) from error
    if sum(row.kind == "host" for row in rows) != 1:
        raise tool_output.unknown(FIT_TOOL, "a memory breakdown without the host's row")
    return Breakdown(rows)


# What llama.cpp logs when a file's own content keeps it from loading: tensors that are missing or misshapen.
_NOT_LOADED = "check_tensor_dims"


def refusal(lines: Iterable[str]) -> str | None:
    """llama.cpp's reason among the words of a failed ``llama-fit-params --log-jsonl``: its first error."""
    errors = [str(line["msg"]).strip() for line in _json_lines(lines) if line.get("level") == "error"]
    return f"{errors[0].split(': ', 1)[-1].rstrip('.')}." if errors else None


def fill_context(
    toolchain: Toolchain, model: Path, load: Load, load_mode: str, predicted: Breakdown, threads: int
) -> FilledContext:
    """Load ``model``, evaluate a prompt that leaves room for GENERATED_TOKENS, and generate those.

    ``load_mode``: a word of bench.LOAD_MODES. Raises ToolFailed (``out_of_memory``: by the kernel's killer),
    ToolchainProblem when llama-bench's words are not known.
    """
    prompt_tokens = load.context_tokens - GENERATED_TOKENS
    options = bench.BenchOptions(
        threads=(threads,),
        offload=load.offload,
        type_k=load.type_k,
        type_v=load.type_v,
        flash_attention=load.flash_attention,
        load_mode=load_mode,
        n_batch=load.n_batch,
        n_ubatch=load.n_ubatch,
        repetitions=1,
        warm_up=False,
    )
    # Not a test at a depth (-d): llama-bench keeps a copy of the cache for that.
    command: list[str | Path] = [
        toolchain.tool(bench.TOOL), "-m", model, *options.arguments(),
        "-pg", f"{prompt_tokens},{GENERATED_TOKENS}", "-v",
    ]  # fmt: skip
    on_nvidia = any(row.name.startswith("CUDA") for row in predicted.devices)
    with ProcessSampler() as memory, GpuSampler() if on_nvidia else nullcontext() as gpus:

        def started(pid: int) -> None:
            memory.watch(pid)
            if gpus:
                gpus.watch(pid)

        done = process.run(
            command,
            env=bench.ENVIRONMENT,
            watch=process.Watch(on_stdout=memory.look, on_start=started),
            check=False,
        )
    if done.returncode:
        # Its reason ends a long log.
        raise endings.failed(replace(done, stdout=(), stderr=done.stderr[-3:]))
    tests = [(test.prompt_tokens, test.generated_tokens) for test in bench.results(done.stdout)]
    if tests != [(prompt_tokens, GENERATED_TOKENS)]:
        raise tool_output.unknown(bench.TOOL, f"{tests} where a test of {prompt_tokens} tokens was asked for")
    peaks = memory.peaks
    return FilledContext(
        buffers=parse_buffers(done.stderr, [row.name for row in predicted.devices]),
        # The kernel's own high-water mark misses nothing between two samples.
        peaks=replace(peaks, resident_bytes=max(peaks.resident_bytes, done.peak_rss_bytes or 0)),
        gpus=(gpus.peaks or None) if gpus else None,
        prompt_tokens=prompt_tokens,
        generated_tokens=GENERATED_TOKENS,
        seconds=done.seconds,
    )


def parse_buffers(lines: Iterable[str], devices: Sequence[str]) -> tuple[Buffer, ...]:
    """Parse llama.cpp's log of a load and a context, as ``llama-bench -v`` passes it on.

    ``devices``: the names of the breakdown's devices. Raises ToolchainProblem when weights, or buffers for
    computing, are missing from it, or a buffer is of an unknown use.
    """
    found: dict[tuple[str, str], float] = {}
    for line in lines:
        if " buffer size = " not in line:
            continue
        match = _BUFFER.match(line)
        if match is None or not _USES.fullmatch(match["use"]):
            raise tool_output.unknown(bench.TOOL, f"{line.strip()!r} is not a buffer that it knows")
        key = match["name"], match["use"]
        # Room for computing may be reserved again; of everything else there can be several.
        before = 0.0 if match["use"] == "compute" else found.get(key, 0.0)
        found[key] = before + float(match["mib"])
    if not {"model", "compute"} <= {use for _, use in found}:
        raise tool_output.unknown(bench.TOOL, f"{len(found)} buffers in its log, not all that a run needs")
    return tuple(
        Buffer(name, use, _place(name, devices), round(mib * _MIB)) for (name, use), mib in found.items()
    )


def _place(name: str, devices: Sequence[str]) -> Literal["own", "file", "pinned", "device"]:
    if any(name == device or name.startswith(f"{device}[") for device in devices):
        return "device"  # RPC0's buffers are called RPC0[host:port]
    return "file" if name.endswith("_Mapped") else "pinned" if name.endswith("_Host") else "own"


def _json_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The JSON objects among ``lines``; the tools print plain text between them, from another thread: the
    first words of such a text may stand before an object."""
    found = []
    for line in lines:
        _, brace, content = line.partition('{"')
        if brace:
            try:
                found.append(json.loads(brace + content))
            except ValueError as error:
                raise tool_output.unknown(FIT_TOOL, f"a line that is not JSON: {line[:120]!r}") from error
    return found


def _row(raw: dict[str, Any]) -> BreakdownRow:
    if raw["kind"] not in ("device", "host", "buffer_type"):
        raise ValueError(f"a row of kind {raw['kind']!r}")
    sizes = {key: int(raw[key]) << 20 for key in ("self", "model", "context", "compute")}
    parts = sizes["model"] + sizes["context"] + sizes["compute"]
    # Each number is rounded down, so the sum's is at most two MiB above that of its parts.
    if not 0 <= sizes["self"] - parts <= 2 * _MIB:
        raise ValueError(f"{raw['name']} is said to be {raw['self']} MiB, and its parts are not")
    is_device = raw["kind"] == "device"
    return BreakdownRow(
        kind=raw["kind"],
        name=str(raw["name"]),
        model_bytes=sizes["model"],
        context_bytes=sizes["context"],
        compute_bytes=sizes["compute"],
        device_total_bytes=int(raw["total"]) << 20 if is_device else None,
        device_free_bytes=int(raw["free"]) << 20 if is_device else None,
    )
