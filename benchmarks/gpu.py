"""What only a GPU can tell: speed by layers on it, and memory and speed against what is predicted of them.

On a machine with an NVIDIA GPU and a CUDA build (`make gpu-check` makes it) this is its check; elsewhere
llama.cpp's RPC server on loopback stands in as the device, which proves the script and not the GPU: then
there is no VRAM to measure, and the result says so.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import ggq
from benchmarks import headers
from benchmarks.common import EXAMPLE, RESULTS, Bar, finish, random_llama
from ggq.estimation.hollow_model import hollow_model
from ggq.estimation.speed_meter import timed
from ggq.gguf.file import read
from ggq.llamacpp import bench, rpc, toolchain
from ggq.llamacpp.memory import Load
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.measurement import memory, speed
from ggq.measurement.memory import MemoryCell
from ggq.measurement.settings import MemorySettings, Placement, SpeedSettings
from ggq.measurement.speed import SpeedResult
from ggq.measurement.speed_tests import layer_count
from ggq.measurement.throughput import Precision
from ggq.measurement.words import MeasuredLoadMode
from ggq.operations import plan
from ggq.operations.plan_settings import PlanSettings
from ggq.presets import catalogue
from ggq.session import Session

_PRESET, _CONTEXT, _REPETITIONS = "Q4_K_M", 512, 3
_LLAMA_70B = headers.Shape(8192, 28672, 80, 64, 8, 2048)
# Of the memory that llama.cpp predicts for a device, or where that is more.
_GAP_SHARE, _GAP_BYTES = 0.05, 64 << 20


def sweep(model: Path, tools: Toolchain, servers: tuple[str, ...], most_seconds: float) -> SpeedResult:
    settings = SpeedSettings(
        prompt_tokens=(512,), generated_tokens=(64,), n_gpu_layers="sweep", rpc=servers, binding=not servers,
        precision=Precision(most=12, most_seconds=most_seconds),
    )  # fmt: skip
    found = speed.measure(model, settings, session=Session(tools))
    for figure in found.figures:
        rate = figure.speed
        print(
            f"{model.stem:<24} {figure.test:<11} ngl {figure.n_gpu_layers:>3} "
            f"{rate.median_tokens_per_s:>10.1f} t/s ±{100 * (rate.relative_standard_error or 0):.1f} %"
        )
    return found


def memory_cells(
    model: Path, tools: Toolchain, servers: tuple[str, ...], contexts: tuple[int, ...]
) -> list[MemoryCell]:
    """The cells of some numbers of layers; prints predicted beside measured."""
    layers = layer_count(read(model))
    cells: list[MemoryCell] = []
    for count in (layers // 2, layers):
        settings = MemorySettings(
            contexts=contexts,
            types_k=(CacheType.F16, CacheType.Q8_0),
            load_modes=(MeasuredLoadMode.MMAP,),
            placement=Placement(count, servers),
        )
        for cell in memory.measure(model, settings, session=Session(tools)).cells:
            gpus = cell.measured.gpus if cell.measured else None
            used = sum(gpu.own_bytes for gpu in gpus) if gpus else None
            print(
                f"{model.stem:<24} ngl {count:>3} ctx {cell.context_tokens:>6} {cell.type_k:>5} "
                f"device MiB predicted {device_bytes(cell) / 2**20:>8.0f} measured "
                + (f"{used / 2**20:>8.0f}" if used is not None else "       -")
            )
            cells.append(cell)
    return cells


@dataclass(frozen=True)
class SpeedCell:
    """Tokens per second of a prompt or of generation, predicted and measured in the same minute."""

    model: str
    n_gpu_layers: int
    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)


def speed_cells(
    source: Path, model: Path, tools: Toolchain, servers: tuple[str, ...], counts: Sequence[int]
) -> Iterator[SpeedCell]:
    """``source``: the checkpoint of ``model``, of whose headers the speed is predicted."""
    for count in counts:
        settings = PlanSettings(contexts=(_CONTEXT,), n_gpu_layers=count, rpc=servers)
        found = plan.plan(source, [_PRESET], settings, session=Session(toolchain=tools))
        [load] = found.presets[0].loads
        if load.speed is None or found.threads is None:
            print(f"{model.stem:<24} ngl {count:>3} no speed was predicted")
            continue
        size = found.presets[0].size.file_bytes
        taken = timed(tools, model, Load(_CONTEXT, offload=load.offload), found.threads, size, _REPETITIONS)
        for what, rate, seconds in (
            ("prompt", load.speed.prompt, taken.prompt_s),
            ("generation", load.speed.generation, taken.generation_s),
        ):
            cell = SpeedCell(model.stem, count, what, rate.tokens_per_s, 1 / statistics.median(seconds))
            print(
                f"{cell.model:<24} ngl {count:>3} {what:<11} predicted {cell.predicted:>10.1f} "
                f"measured {cell.measured:>10.1f} t/s, off by {cell.error:.1%}"
            )
            yield cell


def device_bytes(cell: MemoryCell) -> int:
    return sum(row.sum_bytes for row in cell.predicted.devices)


def worst_gap(cells: list[MemoryCell]) -> float | None:
    """The largest gap between measured and predicted memory of the device, as a share of what is allowed.

    What a CUDA context and its libraries take comes on top of llama.cpp's buffers, the same in every cell:
    the least gap of all is taken for it.
    """
    gaps = [
        (sum(gpu.own_bytes for gpu in cell.measured.gpus) - device_bytes(cell), device_bytes(cell))
        for cell in cells
        if cell.measured and cell.measured.gpus
    ]
    if not gaps:
        return None
    context_bytes = min(gap for gap, _ in gaps)
    print(f"a CUDA context takes {context_bytes / 2**20:.0f} MiB")
    if context_bytes < 0:
        return float("inf")  # less is in use than was predicted
    return max((gap - context_bytes) / max(_GAP_SHARE * size, _GAP_BYTES) for gap, size in gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30, help="30 make about 500 M parameters")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--no-hollow", action="store_true", help="leave the hollow 8 B and 70 B out")
    parser.add_argument("--most-seconds", type=float, default=30, help="for one figure of speed")
    options = parser.parse_args()
    tools = toolchain.find()
    RESULTS.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        devices = bench.devices(tools)
        servers = () if devices else (stack.enter_context(rpc.loopback_device(tools)),)
        names = [device.name for device in devices or bench.devices(tools, servers)]
        print(
            f"devices: {', '.join(names)}" + (" (no GPU here: RPC on the CPU stands in)" if servers else "")
        )
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=RESULTS)))
        checkpoint = work / "random-500m"
        random_llama(checkpoint, width=1024, ffn=4096, layers=options.layers, heads=16)
        made = ggq.convert_and_quantize(str(checkpoint), [_PRESET], work / "out", verify="off")
        model = made.files[0].paths[0]
        found = [sweep(model, tools, servers, options.most_seconds)]
        cells = memory_cells(model, tools, servers, tuple(options.contexts))
        layers = layer_count(read(model))
        speeds = list(speed_cells(checkpoint, model, tools, servers, (layers // 2, layers)))
        shapes = {"hollow-8b": replace(headers.LLAMA_8B, vocabulary=2048), "hollow-70b": _LLAMA_70B}
        for name, shape in {} if options.no_hollow else shapes.items():
            source = headers.write(work / name, shape, EXAMPLE)
            [preset] = catalogue.load().resolve([_PRESET])
            large = work / f"{name}.gguf"
            large.symlink_to(hollow_model(source, Session(tools)).quantized(preset))
            if servers:
                print(f"{large.stem}: made, and not run on a CPU that only stands in")
                continue
            layers = layer_count(read(large))
            is_huge = shape is _LLAMA_70B  # half of it on the CPU would take all of the time
            if not is_huge:
                found.append(sweep(large, tools, servers, options.most_seconds))
            cells += memory_cells(large, tools, servers, tuple(options.contexts))
            counts = (layers,) if is_huge else (layers // 2, layers)
            speeds += speed_cells(source, large, tools, servers, counts)
    gap = worst_gap(cells)
    bars = [Bar("vram-gap-share-of-allowed", gap, 1.0)] if gap is not None else []
    errors = [cell.error for cell in speeds]
    if errors and not servers:  # a stand-in shares its cores with all the rest
        bars += [
            Bar("speed-median-error", statistics.median(errors), 0.10),
            Bar("speed-worst-error", max(errors), 0.25),
        ]
    finish(
        "gpu",
        {
            "devices": names,
            "stand_in": bool(servers),
            "speed": [asdict(result) for result in found],
            "memory": [asdict(cell) for cell in cells],
            "foretold_speed": [asdict(cell) for cell in speeds],
        },
        bars,
    )


if __name__ == "__main__":
    main()
