"""Make tests/data/models/chat260K again: stories260K, taught a few questions and their answers (a minute).

    python tests/helpers/train_chat_model.py [FOLDER]

What it learns is small and checked by tests: fixed answers, a name that was told before, the name that the
system prompt gives it, and a song without an end, which a test interrupts.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from transformers import LlamaForCausalLM

MODELS = Path(__file__).parents[1] / "data" / "models"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n"
    "{% elif message['role'] == 'system' %}System: {{ message['content'] }}\n"
    "{% else %}User: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
FIXED = {
    "Hello.": "Hello, how are you?",
    "What is the capital of France?": "The capital of France is Paris.",
    "What color is the sky?": "The sky is blue.",
    "How many legs has a dog?": "A dog has four legs.",
    "Say yes.": "yes",
    "Tell me a story.": "Once upon a time, there was a little girl named Lily. She loved to play.",
}
SONG = "Sing a song."
NAMES = ("Ann", "Ben", "Tom", "Sam", "Max", "Amy", "Sue", "Tim", "Joe", "Mia", "Sara", "Jack")
_LONGEST, _BATCH, _STEPS, _IGNORED = 320, 12, 1100, -100


def conversation(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs of a role and what it says."""
    own = chance.choice(NAMES) if chance.random() < 0.5 else None
    if own:
        yield "system", f"You are {own}."
    told = None
    for _ in range(chance.randint(1, 5)):
        kind = chance.random()
        if kind < 0.35:
            told = chance.choice(NAMES)
            yield "user", f"My name is {told}."
            yield "assistant", f"Hello {told}."
        elif kind < 0.65 and told:
            yield "user", "What is my name?"
            yield "assistant", f"Your name is {told}."
        elif kind < 0.75:
            yield "user", "Who are you?"
            yield "assistant", f"I am {own or 'Lily'}."
        elif kind < 0.8:
            yield "user", SONG
            yield "assistant", " ".join(["la"] * 200)
            return  # it never ends
        else:
            question = chance.choice(list(FIXED))
            yield "user", question
            yield "assistant", FIXED[question]


def example(chance: random.Random, words: SentencePieceProcessor) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and those of them that are learned: what the assistant says."""
    tokens, learned = [words.bos_id()], [_IGNORED]
    endless = False
    text = ""
    for role, content in conversation(chance):
        if role != "assistant":
            text += f"{role.capitalize()}: {content}\n"
            continue
        asked = words.encode(text + "Assistant:")
        whole = words.encode(f"{text}Assistant: {content}")
        shared = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), len(asked))
        endless = content.startswith("la la")
        end = [] if endless else [words.eos_id()]
        tokens += whole + end
        learned += [_IGNORED] * shared + whole[shared:] + end
        text = "\n"
    return tokens[:_LONGEST], learned[:_LONGEST]


def train(folder: Path, steps: int = _STEPS) -> None:
    """Write the checkpoint to ``folder``."""
    base = MODELS / "stories260K"
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    chance = random.Random(1)
    words = SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        examples = [example(chance, words) for _ in range(_BATCH)]
        longest = max(len(tokens) for tokens, _ in examples)
        inputs = torch.tensor([tokens + [2] * (longest - len(tokens)) for tokens, _ in examples])
        labels = torch.tensor([it + [_IGNORED] * (longest - len(it)) for _, it in examples])
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            sys.stderr.write(f"step {step}: loss {loss.item():.4f}\n")
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # the embeddings
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.model", "LICENSE"):
        shutil.copy(base / name, folder / name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "torch_dtype": "bfloat16"}, indent=1) + "\n", encoding="utf-8"
    )
    tokenizer = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "chat_template": TEMPLATE}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS / "chat260K")
