#!/usr/bin/env python
"""Train the checkpoint in ``examples/tiny-llama``: a Llama small enough to live in a git repository.

    python examples/train.py --out examples/tiny-llama

It learns the English of Python's own standard library: docstrings and the language reference
behind ``help()``, so it needs no download. Some documents are set aside, never trained on,
and written beside the model as ``heldout.txt``: text to measure perplexity with.

One thread and a fixed seed: the same Python, torch and CPU give the same bytes. Another Python minor
version has other documents, so it gives a similar model, not the same one. The folder in the repository
was made on a busy two-core machine; its last lines were:

    held-out perplexity 44.40, of a vocabulary of 2048
    Trained in 954 s (631 s of processor time) on one thread of AMD EPYC,
    with Python 3.11.7, torch 2.13.0+cpu.
"""

import ast
import hashlib
import io
import json
import math
import platform
import re
import shutil
import sysconfig
import time
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch
import transformers
from cpuinfo import get_cpu_info
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 2048
CONTEXT = 512  # what the model claims to handle
WINDOW = 256  # tokens in a training example, and in a chunk of the perplexity measurement
BATCH = 4
LEARNING_RATE = 3e-3
ROPE_THETA = 10_000.0  # LlamaConfig's default, in every version of transformers
HELDOUT_CHARS = 90_000
BOS, EOS = 1, 2

# Installed packages are not the standard library, and not every distribution ships the tests.
OUTSIDE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}


# ---- the text ----------------------------------------------------------------------------------


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as English sentences: no code, no table, nobody's e-mail address."""
    if not re.match(r"[A-Z]", paragraph) or not re.search(r"[.:!?]$", paragraph):
        return False
    plain = sum(c.isalpha() or c in " ,." for c in paragraph)
    return (
        len(paragraph.split()) >= 4 and plain / len(paragraph) > 0.85 and not re.search(r"\w@\w", paragraph)
    )


def paragraphs(text: str) -> Iterator[str]:
    """The prose paragraphs of a text, each on one line."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        if is_prose(paragraph):
            yield paragraph


def docstrings(source: str) -> Iterator[str]:
    """What a module's author wrote for its users to read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def documents() -> dict[str, list[str]]:
    """The standard library as prose: paragraphs by module and by help topic, none of them twice."""
    texts: dict[str, Iterable[str]] = {}
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in stdlib.rglob("*.py"):
        inside = path.relative_to(stdlib)
        if not OUTSIDE.intersection(inside.parts):
            with tokenize.open(path) as file:  # heeds a coding line
                texts[inside.as_posix()] = docstrings(file.read())
    from pydoc_data.topics import topics

    texts.update({f"help({name})": [text] for name, text in topics.items()})

    seen: set[str] = set()
    result: dict[str, list[str]] = {}
    for name in sorted(texts):
        found = dict.fromkeys(p for text in texts[name] for p in paragraphs(text))
        if fresh := [p for p in found if p not in seen]:
            result[name] = fresh
            seen.update(fresh)
    return result


