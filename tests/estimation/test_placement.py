"""How much of a model fits the devices: against the table of every value's need."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.headers import Shape
from ggq.errors import GgufProblem
from ggq.estimation import placement
from ggq.estimation.hollow_model import HollowModel, hollow_model
from ggq.estimation.memory import MemoryEstimate, estimate
from ggq.estimation.placement import Room, most_layers, projector_room
from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf.hollow import HollowTensor
from ggq.llamacpp import fit_params as fit
from ggq.llamacpp import rpc
from ggq.llamacpp.fit_params import Fit
from ggq.llamacpp.memory import ROUNDING_BYTES, Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.presets import catalogue
from ggq.session import Session

pytestmark = pytest.mark.tool

MIB = 1 << 20
PLENTY = 64 << 30
# Layers of some MiB, with their experts on the CPU as well: what llama.cpp tells is rounded to one.
SHAPES = {
    "dense": Shape(1024, 2816, 8, 16, 4),
    "experts": Shape(2048, 512, 6, 32, 8, experts=8),
}
PRESETS = ("Q2_K", "Q4_K_M", "Q8_0")


@pytest.fixture(scope="module")
def devices(toolchain: Toolchain) -> Iterator[tuple[str, ...]]:
    """Addresses of two devices."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(rpc.loopback_device(toolchain)) for _ in range(2))


@pytest.fixture(scope="module")
def models(
    base_gguf: Path, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, HollowModel]:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return {
            name: hollow_model(
                enlarged(base_gguf, folder / f"{name}.gguf", shape), session=Session(toolchain)
            )
            for name, shape in SHAPES.items()
        }


def enlarged(base: Path, target: Path, shape: Shape) -> Path:
    """The base GGUF of another size, of holes."""
    width, narrow = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    block = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (width, narrow)}
    block |= {"attn_v": (width, narrow), "attn_output": (width, width)}
    if shape.experts:
        many = (shape.experts,)
        block |= {"ffn_gate_inp": (width, *many), "ffn_gate_exps": (width, shape.ffn, *many)}
        block |= {"ffn_up_exps": (width, shape.ffn, *many), "ffn_down_exps": (shape.ffn, width, *many)}
    else:
        block |= {
            "ffn_gate": (width, shape.ffn),
            "ffn_up": (width, shape.ffn),
            "ffn_down": (shape.ffn, width),
        }
    table = (width, shape.vocabulary)
    sizes = {"output.weight": table, "token_embd.weight": table, "output_norm.weight": (width,)}
    sizes |= {f"blk.{layer}.{name}.weight": it for layer in range(shape.layers) for name, it in block.items()}
    tensors = [
        HollowTensor(name, it, "F32" if len(it) == 1 or "_inp" in name else "BF16")
        for name, it in sizes.items()
    ]
    changed = {
        "block_count": shape.layers, "context_length": 1 << 24, "embedding_length": width,
        "feed_forward_length": shape.ffn, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
    }  # fmt: skip
    if shape.experts:
        changed |= {"expert_count": shape.experts, "expert_used_count": 2}
    gguf_hollow.write(
        target, gguf_file.read(base), tensors, {f"llama.{key}": value for key, value in changed.items()}
    )
    return target


@pytest.fixture(scope="module")
def remembered(toolchain: Toolchain) -> Callable[[Path, Load], MemoryEstimate]:
    """llama.cpp's accounts, each of them asked for once."""
    return cache(partial(estimate, toolchain))


@pytest.fixture
def asked(remembered: Callable[[Path, Load], MemoryEstimate], monkeypatch: pytest.MonkeyPatch) -> list[Load]:
    """Accounts are remembered in this test; and what was asked for."""
    loads: list[Load] = []

    def listened(_: Toolchain, model: Path, load: Load) -> MemoryEstimate:
        loads.append(load)
        return remembered(model, load)

    monkeypatch.setattr(placement, "estimate", listened)
    return loads


def quantized(models: dict[str, HollowModel], name: str, preset: str = "Q4_K_M") -> Path:
    return models[name].quantized(catalogue.load().resolve([preset])[0])


