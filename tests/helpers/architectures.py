"""The architectures that are tried: tiny random checkpoints made on the spot, converted, quantized, compared.

The tokenizers are small, and trained on the spot (tests/helpers/checkpoints.py). `make architectures` runs
it as a program, which writes docs/supported-models.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoints
from architecture_cases import CASES, Case
from tokenizers import AddedToken

from ggq.conversion import Verification, compare_logits, convert, longrope
from ggq.errors import GgqError
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp import tools
from ggq.llamacpp.inference import LoadedGguf
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session
from ggq.system import hardware

QUANTIZED = ("Q8_0", "Q4_K_M")


@dataclass(frozen=True)
class Row:
    """What came of a case. ``quantized``: preset -> mean cosine with transformers' logits."""

    case: Case
    outcome: str
    verification: Verification | None = None
    quantized: Mapping[str, float] = field(default_factory=dict)
    completed: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def make(case: Case, folder: Path) -> Any:
    """Write the checkpoint; returns the model. The same case makes the same weights."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    ids = _write_tokenizer(case, folder)
    settings = {**ids, **case.settings}
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
        model.config.architectures = [case.model]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="2MB" if case.shards else "50GB")
    if case.change is not None:
        case.change(folder)
    return model


_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_RULES = {"gpt2": "gpt2", "qwen2": checkpoints.QWEN2, "llama-3": checkpoints.LLAMA3}


def _write_tokenizer(case: Case, folder: Path) -> dict[str, int]:
    """A tokenizer's files; returns the settings of a config that belong to them."""
    if case.tokenizer in _RULES:
        added = [AddedToken(name, special=True, normalized=False) for name in case.added_tokens]
        made = checkpoints.tokenizer(_RULES[case.tokenizer], added)
        checkpoints.save_tokenizer(folder, made, chat_template=_TEMPLATE)
        return {"vocab_size": made.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 0}
    if case.tokenizer == "wordpiece":
        count = checkpoints.save_wordpiece(folder)
        return {"vocab_size": count, "pad_token_id": 0}
    if case.tokenizer == "unigram":
        count = checkpoints.save_unigram(folder)
        return {"vocab_size": count, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return _write_sentencepiece(case, folder)


def _write_sentencepiece(case: Case, folder: Path) -> dict[str, int]:
    import sentencepiece
    import transformers

    gemma = case.tokenizer == "gemma"
    raw = checkpoints.sentencepiece_model(prefix=not gemma)
    model = folder / "tokenizer.model"
    model.write_bytes(raw)
    settings = {
        "tokenizer_class": "GemmaTokenizer" if gemma else "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    checkpoints.write_json(folder / "tokenizer_config.json", settings)
    if case.tokenizer_files != "model":
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        model.unlink(missing_ok=True)
        if case.tokenizer_files == "both":
            model.write_bytes(raw)
    count = sentencepiece.SentencePieceProcessor(model_proto=raw).vocab_size()
    return {"vocab_size": count, "bos_token_id": 1, "eos_token_id": 2}


# What happens in this process goes one at a time: torch's random numbers and llama.cpp's log are everybody's.
_HERE = threading.Lock()


def run_all(cases: Sequence[Case], toolchain: Toolchain) -> list[Row]:
    """The rows of all cases, two at a time: most of a conversion is one thread importing transformers."""
    with ThreadPoolExecutor(max_workers=2) as workers:
        return list(workers.map(lambda case: run(case, toolchain), cases))


def run(case: Case, toolchain: Toolchain) -> Row:
    """Make, convert and quantize a case, and compare each file with transformers."""
    with tempfile.TemporaryDirectory() as work:
        return _run(case, Path(work), toolchain)


def _run(case: Case, work: Path, toolchain: Toolchain) -> Row:
    folder = work / case.model
    with _HERE:
        model = make(case, folder)
    base = work / "base.gguf"
    remarks: list[str] = []
    try:
        session = Session(
            toolchain, listener=lambda event: remarks.append(event.text) if hasattr(event, "text") else None
        )
        made = convert(folder, base, force=True, session=session)
    except GgqError as problem:
        outcome = f"{problem.what} {problem.why}".replace(f"{folder.parent}/", "")
        return Row(case, outcome, remarks=tuple(remarks))
    if case.change is not None:
        assert not list(work.rglob("ran")), "code of the checkpoint was run"
    quantized: dict[str, float] = {}
    # A model with two sets of rotary factors would be run with another one here than in transformers.
    if made.verification.why_not or longrope.original_context(model) is not None:
        return Row(case, "", made.verification, quantized, made.completed_keys, tuple(remarks))
    for preset in QUANTIZED:
        tools.quantize(toolchain, base, work / f"{preset}.gguf", preset, threads=1)
    with _HERE:
        is_encoder = made.verification.vectors_cosine is not None
        expected, tokens = _computed(model, is_encoder=is_encoder)
        for preset in QUANTIZED:
            with LoadedGguf(toolchain, work / f"{preset}.gguf", threads=1) as loaded:
                found = loaded.vectors(tokens) if is_encoder else loaded.logits(tokens)
            quantized[preset] = compare_logits.compare(expected, found)["cosine"]
    return Row(case, "", made.verification, quantized, made.completed_keys, tuple(remarks))


def _computed(model: Any, *, is_encoder: bool) -> tuple[Any, list[int]]:
    """transformers' logits, or an encoder's vectors, in float32, on other tokens than ggq's own check has."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    # Padding is none of them: XLM-R counts positions without it.
    tokens = [5 + (index * 7919 + 11) % (vocabulary - 5) for index in range(compare_logits.POSITIONS)]
    with torch.inference_mode():
        made = model.float()(torch.tensor([tokens]))
        return (made.last_hidden_state if is_encoder else made.logits)[0].numpy(), tokens


def main() -> None:
    """Write the table to stdout."""
    import torch
    import transformers

    toolchain = toolchains.find()
    machine = hardware.describe()
    rows = run_all(CASES, toolchain)
    say = sys.stdout.write
    say(_HEAD)
    say(
        f"Made on: {machine.cpu}, {machine.usable_cores} cores, {machine.system}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"llama.cpp {toolchain.commit}.\n\n"
    )
    columns = ("case", "tokenizer", "weights", "result", "texts", "stops", "templates", "16 bit", "lowest",
               "long context", "window", *QUANTIZED)  # fmt: skip
    say(f"| {' | '.join(columns)} |\n|{' --- |' * 4}{' ---: |' * (len(columns) - 4)}\n")
    for row in rows:
        say(_line(row))
    say(_FOOT)


_HEAD = """# Architectures that were tried

Written by `make architectures`. Each row is a tiny checkpoint with random
weights, made by transformers on the spot with a small tokenizer, converted by `ggq convert` and quantized by
llama-quantize. Random weights have no redundancy, so a trained model loses less to quantization.

*texts*: how many texts get the ids of the checkpoint's own tokenizer, of how many. *stops*: tokens that end a
turn, in the GGUF and in the checkpoint. *templates*: conversations that llama.cpp and transformers render
alike. *16 bit*, *lowest*: mean and lowest cosine between the logits of the 16-bit GGUF in llama.cpp and those
of transformers in float32, over 32 positions; of an encoder between the vectors of its tokens.
*long context*: the same at positions beyond the original context, of a model whose context is scaled.
*window*: at positions behind a sliding window, or behind a shorter one in the place of it on both sides. The
quantized files are compared on another prompt. "completed": keys that ggq gives to the converter, which fails
or is wrong without them. "refused": with these words, and without an output.
[checks.md](checks.md) says what each check sees.

"""


_FOOT = """
(1) Texts that begin with a space, or with a space beside an added token: what transformers 5 builds of a
tokenizer.model puts no space before these, SentencePiece and llama.cpp do.
"""

# Warnings that are the same for every tokenizer of a kind.
_SPACES = ("begin with a space", "splits the text beside it otherwise", "own tokenizer.model")


def _line(row: Row) -> str:
    case, found = row.case, row.verification
    form = case.dtype.replace("bfloat", "bf").replace("float", "f")
    weights = f"{form}, {'.bin' if case.as_bin else 'shards' if case.shards else 'one file'}"
    first = f"| {case.name} | {case.tokenizer} | {weights} |"
    if found is None:
        return f"{first} refused: {row.outcome} |{' |' * (7 + len(QUANTIZED))}\n"
    completed = ", ".join(f"{key} = {value}" for key, value in row.completed.items())
    told = [remark for remark in row.remarks if not any(words in remark for words in _SPACES)]
    if len(told) < len(row.remarks):
        told.append("spaces (1)")
    result = "; ".join([f"completed: {completed}" if completed else "converted", *told])
    cosine = found.vectors_cosine if found.logits_cosine is None else found.logits_cosine
    cells = (
        f"{found.tokenizer_strings} of {found.tokenizer_compared}",
        f"{len(found.stop_tokens) - len(found.stop_tokens_lost)} of {len(found.stop_tokens)}",
        f"{found.template_conversations} of {found.template_compared}" if found.template_compared else "-",
        "not compared" if cosine is None else f"{cosine:.6f}",
        "-" if found.lowest_cosine is None else f"{found.lowest_cosine:.6f}",
        "-" if found.beyond_cosine is None else f"{found.beyond_cosine:.6f}",
        "-" if found.window_cosine is None else f"{found.window_cosine:.6f}",
        *(f"{row.quantized[preset]:.4f}" if row.quantized else "-" for preset in QUANTIZED),
    )
    return f"{first} {result} | {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
