"""The binding under the stopwatch: what it is asked for, and what its child process may answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ggq.errors import ToolchainProblem
from ggq.llamacpp import binding_bench
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.binding_bench import Task, Timing
from ggq.llamacpp.offload import Offload

PP, TG = Task("prompt", 100, 0, 2), Task("generation", 10, 0, 1)


def event(task: int = 0, total: int = 100, decode: int = 80, sample: int = 5) -> str:
    return json.dumps(
        {"event": "sample", "task": task, "total_ns": total, "decode_ns": decode, "sample_ns": sample}
    )


def test_events_of_the_child() -> None:
    lines = [event(), event(), event(1, 50, 40, 10), '{"event": "done"}']
    found = binding_bench.read_events(lines, [PP, TG])
    assert found == ((Timing(100, 80, 5),) * 2, (Timing(50, 40, 10),))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [event(), '{"event": "done"}'],
        [event(), event()],
        [event(), event(7), '{"event": "done"}'],
        [event(), event(total=10), '{"event": "done"}'],
        [event(), "Segmentation fault", '{"event": "done"}'],
        [event(), '{"task": 0}', '{"event": "done"}'],
    ],
)
def test_other_events_are_refused(lines: list[str]) -> None:
    with pytest.raises(ToolchainProblem, match="does not know"):
        binding_bench.read_events(lines, [PP])


def test_the_bindings_options() -> None:
    options = BenchOptions(offload=Offload(2, tensor_split=(3, 1)), load_mode="mlock", flash_attention="on")
    assert binding_bench.default_options(options, 2, 4) == {
        "n_threads": 2, "n_threads_batch": 4, "n_gpu_layers": 2, "use_mmap": False, "use_mlock": True,
        "flash_attn": True, "n_batch": 512, "tensor_split": [3, 1],
    }  # fmt: skip
    on_cpu = binding_bench.default_options(BenchOptions(), 1, 1)
    assert on_cpu["op_offload"] is False and on_cpu["use_mmap"] is True and on_cpu["flash_attn"] is False
    assert binding_bench.default_options(BenchOptions(type_v="q8_0"), 1, 1)["flash_attn"] is True
    matching = binding_bench.matching_options(BenchOptions(), on_cpu, 1000)
    assert (matching["flash_attn"], matching["n_batch"]) == (True, 1000)


@pytest.mark.tool
def test_what_the_binding_cannot_do() -> None:
    assert "RPC" in binding_bench.impossible(BenchOptions(offload=Offload(1, rpc=("a:1",))))
    assert "--n-cpu-moe" in binding_bench.impossible(BenchOptions(offload=Offload(1, n_cpu_moe=2)))
    assert "direct I/O" in binding_bench.impossible(BenchOptions(load_mode="dio"))


def test_nothing_outside_this_room_loads_the_binding() -> None:
    package = Path(binding_bench.__file__).parents[1]
    # The conversation of `ggq chat` and `ggq run` is held in this process.
    rooms = ("llamacpp", "serving")
    others = [path for path in package.rglob("*.py") if path.parent.name not in rooms]
    assert others
    users = [path for path in others if re.search(r"import llama_cpp|\bbinding\.load\(", path.read_text())]
    assert not users
