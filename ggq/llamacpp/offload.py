"""Which parts of a model go to which device: the options that llama.cpp's tools share for it."""

from __future__ import annotations

from dataclasses import dataclass

ALL_LAYERS = -1


def parse_layers(word: str) -> int | None:
    """llama.cpp's words for layers on GPUs: a number, ``all`` -> ALL_LAYERS, ``auto`` -> None, as many as
    fit. Raises ValueError."""
    if word.lower() == "auto":
        return None
    if word.lower() in ("all", str(ALL_LAYERS)):
        return ALL_LAYERS
    if not word.isdigit():
        raise ValueError(f"{word!r} is not a number of layers, all, or auto.")
    return int(word)


@dataclass(frozen=True)
class Offload:
    """Placement of a model.

    ``n_gpu_layers``: layers on GPUs, the output layer counted (0: the CPU alone; -1: all); ``n_cpu_moe``: the
    experts of so many layers stay on the CPU; ``tensor_split``: the share of each GPU; ``rpc``: ``host:port``
    of ggml-rpc-servers, whose devices count as GPUs; ``devices``: the only ones to use, by ggml's names
    (none: all).
    """

    n_gpu_layers: int = 0
    n_cpu_moe: int = 0
    tensor_split: tuple[float, ...] = ()
    rpc: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def arguments(self, *, separator: str = ",") -> list[str]:
        """For a tool's command line. ``separator`` of shares and devices: llama-bench's is ``/``."""
        if self.n_gpu_layers == 0:
            # Without "-dev none" a GPU build hands even a batch of the CPU's layers to the GPU.
            return ["-ngl", "0", "-dev", "none"]
        # The tools disagree on the word for all layers; no model has as many as this.
        arguments = ["-ngl", str(999 if self.n_gpu_layers < 0 else self.n_gpu_layers)]
        if self.rpc:
            arguments += ["--rpc", ",".join(self.rpc)]
        if self.devices:
            arguments += ["-dev", separator.join(self.devices)]
        if self.n_cpu_moe:
            arguments += ["-ncmoe", str(self.n_cpu_moe)]
        if self.tensor_split:
            arguments += ["-ts", separator.join(f"{share:g}" for share in self.tensor_split)]
        return arguments
