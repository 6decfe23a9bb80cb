"""The floors of the house (docs/architecture.md): a room imports from its own floor or from below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ggq

HOUSE = Path(ggq.__file__).parent
FLOORS = (
    "errors limits files locks places process memory_sampler progress records hardware cgroup ggml_types"
    " gguf_constants gguf_names reference resources unchanged untrusted scratch python_child launch texts"
    " encodings",
    "hub checkpoint checkpoint_files checkpoint_bounds checkpoint_heads mlx model_card safetensors_header"
    " storage torch_archive gguf_file"
    " gguf_header gguf_kind gguf_size gguf_values gguf_hollow transformers_model presets losses environment"
    " llamacpp",
    "convert quantize bench plan",
    "pipeline request job bases making beforehand pipeline_plan measure contents foresee recommend"
    " automatic plot doctor",
    "cli",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def rooms() -> Iterator[tuple[str, Path]]:
    """Every module but the package's own, with the room that it lies in."""
    for file in sorted(HOUSE.rglob("*.py")):
        first, *_ = file.relative_to(HOUSE).with_suffix("").parts
        if not first.startswith("__"):
            yield first, file


def imported(file: Path) -> Iterator[str]:
    """The rooms that a module imports from, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ggq":
            inner = (node.module or "").split(".")[1:]
            yield from inner[:1] or (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ggq."))


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in rooms()} == set(FLOOR_OF)


def test_nobody_reaches_up() -> None:
    reaching = [
        f"{file.relative_to(HOUSE)} imports {other}"
        for room, file in rooms()
        for other in imported(file)
        if FLOOR_OF.get(other, 0) > FLOOR_OF[room]
    ]
    assert not reaching


def test_nothing_below_the_command_line_prints() -> None:
    printing = [
        str(file.relative_to(HOUSE))
        for room, file in rooms()
        if room != "cli"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing
