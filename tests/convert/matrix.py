"""The architectures that are tried: tiny random checkpoints made on the spot, converted, quantized, compared.

The tokenizers are real ones (shared/data/tokenizers). The windows are shorter than the prompt that is
compared (32 tokens), so that a wrong window or a wrong rotary base shows. Run as a program it writes
docs/architectures.md: ``python tests/convert/matrix.py > docs/architectures.md``.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggq import hardware
from ggq.convert import Verification, compare_logits, convert
from ggq.errors import GgqError
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.witness import Witness

QUANTIZED = ("Q8_0", "Q4_K_M")
SMALL: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MHA = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SCALE_1_8 = {"query_pre_attn_scalar": 64, "head_dim": 64}


@dataclass(frozen=True)
class Case:
    """A checkpoint to make. ``refused``: words of the problem that it must end with; ``warned``: words of a
    warning that must be given; ``tested``: by `make test`, not only for the table."""

    name: str
    model: str
    config: str
    tokenizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    shards: bool = False
    as_bin: bool = False
    tokenizer_files: Literal["model", "both", "json"] = "model"
    refused: str = ""
    warned: str = ""
    tested: bool = True


def _case(family: str, tokenizer: str, settings: Mapping[str, Any] = SMALL, **more: Any) -> Case:
    """A case whose classes are named after the family: ``Llama`` -> LlamaForCausalLM, LlamaConfig."""
    name = more.pop("name", family)
    model = more.pop("model", f"{family}ForCausalLM")
    return Case(name, model, more.pop("config", f"{family}Config"), tokenizer, settings, **more)


CASES: Sequence[Case] = (
    _case("Llama", "mistral-v3"),
    _case("Llama", "mistral-v3", name="Llama, 2 shards", dtype="bfloat16", shards=True),
    _case("Llama", "mistral-v3", {**SMALL, "tie_word_embeddings": True}, name="Llama, tied", dtype="float16"),
    _case("Llama", "mistral-v3", name="Llama, .bin", dtype="bfloat16", as_bin=True),
    _case("Llama", "mistral-v3", name="Llama, tokenizer.json only", tokenizer_files="json"),
    _case("Llama", "gpt2", {**SMALL, "rope_parameters": LLAMA3_ROPE}, name="Llama, Llama 3 rope"),
    _case(
        "Mistral", "mistral-v3", {**SMALL, "sliding_window": None}, dtype="bfloat16", tokenizer_files="both"
    ),
    _case(
        "Mistral",
        "mistral-v3",
        {**SMALL, "sliding_window": 16},
        name="Mistral, sliding window",
        refused="does not compute what the checkpoint computes",
    ),
    _case(
        "Mistral",
        "mistral-v3",
        {**SMALL, "sliding_window": 64},
        name="Mistral, longer window",
        warned="looks back 64 tokens at most",
        tested=False,
    ),
    _case(
        "Mixtral", "mistral-v3", {**SMALL, "num_local_experts": 4, "sliding_window": None}, dtype="bfloat16"
    ),
    _case("Qwen2", "gpt2", dtype="bfloat16"),
    _case("Qwen2", "mistral-v3", name="Qwen2, SentencePiece", tokenizer_files="both", tested=False),
    _case("Qwen3", "gpt2", {**SMALL, "head_dim": 64}, dtype="bfloat16", shards=True),
    _case("Qwen3Moe", "gpt2", {**SMALL, **EXPERTS, "head_dim": 64, "norm_topk_prob": True}, dtype="bfloat16"),
    _case(
        "Qwen3Moe",
        "gpt2",
        {**SMALL, **EXPERTS, "head_dim": 64},
        name="Qwen3Moe, norm_topk_prob off",
        refused="norm_topk_prob is false",
    ),
    _case("Qwen2Moe", "gpt2", {**SMALL, **EXPERTS, "shared_expert_intermediate_size": 256}, tested=False),
    _case(
        "Qwen3Next",
        "gpt2",
        {**SMALL, **EXPERTS, "num_hidden_layers": 4, "shared_expert_intermediate_size": 256, "head_dim": 64},
        tested=False,
    ),
    _case("Gemma", "gemma", {**SMALL, "head_dim": 64}, tokenizer_files="json", tested=False),
    _case("Gemma2", "gemma", {**SMALL, **SCALE_1_8, "sliding_window": 16}, dtype="bfloat16"),
    _case(
        "Gemma2",
        "gemma",
        {**SMALL, "head_dim": 64},
        name="Gemma2, another scale",
        refused="query_pre_attn_scalar is 256",
        tested=False,
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, **SCALE_1_8, "num_hidden_layers": 6, "sliding_window": 16},
        config="Gemma3TextConfig",
        dtype="bfloat16",
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, "head_dim": 64, "sliding_window": 16},
        name="Gemma3, another scale",
        config="Gemma3TextConfig",
        refused="query_pre_attn_scalar is 256",
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, **SCALE_1_8, "sliding_window": 16, "sliding_window_pattern": 2},
        name="Gemma3, another pattern",
        config="Gemma3TextConfig",
        refused="not five with a sliding window",
        tested=False,
    ),
    _case("Phi", "gpt2", {**MHA, "intermediate_size": 1024}, tested=False),
    _case(
        "Phi",
        "gpt2",
        MHA,
        name="Phi, another width",
        refused="llama.cpp does not load base.gguf. check_tensor_dims",
    ),
    _case(
        "Phi3",
        "mistral-v3",
        {**SMALL, "pad_token_id": 0, "original_max_position_embeddings": 256},
        tokenizer_files="both",
    ),
    _case(
        "Phi3",
        "mistral-v3",
        {**SMALL, "pad_token_id": 0, "original_max_position_embeddings": 256, "sliding_window": 16},
        name="Phi3, sliding window",
        refused="does not compute what the checkpoint computes",
        tested=False,
    ),
    _case(
        "GPT2",
        "gpt2",
        {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256},
        model="GPT2LMHeadModel",
        dtype="float16",
    ),
    _case("GPTNeoX", "gpt2", MHA),
    _case("GPTBigCode", "gpt2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}, tested=False),
    _case("StableLm", "gpt2", dtype="bfloat16"),
    _case("Olmo2", "gpt2"),
    _case("Olmoe", "gpt2", {**MHA, "num_experts": 4, "num_experts_per_tok": 2}, tested=False),
    _case("Granite", "gpt2", dtype="bfloat16"),
    _case("GraniteMoe", "gpt2", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}, tested=False),
    _case("Starcoder2", "gpt2", {**SMALL, "sliding_window": None}),
    _case("Cohere", "gpt2", dtype="bfloat16"),
    _case("Cohere2", "gpt2", {**SMALL, "num_hidden_layers": 4, "sliding_window": 16}),
    _case("Mamba", "gpt2", {"hidden_size": 256, "num_hidden_layers": 2, "state_size": 16}, dtype="bfloat16"),
    _case(
        "Mamba2",
        "gpt2",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 64,
            "n_groups": 1,
        },
        tested=False,
    ),
    _case(
        "Falcon",
        "gpt2",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        tested=False,
    ),
    _case("Bloom", "gpt2", {"hidden_size": 256, "n_layer": 2, "n_head": 4}, tested=False),
    _case(
        "OPT",
        "gpt2",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 512,
            "word_embed_proj_dim": 256,
        },
        refused="does not know the architecture OPTForCausalLM",
        tested=False,
    ),
    _case("SmolLM3", "mistral-v3", {**SMALL, "pad_token_id": 0}, tested=False),
    _case(
        "GptOss",
        "gpt2",
        {**SMALL, "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
        tested=False,
    ),
    _case(
        "DeepseekV3",
        "gpt2",
        {
            **SMALL,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
        tested=False,
    ),
    _case("Glm4", "gpt2", {**SMALL, "pad_token_id": 0, "head_dim": 64}, refused="It asks for", tested=False),
    _case(
        "Exaone4",
        "gpt2",
        {**SMALL, "num_hidden_layers": 4, "sliding_window": 16},
        refused="64 layers only",
        tested=False,
    ),
    _case("Nemotron", "mistral-v3", tested=False),
    _case("SeedOss", "gpt2", {**SMALL, "head_dim": 64}, tested=False),
    _case("Ernie4_5", "mistral-v3", tested=False),
    _case("Lfm2", "gpt2", {**SMALL, "layer_types": ["conv", "full_attention"]}, tested=False),
)


@dataclass(frozen=True)
class Row:
    """What came of a case. ``quantized``: preset -> mean cosine with transformers' logits."""

    case: Case
    outcome: str
    verification: Verification | None = None
    quantized: Mapping[str, float] = field(default_factory=dict)
    completed: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def make(case: Case, folder: Path, tokenizers: Path) -> Any:
    """Write the checkpoint; returns the model. The same case makes the same weights."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    vocabulary = _write_tokenizer(case, folder, tokenizers)
    ends = {"bos_token_id": 50256, "eos_token_id": 50256} if case.tokenizer == "gpt2" else {}
    settings = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, **ends, **case.settings}
    torch.manual_seed(1)
    model = getattr(transformers, case.model)(getattr(transformers, case.config)(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 0.06)
            elif "norm" in name or name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.05)
    model = model.to(getattr(torch, case.dtype))
    if case.as_bin:
        model.config.save_pretrained(folder)
        model.config.architectures = [case.model]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="20MB" if case.shards else "50GB")
    return model


def _write_tokenizer(case: Case, folder: Path, tokenizers: Path) -> int:
    """A real tokenizer's files; returns how many tokens it has."""
    import transformers

    if case.tokenizer == "gpt2":
        source = tokenizers / "gpt2"
        tokenizer = transformers.GPT2Tokenizer(
            vocab=str(source / "vocab.json"), merges=str(source / "merges.txt")
        )
        tokenizer.save_pretrained(folder)
        return len(tokenizer)
    model = folder / "tokenizer.model"
    shutil.copy(tokenizers / "mistral-v3" / "tokenizer.model", model)
    if case.tokenizer == "gemma":
        _without_prefix(model)
    settings = {
        "tokenizer_class": "GemmaTokenizer" if case.tokenizer == "gemma" else "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if case.tokenizer_files != "model":
        raw = model.read_bytes()
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        model.unlink(missing_ok=True)
        if case.tokenizer_files == "both":
            model.write_bytes(raw)
    return 32768


def _without_prefix(model: Path) -> None:
    """Gemma's way: no space before the first word."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    model.write_bytes(proto.SerializeToString())


# What happens in this process goes one at a time: torch's random numbers and llama.cpp's log are everybody's.
_HERE = threading.Lock()


def run_all(cases: Sequence[Case], tokenizers: Path, toolchain: Toolchain) -> list[Row]:
    """The rows of all cases, two at a time: most of a conversion is one thread importing transformers."""
    with ThreadPoolExecutor(max_workers=2) as workers:
        return list(workers.map(lambda case: run(case, tokenizers, toolchain), cases))


def run(case: Case, tokenizers: Path, toolchain: Toolchain) -> Row:
    """Make, convert and quantize a case, and compare each file with transformers."""
    with tempfile.TemporaryDirectory() as work:
        return _run(case, Path(work), tokenizers, toolchain)


def _run(case: Case, work: Path, tokenizers: Path, toolchain: Toolchain) -> Row:
    folder = work / case.model
    with _HERE:
        model = make(case, folder, tokenizers)
    base = work / "base.gguf"
    remarks: list[str] = []
    try:
        made = convert(
            folder, base, toolchain=toolchain, force=True,
            listener=lambda event: remarks.append(event.text) if hasattr(event, "text") else None,
        )  # fmt: skip
    except GgqError as problem:
        outcome = f"{problem.what} {problem.why}".replace(f"{folder.parent}/", "")
        return Row(case, outcome, remarks=tuple(remarks))
    quantized = {}
    for preset in QUANTIZED:
        tools.quantize(toolchain, base, work / f"{preset}.gguf", preset, threads=1)
    with _HERE:
        expected, tokens = _logits(model)
        for preset in QUANTIZED:
            with Witness(toolchain, work / f"{preset}.gguf", threads=1) as witness:
                quantized[preset] = compare_logits.compare(expected, witness.logits(tokens))["cosine"]
    return Row(case, "", made.verification, quantized, made.completed_keys, tuple(remarks))


def _logits(model: Any) -> tuple[Any, list[int]]:
    """transformers' own logits in float32, on other tokens than ggq's own check has."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    tokens = [(index * 7919 + 11) % vocabulary for index in range(compare_logits.POSITIONS)]
    with torch.inference_mode():
        return model.float()(torch.tensor([tokens])).logits[0].numpy(), tokens


def main() -> None:
    """Write the table to stdout."""
    import torch
    import transformers

    tokenizers = Path(__file__).parents[2].parent / "shared" / "data" / "tokenizers"
    toolchain = toolchains.find()
    machine = hardware.describe()
    rows = run_all(CASES, tokenizers, toolchain)
    say = sys.stdout.write
    say(_HEAD)
    say(
        f"Made on: {machine.cpu}, {machine.usable_cores} cores, {machine.system}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"llama.cpp {toolchain.commit}.\n\n"
    )
    say("| case | tokenizer | weights | result | base | lowest | Q8_0 | Q4_K_M |\n")
    say("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |\n")
    for row in rows:
        say(_line(row))
    say(_FOOT)


_HEAD = """# Architectures that were tried

Written by `python tests/convert/matrix.py > docs/architectures.md`. Each row is a tiny checkpoint with random
weights (2 layers or a few more, 256 wide), made by transformers on the spot with a real tokenizer, converted
by `ggq convert` and quantized by llama-quantize. The figures are cosines between the logits of the GGUF in
llama.cpp and those of transformers in float32 over 32 positions: *base* is the mean and *lowest* the lowest
of the unquantized GGUF, as `ggq convert` reports them; the quantized ones are measured on another prompt.
Random weights have no redundancy, so a trained model loses less to quantization. "mended": what ggq gives to
the converter, which fails or is wrong without it. "refused": with these words, and without an output.

"""


_FOOT = """
(1) What transformers 5 builds of a tokenizer.model makes other ids of some texts (runs of spaces, mostly)
than SentencePiece itself makes with that file. The GGUF has SentencePiece's.
"""


def _line(row: Row) -> str:
    case = row.case
    form = case.dtype.replace("bfloat", "bf").replace("float", "f")
    weights = f"{form}, {'.bin' if case.as_bin else 'shards' if case.shards else 'one file'}"
    if row.verification is None:
        return f"| {case.name} | {case.tokenizer} | {weights} | refused: {row.outcome} | | | | |\n"
    mended = [f"{key} = {value}" for key, value in row.completed.items()]
    mended += [remark for remark in row.remarks if "llama.cpp; it splits" in remark or "was made" in remark]
    other = [remark for remark in row.remarks if remark not in mended and "SentencePiece" not in remark]
    if any("SentencePiece's" in remark for remark in row.remarks):
        other.append("ids of SentencePiece (1)")
    result = "; ".join([f"mended: {', '.join(mended)}" if mended else "converted", *other])
    cosine = row.verification.logits_cosine
    lowest = row.verification.lowest_cosine
    figures = ["not compared" if value is None else f"{value:.6f}" for value in (cosine, lowest)]
    figures += [f"{row.quantized[preset]:.4f}" for preset in QUANTIZED]
    return f"| {case.name} | {case.tokenizer} | {weights} | {result} | {' | '.join(figures)} |\n"


if __name__ == "__main__":
    main()
