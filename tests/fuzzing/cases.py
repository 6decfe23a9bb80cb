"""What is mutated, and the verbs that it goes through."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import mutations

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama"
REPOSITORY = "org/tiny"


@dataclass(frozen=True)
class Verb:
    """A command line, ``{}`` for the input, and how often it is taken. ``slow``: it starts torch."""

    words: str
    weight: float
    slow: bool = False

    @property
    def name(self) -> str:
        words = self.words.split()
        return " ".join([*words[: 2 if words[0] == "bench" else 1], *[w for w in words if w == "--dry-run"]])

    def command(self, given: str) -> list[str]:
        return [given if word == "{}" else word for word in self.words.split()]


_GGUF = (
    Verb("inspect {} --json", 60),
    Verb("inspect {}", 30),
    Verb("quantize {} --preset q4_k_m --outdir out --dry-run", 12),
    Verb("convert-and-quantize {} --preset q8_0 --outdir out --dry-run", 8),
    Verb("quantize {} --preset q4_k_m --outdir out", 6),
    Verb("quantize {} --preset q4_k_m --outdir out --engine llama-quantize", 2),
    Verb("plan {} --preset q4_k_m --no-speed", 3),
    Verb("recommend {} --preset q4_k_m --no-speed", 2),
    Verb("run {} Hello -n 2", 3),
    Verb("imatrix {} --text text.txt --chunks 1 -c 64", 2),
    Verb("bench speed {} --quick --no-binding --reps 1 -p 16 -n 4", 2),
    Verb("bench memory {}", 1),
    Verb("bench quality whole.gguf {} --text text.txt --chunks 1 -c 64", 1),
)
_FOLDER = (
    Verb("inspect {} --json", 70),
    Verb("inspect {}", 20),
    Verb("convert {} --dry-run", 1.2, slow=True),
    Verb("convert-and-quantize {} --preset q8_0 --outdir out --dry-run", 0.6, slow=True),
    Verb("plan {} --preset q8_0 --no-speed", 0.6, slow=True),
    Verb("recommend {} --preset q8_0 --no-speed", 0.3, slow=True),
    Verb("convert {} -o out/made.gguf", 0.6, slow=True),
)
_HUB = (
    Verb("download {} --dry-run", 40),
    Verb("inspect {} --json", 30),
    Verb("download {}", 20),
    Verb("convert {} --dry-run", 1, slow=True),
    Verb("plan {} --preset q8_0 --no-speed", 0.6, slow=True),
)
KINDS = {
    "gguf": (30, _GGUF),
    "safetensors": (16, _FOLDER),
    "config": (16, _FOLDER),
    "tokenizer.json": (10, _FOLDER),
    "tokenizer.model": (6, _FOLDER),
    "index": (8, _FOLDER),
    "hub": (14, _HUB),
}


@dataclass(frozen=True)
class Seeds:
    """Whole inputs: a folder with a GGUF, a checkpoint with tokenizer.model, and one with tokenizer.json."""

    folder: Path

    @property
    def gguf(self) -> Path:
        return self.folder / "tiny-llama-BF16.gguf"

    @classmethod
    def made(cls, folder: Path) -> Seeds:
        seeds = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ggq",
                "convert",
                str(EXAMPLE),
                "-o",
                str(seeds.gguf),
                "--verify",
                "off",
                "-q",
            ],
            check=True,
        )
        (folder / "text.txt").write_text("Once upon a time there was a small model. " * 400)
        shutil.copytree(EXAMPLE, folder / "bpe", ignore=shutil.ignore_patterns("*.txt", "tokenizer.model"))
        (folder / "bpe" / "tokenizer.json").write_text(_bpe())
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "bpe" / "tokenizer_config.json").write_text(json.dumps(settings))
        return seeds


def _bpe() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(["Once upon a time there was a small model in 2023."] * 4, trainer)
    return str(made.to_str(pretty=True))


@dataclass(frozen=True)
class Case:
    """``before`` runs in the fork, which stands in the case's folder."""

    kind: str
    verb: Verb
    command: list[str]
    before: Callable[[], None]


