"""llama.cpp's own account of memory, as it was captured."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggq.errors import ToolchainProblem
from ggq.llamacpp import memory

CAPTURED = Path(__file__).with_name("captured")
MIB = 1 << 20


def lines(name: str) -> list[str]:
    return (CAPTURED / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]


def changed(name: str, old: str, new: str) -> list[str]:
    text = "\n".join(lines(name))
    assert old in text
    return text.replace(old, new).splitlines()


def test_the_breakdown_of_the_cpu() -> None:
    found = memory.parse_breakdown(lines("memory_breakdown"))
    assert found.rows == (
        memory.BreakdownRow("host", "Host", 13 * MIB, 132 * MIB, 28 * MIB),
        memory.BreakdownRow("buffer_type", "CPU_REPACK", 47 * MIB, 0, 0),
    )
    assert found.devices == ()
    assert found.host_bytes == found.anonymous_bytes("none") == (13 + 132 + 28 + 47) * MIB
    # Repacked weights are copies: only the plain ones stay in their file.
    assert found.anonymous_bytes("mmap") == (132 + 28 + 47) * MIB


def test_a_breakdown_that_another_thread_wrote_into() -> None:
    log, content, text = lines("memory_breakdown")
    name, numbers = text.split(" ", 1)
    mixed = [log, f"{name} {content}", numbers]
    assert memory.parse_breakdown(mixed) == memory.parse_breakdown([log, content, text])


def test_the_breakdown_with_a_device() -> None:
    found = memory.parse_breakdown(lines("memory_breakdown_rpc"))
    assert found.devices == (
        memory.BreakdownRow("device", "RPC0", 17 * MIB, 36 * MIB, 25 * MIB, 24103 * MIB, 24103 * MIB),
    )
    assert found.host_bytes == (7 + 96 + 28 + 35) * MIB


@pytest.mark.parametrize(
    "text",
    [
        [],
        lines("memory_breakdown")[:1],
        lines("memory_breakdown") * 2,
        lines("memory_refused"),
        changed("memory_breakdown", '"unit":"MiB"', '"unit":"KiB"'),
        changed("memory_breakdown", '"kind":"host"', '"kind":"somewhere"'),
        changed("memory_breakdown", '"kind":"host"', '"kind":"buffer_type"'),
        changed("memory_breakdown", '"context":132', '"context":13'),
        changed("memory_breakdown", '"context":132,', ""),
        changed("memory_breakdown", '"context":132', '"context":"much"'),
        changed("memory_breakdown", '"rows":[', '"rows":[1,'),
        changed("memory_breakdown", '"unit":"MiB",', '"unit":"MiB"'),
    ],
)
def test_another_breakdown_is_refused(text: list[str]) -> None:
    with pytest.raises(ToolchainProblem, match="something that ggq does not know"):
        memory.parse_breakdown(text)


def test_the_reason_of_a_refusal() -> None:
    assert memory.refusal(lines("memory_refused")) == "quantized V cache requires flash_attn to be enabled."
    assert memory.refusal(lines("memory_breakdown")) is None


def test_the_buffers_of_a_run() -> None:
    found = memory.parse_buffers(lines("memory_buffers"), [])
    assert [(buffer.name, buffer.use, buffer.place, buffer.size_bytes / MIB) for buffer in found] == [
        ("CPU_Mapped", "model", "file", pytest.approx(60.19)),
        ("CPU_REPACK", "model", "own", pytest.approx(47.78)),
        ("CPU", "output", "own", pytest.approx(0.01, abs=1e-6)),
        ("CPU", "KV", "own", pytest.approx(8.25)),
        ("CPU", "compute", "own", pytest.approx(3.03)),
    ]


def test_the_buffers_of_a_run_with_a_device() -> None:
    found = memory.parse_buffers(lines("memory_buffers_rpc"), ["RPC0"])
    on_device = {buffer.use: buffer.size_bytes / MIB for buffer in found if buffer.place == "device"}
    assert on_device == {
        "model": pytest.approx(17.89),
        "KV": pytest.approx(2.25),
        "compute": pytest.approx(2.85),
    }
    own = sum(buffer.size_bytes for buffer in found if buffer.place == "own") / MIB
    assert own == pytest.approx(7.81 + 35.75 + 0.01 + 6.00 + 3.03, abs=1e-5)


def test_buffers_of_one_name_add_up_but_those_for_computing_are_replaced() -> None:
    text = lines("memory_buffers")
    more = [line for line in text if " KV buffer size" in line or "CPU compute buffer size =" in line]
    found = {buffer.use: buffer.size_bytes / MIB for buffer in memory.parse_buffers(text + more, [])}
    assert found["KV"] == pytest.approx(2 * 8.25)
    assert found["compute"] == pytest.approx(3.03)


@pytest.mark.parametrize(
    "text",
    [
        [],
        [line for line in lines("memory_buffers") if "model buffer size" not in line],
        [line for line in lines("memory_buffers") if "compute buffer size =" not in line],
        changed("memory_buffers", "CPU KV buffer size", "CPU XY buffer size"),
        changed("memory_buffers", "8.25 MiB\n", "8.25 GiB\n"),
    ],
)
def test_a_log_of_other_buffers_is_refused(text: list[str]) -> None:
    with pytest.raises(ToolchainProblem, match="something that ggq does not know"):
        memory.parse_buffers(text, [])