def split(docs: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Whole documents to train on, and whole documents, chosen by a hash of their name, to hold out."""
    train: list[str] = []
    heldout: list[str] = []
    for name in sorted(docs, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = " ".join(docs[name]) + "\n"
        # No single document may fill the held-out text.
        wanted = sum(map(len, heldout)) < HELDOUT_CHARS and len(text) < HELDOUT_CHARS // 5
        (heldout if wanted else train).append(text)
    return train, heldout


# ---- the tokenizer and the model ---------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> bytes:
    """A SentencePiece model as Llama's own: BPE with byte fallback, and no normalization of the text."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        character_coverage=0.9995,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def new_model() -> LlamaForCausalLM:
    """A random model whose rows are 256 weights or a multiple: what llama.cpp's K-quants need."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=False,
        )
    )
    # The usual start (all weights N(0, 0.02)) drowns the tokens in what random layers add to them, and
    # the first minutes are spent undoing it. Loud tokens and silent layers learn from the first step on.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of every token but the first; ``ids`` and the result are [rows, tokens]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@torch.no_grad()  # type: ignore[untyped-decorator]
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Perplexity as ``llama-perplexity -c 256`` defines it: each chunk's second half, given its first."""
    chunks = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW).clone()
    chunks[:, 0] = BOS
    losses = [next_token_loss(model, batch)[:, WINDOW // 2 :] for batch in chunks.split(16)]
    return math.exp(torch.cat(losses).mean().item())


def optimize(model: LlamaForCausalLM, ids: torch.Tensor, steps: int) -> Iterator[tuple[int, float]]:
    """Train on random windows of ``ids``, and yield each step with its loss in nats per token."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    warmup = max(1, steps // 40)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    # Every window is visited once before any is visited again; their bounds move from pass to pass.
    starts: list[int] = []
    for step in range(1, steps + 1):
        if len(starts) < BATCH:
            first = int(torch.randint(WINDOW, ()))
            order = torch.randperm((len(ids) - first) // WINDOW)
            starts = (first + WINDOW * order).tolist()
        batch = torch.stack([ids[start : start + WINDOW] for start in (starts.pop() for _ in range(BATCH))])
        batch[:, 0] = BOS
        loss = next_token_loss(model, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step, loss.item()


# ---- the checkpoint ----------------------------------------------------------------------------


@torch.no_grad()  # type: ignore[untyped-decorator]
def complete(model: LlamaForCausalLM, tokenizer: SentencePieceProcessor, prompt: str, tokens: int) -> str:
    """The prompt and its greedy completion."""
    ids = torch.tensor([[BOS, *tokenizer.encode(prompt)]])
    text: str = tokenizer.decode(model.generate(ids, max_new_tokens=tokens, do_sample=False)[0].tolist())
    return text


def save(out: Path, model: LlamaForCausalLM, tokenizer: bytes, heldout: str, card: str) -> None:
    """Write the checkpoint as Hugging Face's Llamas are published."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "tokenizer.model").write_bytes(tokenizer)
    (out / "heldout.txt").write_text(heldout, "utf-8")
    (out / "README.md").write_text(card, "utf-8")
    licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt")
    if licence.is_file():  # some distributions keep it elsewhere
        shutil.copyfile(licence, out / "LICENSE-python.txt")

    # Not save_pretrained: transformers 4, 5 and llama.cpp's converter all read these names.
    config = model.config
    write_json(
        out / "config.json",
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        torch_dtype="bfloat16",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        hidden_act="silu",
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=ROPE_THETA,
        rope_scaling=None,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        use_cache=True,
    )
    write_json(out / "generation_config.json", bos_token_id=BOS, eos_token_id=EOS, do_sample=False)
    write_json(
        out / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        legacy=False,
        add_bos_token=True,
        add_eos_token=False,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def write_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, demo]
---
# tiny-llama

A Llama of {parameters:,} parameters that has read the Python standard library's documentation: small
enough to travel with ggq's source, and trained, so that quantizing it costs something one can measure.
It knows nothing and is of no use beyond that. `python examples/train.py --out examples/tiny-llama` makes it.

- {machine_and_time}
- {layers} layers, width {width}, context {context}, vocabulary {vocab} (SentencePiece BPE, byte fallback).
- Held-out perplexity (`heldout.txt`, chunks of {window} tokens): **{perplexity:.2f}**.
- Greedy, in bf16: *{sample}*

Trained on the docstrings and help topics of the standard library of Python {python}, and
`heldout.txt` is quoted from them: they are copyright the Python Software Foundation and contributors,
under the PSF License (<https://docs.python.org/3/license.html>; `LICENSE-python.txt` here). The rest of
this folder is under ggq's own MIT license.
"""


@click.command()
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option(
    "--steps", default=2000, show_default=True, type=click.IntRange(min=1), help="Batches to learn."
)
@click.option("--seed", default=0, show_default=True, help="For weights and order of text.")
def main(out: Path, steps: int, seed: int) -> None:
    """Train a tiny Llama on the standard library's documentation."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.perf_counter()

    texts, heldout_texts = split(documents())
    heldout = "".join(heldout_texts)
    tokenizer_bytes = train_tokenizer(texts)
    tokenizer = SentencePieceProcessor(model_proto=tokenizer_bytes)
    ids = torch.tensor([i for tokens in tokenizer.encode(texts) for i in (BOS, *tokens, EOS)])
    heldout_ids = torch.tensor([BOS, *tokenizer.encode(heldout)])
    model = new_model()
    parameters = sum(p.numel() for p in model.parameters())
    for name, part, tokens in ("train", texts, ids), ("held out", heldout_texts, heldout_ids):
        print(f"{name:9}{len(part):5} documents {sum(map(len, part)):9,} characters {len(tokens):8,} tokens")
    print(f"model     {parameters:,} parameters, vocabulary {VOCAB}")

    print("\n  step    tokens   loss  seconds")
    losses: list[float] = []
    for step, loss in optimize(model, ids, steps):
        losses.append(loss)
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(
                f"{step:6} {step * BATCH * WINDOW:9,} {sum(losses) / len(losses):6.3f} {seconds:8.0f}",
                flush=True,
            )
            losses.clear()

    model.bfloat16().float()  # measure what is saved
    heldout_perplexity = perplexity(model, heldout_ids)
    sample = complete(model, tokenizer, "Remove the", 32)
    machine_and_time = (
        f"Trained in {time.perf_counter() - started:.0f} s ({time.process_time():.0f} s of processor time) "
        f"on one thread of {get_cpu_info()['brand_raw']}, "
        f"with Python {platform.python_version()}, torch {torch.__version__}."
    )
    save(
        out,
        model,
        tokenizer_bytes,
        heldout,
        CARD.format(
            parameters=parameters,
            machine_and_time=machine_and_time,
            layers=model.config.num_hidden_layers,
            width=model.config.hidden_size,
            vocab=VOCAB,
            context=CONTEXT,
            window=WINDOW,
            perplexity=heldout_perplexity,
            sample=sample,
            python=platform.python_version(),
        ),
    )
    print(f"\nheld-out perplexity {heldout_perplexity:.2f}, of a vocabulary of {VOCAB}")
    print(f"greedy: {sample}")
    print(machine_and_time)


if __name__ == "__main__":
    main()