def case(
    seed: int, index: int, folder: Path, seeds: Seeds, *, clean: Verb | None = None, kind: str = ""
) -> Case:
    """Make the case of a number in ``folder``; ``clean``: with nothing changed, through this verb."""
    random = Random(f"{seed}:{index}")
    kind = kind or random.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    _, verbs = KINDS[kind]
    verb = clean or random.choices(verbs, [it.weight for it in verbs])[0]
    _environment(folder)
    if kind == "hub":
        return Case(kind, verb, verb.command(REPOSITORY), lambda: _serve(random, changed=clean is None))
    if kind == "gguf":
        whole = seeds.gguf.read_bytes()
        given = folder / "model.gguf"
        given.write_bytes(whole if clean else mutations.gguf(whole, random))
        (folder / "text.txt").symlink_to(seeds.folder / "text.txt")
        (folder / "whole.gguf").symlink_to(seeds.gguf)
        return Case(kind, verb, verb.command(given.name), _nothing)
    given = folder / "model"
    source = seeds.folder / "bpe" if kind == "tokenizer.json" else EXAMPLE
    given.mkdir()
    for file in source.iterdir():
        (given / file.name).symlink_to(file)
    if kind == "index":
        _index(given, random, changed=clean is None)
    elif clean is None:
        for name, content in _changed(kind, source, random).items():
            (given / name).unlink(missing_ok=True)
            (given / name).write_bytes(content)
    return Case(kind, verb, verb.command(f"./{given.name}"), _nothing)


def _nothing() -> None:
    pass


def _environment(folder: Path) -> None:
    os.environ |= {
        "HF_HOME": str(folder / "cache" / "hf"), "XDG_CACHE_HOME": str(folder / "cache"), "NO_COLOR": "1",
        "TMPDIR": str(folder / "cache"), "HF_ENDPOINT": "http://127.0.0.1:1",
    }  # fmt: skip
    (folder / "cache").mkdir(parents=True)


def _changed(kind: str, source: Path, random: Random) -> dict[str, bytes]:
    def text(name: str) -> bytes:
        return mutations.json_text(json.loads((source / name).read_bytes()), random)

    if kind == "config":
        names = ["config.json"] * 5 + ["tokenizer_config.json", "generation_config.json"]
        name = random.choice([name for name in names if (source / name).is_file()])
        return {name: text(name)}
    if kind == "tokenizer.json":
        return {kind: text(kind)}
    if kind == "tokenizer.model":
        return {
            kind: mutations.raw((source / kind).read_bytes(), random, near=random.choice((64, 4000, 1 << 20)))
        }
    return {"model.safetensors": _safetensors((source / "model.safetensors").read_bytes(), random)}


def _safetensors(whole: bytes, random: Random) -> bytes:
    (length,) = struct.unpack_from("<Q", whole)
    body = whole[8 + length :]
    what = random.randrange(6)
    if what == 0:
        return mutations.raw(whole, random, near=random.choice((8, 300, length + 8)))
    if what == 1:
        wrong = random.choice((0, 1, length - 1, length + 8, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))
        return struct.pack("<Q", wrong) + whole[8:]
    header = mutations.json_text(json.loads(whole[8 : 8 + length]), random)
    return struct.pack("<Q", len(header)) + header + body


def _index(folder: Path, random: Random, *, changed: bool) -> None:
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    shard = "model-00001-of-00001.safetensors"
    (folder / shard).symlink_to(weights.resolve())
    weights.unlink()
    names = [name for name in json.loads(raw[8 : 8 + length]) if name != "__metadata__"]
    tree: Any = {"metadata": {"total_size": len(raw)}, "weight_map": dict.fromkeys(names, shard)}
    text = mutations.json_text(tree, random) if changed else json.dumps(tree).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)


def _serve(random: Random, *, changed: bool) -> None:
    """A Hub on loopback, in the fork, which changes the API's answers, or a small file of the repository."""
    import hubserver

    files: dict[str, bytes | Path] = {file.name: file for file in EXAMPLE.iterdir() if file.suffix != ".txt"}
    files["README.md"] = b"---\nlicense: mit\nbase_model: org/base\n---\n# A model\n"
    of_answers = changed and random.random() < 0.75
    if changed and not of_answers:
        files |= _changed(random.choice(("config", "safetensors")), EXAMPLE, random)
    hub = hubserver.HubServer()
    hub.__enter__()
    hub.add_repo(REPOSITORY, files, card={"license": "mit", "base_model": "org/base"})
    os.environ["HF_ENDPOINT"] = hub.url
    if of_answers:
        _spoil_answers(hubserver, random)


def _spoil_answers(hubserver: Any, random: Random) -> None:
    def answer(self: Any, status: int, body: Any = None, headers: Any = None) -> None:
        self.record(status)
        payload = b"" if body is None else json.dumps(body).encode()
        if body is not None and random.random() < 0.8:
            payload = mutations.json_text(copy.deepcopy(body), random)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        for name, content in (headers or {}).items():
            if random.random() < 0.1:
                content = random.choice(
                    ("", "²", "9" * 400, "-1", "bytes 0-1/99999999999999999999", "x" * 5000)
                )
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    hubserver._Handler.answer = answer
