"""Proof that a build runs on this machine: a forward pass per quantization type, in child processes.

A build can compile and still crash: some virtual machines advertise instructions that they refuse. So every
type is quantized and evaluated once, with repacked weights and without, on a model made on the spot; and
once more on the GPU, where ggml sees one.
"""

from __future__ import annotations

from pathlib import Path

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp import devices, tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Listener, Step, silent
from ggq.system import scratch

TYPES = (
    "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "IQ4_XS",
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
)  # fmt: skip


def run(toolchain: Toolchain, listener: Listener = silent) -> dict[str, str]:
    """``{type: "ok"}`` for every type.

    Raises ToolFailed (a negative ``returncode`` is a crash by signal), and ToolchainProblem when only the
    GPU fails: no other way to compile the CPU's part would cure that.
    """
    results: dict[str, str] = {}
    has_gpu = _has_gpu(toolchain)
    with scratch.folder("selftest") as folder:
        base = folder / "base.gguf"
        write_tiny_model(base)
        for done, ftype in enumerate(TYPES):
            listener(Step("self-test", done, len(TYPES), "types"))
            model = folder / f"{ftype}.gguf"
            tools.quantize(toolchain, base, model, ftype, threads=1)
            for repack in (True, False):
                tools.forward_pass(toolchain, model, repack=repack)
            if has_gpu:
                try:
                    tools.forward_pass(toolchain, model, repack=True, gpu=True)
                except ToolFailed as failure:
                    raise _gpu_problem(f"On {ftype} weights: {failure.what} {failure.why}") from failure
            model.unlink()
            results[ftype] = "ok"
        listener(Step("self-test", len(TYPES), len(TYPES), "types"))
    return results


def _has_gpu(toolchain: Toolchain) -> bool:
    try:
        return bool(devices.gpus(toolchain))
    except ToolFailed as failure:
        raise _gpu_problem(f"{failure.what} {failure.why}") from failure


def _gpu_problem(why: str) -> ToolchainProblem:
    return ToolchainProblem(
        "llama.cpp does not run on this machine's GPU.",
        why,
        "Look at the GPU's driver (`nvidia-smi`), or build without it: `ggq setup --backend cpu`.",
    )


def write_tiny_model(path: Path) -> None:
    """A one-layer Llama with random weights, F32, no tokenizer: 256 wide, so that every type applies."""
    import gguf
    import numpy as np

    width, heads, vocabulary = 256, 4, 256
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = ("token_embd", "output", *(f"blk.0.{name}" for name in matrices))
    for name in names:
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.05, (width, width)).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