def load_on(*servers: str, context: int = 512, **numbers: Any) -> Load:
    return Load(context, offload=Offload(rpc=servers, **numbers))


def ladder(shape: Shape) -> list[tuple[int, int]]:
    """All values, the best first: layers on the device, and layers whose experts are not."""
    kept = range(shape.layers + 1) if shape.experts else [0]
    every = [(shape.layers + 1, it) for it in kept]
    return [*every, *((layers, kept[-1]) for layers in range(shape.layers, 0, -1)), (0, 0)]


def needs_bytes(toolchain: Toolchain, model: Path, load: Load, **numbers: Any) -> list[int]:
    """Of each device, as llama.cpp tells it: rounded down."""
    offload = replace(load.offload, **numbers)
    memory = placement.estimate(toolchain, model, replace(load, offload=offload))  # type: ignore[attr-defined]
    return [device.needed_bytes for device in memory.devices]


@pytest.mark.parametrize("context", [512, 4096])
@pytest.mark.parametrize("preset", ["Q2_K", "Q4_K_M", "Q8_0"])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_best_of_all_values_but_one(
    models: dict[str, HollowModel],
    asked: list[Load],
    devices: tuple[str, ...],
    toolchain: Toolchain,
    name: str,
    preset: str,
    context: int,
) -> None:
    model, load = quantized(models, name, preset), load_on(devices[0], context=context)
    values = ladder(SHAPES[name])
    needs = [
        sum(needs_bytes(toolchain, model, load, n_gpu_layers=layers, n_cpu_moe=kept))
        for layers, kept in values
    ]
    chance = random.Random(f"{name} {preset} {context}")
    # Anywhere, and where a value just fits or just does not.
    rooms = [int(chance.uniform(0, 1.1) * max(needs)) for _ in range(3)]
    rooms += [chance.choice(needs[:-1]) + chance.choice([0, MIB, ROUNDING_BYTES]) for _ in range(3)]
    for room in rooms:
        asked.clear()
        found = most_layers(toolchain, model, load, Room(PLENTY, {"RPC0": room}))
        at = values.index((found.offload.n_gpu_layers, found.offload.n_cpu_moe))
        # Never over, with all that rounding may have hidden.
        assert at == len(values) - 1 or needs[at] + ROUNDING_BYTES <= room
        # One less than the best at most, as if it had hidden nothing.
        best = next(i for i, need in enumerate(needs) if need <= room)
        assert at - best <= 1, f"{values[at]} for {room / MIB:.1f} MiB, where {values[best]} fits"
        assert sum(it.needed_bytes for it in found.memory.devices) == needs[at]
        assert found.fits and found.is_whole == (at == 0) and found.layer_count == values[0][0]
        assert len(asked) <= 6


