"""What llama.cpp says of a model's presets before they are made: sizes and memory, asked once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggq.estimation.hollow_model import HollowModel
from ggq.estimation.memory import MemoryEstimate, estimate, touched
from ggq.estimation.placement import Placement, Room, most_layers
from ggq.estimation.timings import build_and_cpu
from ggq.gguf import file as gguf_file
from ggq.llamacpp.memory import Load
from ggq.presets.catalogue import Preset
from ggq.quantization import imatrix_coverage
from ggq.quantization.recipe import SizeEstimate
from ggq.records.memo import Memo
from ggq.system import hardware

_MUCH_BYTES = 16 << 20


@dataclass(frozen=True)
class ModelFacts:
    """What a model's header says. ``block_count``: the output layer is one more; ``embedded_tokens``: rows of
    the embeddings, and of the logits."""

    parameter_count: int
    context_length: int | None
    block_count: int
    expert_count: int
    sliding_window_tokens: int | None
    embedded_tokens: int
    is_encoder: bool = False


@dataclass(frozen=True)
class PresetSize(SizeEstimate):
    """An exact size, and what is told by the tensors' types. ``main_type``: that most weights of the layers
    get; ``content``: a digest of all tensors' types; ``remark``: on tensors that no imatrix will
    know."""

    main_type: str = ""
    content: str = ""
    remark: str = ""


class Account:
    """Answers about the presets of one model, kept beside its hollow files."""

    def __init__(self, hollow: HollowModel) -> None:
        self._hollow = hollow
        self._memo = Memo(hollow.folder / "account.json", build_and_cpu(hollow.toolchain))

    def facts(self) -> ModelFacts:
        return self._memo.get("header", ModelFacts, self._facts)

    def size(self, preset: Preset) -> PresetSize:
        """Raises as ``quantize.recipe.ask`` does."""
        return self._memo.get(f"{self._hollow.key(preset)} size", PresetSize, lambda: self._size(preset))

    def memory(self, preset: Preset, load: Load) -> MemoryEstimate:
        """With what is free now. Raises as ``plan.memory.estimate`` does."""
        if load.offload.n_gpu_layers:
            # Devices come and go, and what is free on them changes.
            return self._settled(preset, load, self._memory(preset, load))
        question = f"{self._hollow.key(preset)} {load}"
        kept = self._memo.get(question, MemoryEstimate, lambda: self._memory(preset, load))
        now = replace(kept, devices=(), ram_free_bytes=hardware.available_ram_bytes())
        return self._settled(preset, load, now)

    def place(self, preset: Preset, load: Load, room: Room) -> Placement:
        """Raises as ``plan.placement.most_layers`` does."""
        found = most_layers(self._hollow.toolchain, self._hollow.quantized(preset), load, room)
        placed = replace(load, offload=found.offload)
        return replace(found, memory=self._settled(preset, placed, found.memory))

    def save(self) -> None:
        """Raises OutputProblem, DiskFull."""
        self._memo.save()

    def _settled(self, preset: Preset, load: Load, memory: MemoryEstimate) -> MemoryEstimate:
        """What is the same for all presets, as it was first seen: the process itself, with or without
        devices; and the room for computing that is touched, where that for logits is a good part of it."""
        kind = "devices" if memory.devices else "CPU"
        process_bytes = self._memo.get(f"process with {kind}", int, lambda: memory.process_bytes)
        memory = replace(memory, process_bytes=process_bytes)
        tokens = self.facts().embedded_tokens
        logits_bytes = 4 * tokens * min(load.n_ubatch, load.context_tokens)
        if not _MUCH_BYTES < logits_bytes < memory.compute_bytes:
            return memory

        def compute_bytes() -> int:
            file = self._hollow.quantized(preset, narrow=True)
            return estimate(self._hollow.toolchain, file, load).compute_bytes

        narrow_bytes = self._memo.get(f"computing without logits, {load}", int, compute_bytes)
        return touched(memory, narrow_bytes, tokens)

    def _facts(self) -> ModelFacts:
        base = gguf_file.read_all(self._hollow.base)
        window = base.integer(f"{base.architecture}.attention.sliding_window")
        return ModelFacts(
            parameter_count=base.parameter_count,
            context_length=base.context_length,
            block_count=base.block_count or 0,
            expert_count=base.expert_count or 0,
            sliding_window_tokens=window or None,
            embedded_tokens=base.embedded_tokens,
            is_encoder=base.is_encoder,
        )

    def _size(self, preset: Preset) -> PresetSize:
        recipe = self._hollow.recipe(preset)
        return PresetSize(
            **vars(recipe.size),
            main_type=recipe.main_type,
            content=recipe.content,
            remark=imatrix_coverage.words(recipe.uncovered, preset.name),
        )

    def _memory(self, preset: Preset, load: Load) -> MemoryEstimate:
        return estimate(self._hollow.toolchain, self._hollow.quantized(preset), load)