def test_a_real_model(
    base_gguf: Path, asked: list[Load], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    """Its layers are smaller than what rounding may hide."""
    load = load_on(devices[0])
    needs = [sum(needs_bytes(toolchain, base_gguf, load, n_gpu_layers=n)) for n in range(4)]
    for room in range(0, max(needs) + 4 * MIB, MIB):
        found = most_layers(toolchain, base_gguf, load, Room(PLENTY, {"RPC0": room}))
        fitting = [n for n in range(1, 4) if needs[n] + ROUNDING_BYTES <= room]
        assert found.offload.n_gpu_layers == max(fitting, default=0)


def test_few_questions(
    models: dict[str, HollowModel], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    """Nothing is remembered here, and what is free is what it is."""
    questions: list[object] = []
    model, load = quantized(models, "dense"), load_on(devices[0])
    [every] = needs_bytes(toolchain, model, load, n_gpu_layers=-1)

    def forecast_told(*given: Any) -> MemoryEstimate:
        questions.append(given)
        return estimate(*given)

    def proposal_told(*given: Any) -> Fit | None:
        questions.append(given)
        return propose(*given)

    propose = fit.propose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "estimate", forecast_told)
        patch.setattr(fit, "propose", proposal_told)
        # Other tests run beside this one, and what they take makes a proposal worse by a layer or two.
        for share, limit in ((0.3, 7), (0.6, 7), (0.9, 7), (1.1, 1), (0, 1)):
            questions.clear()
            found = most_layers(toolchain, model, load, Room(PLENTY, {"RPC0": int(share * every)}))
            assert found.fits and len(questions) <= limit


def test_a_device_with_200_mb_free(
    models: dict[str, HollowModel], asked: list[Load], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    model, room = quantized(models, "dense", "Q8_0"), Room(PLENTY, {"RPC0": 200_000_000})
    found = [
        most_layers(toolchain, model, load_on(devices[0], context=context), room)
        for context in (512, 65536, 262144)
    ]
    # The cache of a long context takes what layers had.
    assert found[0].is_whole and found[0].offload.n_gpu_layers > found[1].offload.n_gpu_layers > 0
    assert found[1].offload.n_gpu_layers > found[2].offload.n_gpu_layers
    assert [it.memory.context_tokens for it in found] == [512, 65536, 262144]
    assert all(it.taken.vram_bytes.get("RPC0", 0) <= 200_000_000 for it in found)


@pytest.mark.parametrize("room", [{}, {"RPC0": 0}, {"RPC0": 1}, {"CUDA7": 1 << 40}, {"RPC0": -MIB}])
def test_where_nothing_is_free_the_cpu_has_it_all(
    models: dict[str, HollowModel],
    asked: list[Load],
    devices: tuple[str, ...],
    toolchain: Toolchain,
    room: dict[str, int],
) -> None:
    found = most_layers(toolchain, quantized(models, "dense"), load_on(devices[0]), Room(PLENTY, room))
    assert found.offload.n_gpu_layers == 0 and found.memory.devices == ()
    assert found.fits and not found.is_whole


def test_a_machine_without_devices(base_gguf: Path, asked: list[Load], toolchain: Toolchain) -> None:
    found = most_layers(toolchain, base_gguf, Load(512), Room(PLENTY, {"CUDA0": PLENTY}))
    assert found.offload == Offload()


def test_ram_that_is_missing_is_said(
    models: dict[str, HollowModel], asked: list[Load], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    model, load = quantized(models, "dense"), load_on(devices[0])
    on_cpu = most_layers(toolchain, model, load, Room(PLENTY))
    room = on_cpu.memory.ram_bytes - 5 * MIB
    short = most_layers(toolchain, model, load, Room(room))
    assert not short.fits and short.missing_ram_bytes == 5 * MIB
    # With a device it does fit.
    assert most_layers(toolchain, model, load, Room(room, {"RPC0": 60 * MIB})).fits


def test_experts_leave_before_layers_do(
    models: dict[str, HollowModel], asked: list[Load], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    model, load = quantized(models, "experts"), load_on(devices[0])
    every, fewest = (
        sum(needs_bytes(toolchain, model, load, n_gpu_layers=-1, n_cpu_moe=kept)) for kept in (0, 6)
    )

    def placed(room: int, **numbers: int) -> tuple[int, int]:
        load = load_on(devices[0], **numbers)
        found = most_layers(toolchain, model, load, Room(PLENTY, {"RPC0": room})).offload
        return found.n_gpu_layers, found.n_cpu_moe

    assert placed(every + ROUNDING_BYTES) == (7, 0)
    half = placed((every + fewest) // 2)
    assert half[0] == 7 and 0 < half[1] < 6
    assert placed(fewest + ROUNDING_BYTES) == (7, 6)
    layers, kept = placed(fewest - MIB)
    assert 0 < layers < 7 and kept == 6
    # What a person has set stays.
    assert placed(every, n_cpu_moe=5) == (7, 5)
    layers, kept = placed((every + fewest) // 2, n_cpu_moe=1)
    assert 0 < layers < 7 and kept == 1


def test_without_a_proposal_it_is_found_as_well(
    models: dict[str, HollowModel],
    asked: list[Load],
    devices: tuple[str, ...],
    toolchain: Toolchain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proposals: list[Fit | None] = [None, Fit(0, 0), Fit(-1, 0), Fit(2, 0), Fit(999, 999)]
    for name in SHAPES:
        model, load = quantized(models, name), load_on(devices[0])
        [every] = needs_bytes(toolchain, model, load, n_gpu_layers=-1)
        room = Room(PLENTY, {"RPC0": every * 2 // 3})
        expected = most_layers(toolchain, model, load, room)
        for proposal in proposals:
            with monkeypatch.context() as patch:
                patch.setattr(fit, "propose", lambda *_, proposal=proposal: proposal)
                assert most_layers(toolchain, model, load, room).offload == expected.offload


def test_of_more_than_is_free_it_is_not_asked(
    models: dict[str, HollowModel],
    asked: list[Load],
    devices: tuple[str, ...],
    toolchain: Toolchain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(fit, "propose")
    model, load = quantized(models, "dense"), load_on(devices[0], context=16 << 20)
    found = most_layers(toolchain, model, load, Room(1 << 60, {"RPC0": 1 << 40}))
    assert found.memory.devices[0].needed_bytes > (found.memory.devices[0].free_bytes or 0)
    assert found.is_whole
    few = most_layers(toolchain, model, load, Room(1 << 60, {"RPC0": 100 << 30}))
    assert 0 < few.offload.n_gpu_layers < few.layer_count


def test_over_two_devices(
    models: dict[str, HollowModel], asked: list[Load], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    model, load = quantized(models, "dense"), load_on(*devices)
    count = SHAPES["dense"].layers + 1
    needs = {
        (first, second): needs_bytes(
            toolchain, model, load, n_gpu_layers=first + second, tensor_split=(float(first), float(second))
        )
        for first in range(count + 1)
        for second in range(count + 1 - first)
        if first + second
    }
    every = sum(needs[count // 2, count - count // 2])
    for rooms in ((0.2, 0.4), (0.5, 0.1), (0.3, 0.3), (0.6, 0.6), (0.0, 0.5), (0.7, 0.25)):
        room = [int(share * every) for share in rooms]
        found = most_layers(
            toolchain, model, load, Room(PLENTY, dict(zip(("RPC0", "RPC1"), room, strict=True)))
        )
        best = max(
            first + second
            for (first, second), need in needs.items()
            if all(it == 0 or it + ROUNDING_BYTES <= place for it, place in zip(need, room, strict=True))
        )
        assert all(found.taken.vram_bytes.get(f"RPC{i}", 0) <= room[i] for i in range(2))
        assert found.offload.n_gpu_layers >= best - 1
        assert sum(found.offload.tensor_split) == found.offload.n_gpu_layers
    assert most_layers(toolchain, model, load, Room(PLENTY, {"CUDA7": every})).offload.n_gpu_layers == 0
    # A split that a person has set stays.
    kept = load_on(*devices, tensor_split=(1.0, 3.0))
    found = most_layers(toolchain, model, kept, Room(PLENTY, {"RPC0": every, "RPC1": every // 2}))
    assert found.offload.tensor_split == (1.0, 3.0) and 0 < found.offload.n_gpu_layers < count
    assert found.taken.vram_bytes["RPC1"] <= every // 2


def test_experts_over_two_devices(
    models: dict[str, HollowModel], asked: list[Load], devices: tuple[str, ...], toolchain: Toolchain
) -> None:
    model, load = quantized(models, "experts"), load_on(*devices)
    every = sum(needs_bytes(toolchain, model, load, n_gpu_layers=-1))
    found = most_layers(toolchain, model, load, Room(PLENTY, {"RPC0": every // 3, "RPC1": every // 2}))
    assert found.offload.n_gpu_layers == 7 and 0 < found.offload.n_cpu_moe < 6
    taken = found.taken.vram_bytes
    assert taken["RPC0"] <= every // 3 and taken["RPC1"] <= every // 2


def test_a_draft_model_is_counted(
    models: dict[str, HollowModel],
    base_gguf: Path,
    asked: list[Load],
    devices: tuple[str, ...],
    toolchain: Toolchain,
) -> None:
    model, load = quantized(models, "dense", "Q8_0"), load_on(devices[0], context=4096)
    room = Room(PLENTY, {"RPC0": 150 * MIB})
    draft = most_layers(toolchain, base_gguf, load, room)
    assert draft.is_whole and draft.memory.context_tokens == 4096
    beside = most_layers(toolchain, model, load, room.less(draft.taken))
    assert beside.offload.n_gpu_layers < most_layers(toolchain, model, load, room).offload.n_gpu_layers
    assert draft.taken.vram_bytes["RPC0"] + beside.taken.vram_bytes["RPC0"] <= 150 * MIB
    assert room.less(draft.taken).ram_bytes == PLENTY - draft.memory.ram_bytes


def write_projector(target: Path, width: int = 256, ffn: int = 1024, blocks: int = 4) -> int:
    """A SigLIP encoder with Gemma 3's projector, of zeros; returns the bytes of its weights."""
    from gguf import GGUFWriter

    writer = GGUFWriter(target, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "projection_dim": width, "image_size": 224, "patch_size": 14, "embedding_length": width,
        "feed_forward_length": ffn, "block_count": blocks, "attention.head_count": 4,
        "projector.scale_factor": 4,
    }  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    tensors: dict[str, tuple[int, ...]] = {
        "mm.input_projection.weight": (width, width), "mm.soft_emb_norm.weight": (width,),
        "v.patch_embd.weight": (width, 3, 14, 14), "v.patch_embd.bias": (width,),
        "v.position_embd.weight": (256, width), "v.post_ln.weight": (width,), "v.post_ln.bias": (width,),
    }  # fmt: skip
    for block in range(blocks):
        parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width))
        parts |= {"ffn_up": (ffn, width), "ffn_down": (width, ffn)}
        for name, sizes in parts.items():
            tensors[f"v.blk.{block}.{name}.weight"] = sizes
            tensors[f"v.blk.{block}.{name}.bias"] = sizes[:1]
        for name in ("ln1", "ln2"):
            tensors[f"v.blk.{block}.{name}.weight"] = tensors[f"v.blk.{block}.{name}.bias"] = (width,)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sum(4 * math.prod(sizes) for sizes in tensors.values())


def test_a_projector_is_counted(
    models: dict[str, HollowModel], devices: tuple[str, ...], toolchain: Toolchain, tmp_path: Path
) -> None:
    weights = write_projector(tmp_path / "mmproj.gguf")
    room = Room(PLENTY, {"RPC0": 200 * MIB})
    taken = projector_room(toolchain, tmp_path / "mmproj.gguf", room, devices[:1])
    assert weights < taken.vram_bytes["RPC0"] < weights + 100 * MIB
    assert room.less(taken).vram_bytes == {"RPC0": 200 * MIB - taken.vram_bytes["RPC0"]}
    # Where it does not fit a device, it is the CPU's.
    little = projector_room(toolchain, tmp_path / "mmproj.gguf", Room(PLENTY, {"RPC0": MIB}), devices[:1])
    assert little.vram_bytes == {} and little.ram_bytes > weights
    with pytest.raises(GgufProblem, match="as a projector"):
        projector_room(toolchain, quantized(models, "dense"), room)


def test_what_llama_cpp_refuses_is_told(
    base_gguf: Path, devices: tuple[str, ...], toolchain: Toolchain, tmp_path: Path
) -> None:
    load = Load(512, "q8_0", "q8_0", "off", Offload(rpc=devices[:1]))
    with pytest.raises(GgufProblem, match="does not take"):
        most_layers(toolchain, base_gguf, load, Room(PLENTY, {"RPC0": PLENTY}))
    with pytest.raises(GgufProblem):
        most_layers(toolchain, tmp_path / "none.gguf", Load(512), Room(PLENTY))


def test_a_tensor_that_is_missing_is_not_blamed_on_the_settings(
    base_gguf: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(base_gguf.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", 1))
    with pytest.raises(GgufProblem, match=r"does not load this model.*blk\.0\.attn_q"):
        most_layers(toolchain, broken, Load(512), Room(PLENTY))
