"""The reference against llama-perplexity on the same tokens, and what it says when it cannot speak."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from shared import Store

from ggq.checkpoint import transformers_model
from ggq.errors import CheckpointProblem, DoesNotFit, GgqError, UsageProblem
from ggq.llamacpp import logits_file
from ggq.llamacpp.perplexity import TOOL
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement.transformers_perplexity import ReferencePerplexity, perplexity
from ggq.measurement.transformers_perplexity_child import score
from ggq.progress import Event, Step
from ggq.system import hardware, process

BOS = 1
CHUNKS = [[5 + (7 * index + 3 * number) % 500 for index in range(32)] for number in range(3)]


def brute_force(folder: Path, chunks: list[list[int]], bos: int | None) -> list[list[float]]:
    """Each chunk's scored tokens, one by one: -log p(token | all before it)."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nlls = []
    for chunk in chunks:
        seen = list(chunk) if bos is None else [bos, *chunk[1:]]
        own = []
        for position in range(len(chunk) // 2, len(chunk) - 1):
            with torch.inference_mode():
                row = model(torch.tensor([seen[: position + 1]])).logits[0, -1].double()
            own.append(float(-torch.log_softmax(row, dim=-1)[chunk[position + 1]]))
        nlls.append(own)
    return nlls


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A few lines of Python in the place of the child process, for ends that no checkpoint can cause."""
    real = process.run

    def run(command: list[str], **options: Any) -> process.Completed:
        return real([command[0], "-c", code], **options)

    monkeypatch.setattr(process, "run", run)


def refusal(kind: type[GgqError], folder: Path, chunks: list[list[int]] = CHUNKS) -> GgqError:
    with pytest.raises(kind) as caught:
        perplexity(folder, chunks, bos=BOS, threads=1)
    assert caught.value.what and caught.value.why and caught.value.next_step
    assert "Traceback" not in str(caught.value)
    return caught.value


@pytest.mark.torch
def test_it_is_the_definition(example: Path) -> None:
    events: list[Event] = []
    found = perplexity(example, CHUNKS, bos=BOS, threads=1, listener=events.append)
    expected = brute_force(example, CHUNKS, BOS)
    tokens = [nll for chunk in expected for nll in chunk]
    mean = sum(tokens) / len(tokens)
    variance = sum(nll * nll for nll in tokens) / len(tokens) - mean**2
    assert found.scored_tokens == len(tokens) == 3 * 15
    assert found.mean_nll == pytest.approx(mean, rel=1e-5)
    assert found.value == pytest.approx(math.exp(mean), rel=1e-4)
    assert found.standard_error == pytest.approx(found.value * math.sqrt(variance / 44), rel=1e-4)
    assert found.chunk_nlls == pytest.approx([sum(own) / 15 for own in expected], rel=1e-5)
    assert found.torch_version and found.transformers_version and found.seconds > 0
    assert [event.done for event in events if isinstance(event, Step)] == [1, 2, 3]


@pytest.mark.torch
@pytest.mark.parametrize("bos", [BOS, None])
def test_an_odd_chunk_with_and_without_bos(example: Path, bos: int | None) -> None:
    model = transformers_model.load_model(example, "LlamaForCausalLM")
    chunk = CHUNKS[0][:9]
    [expected] = brute_force(example, [chunk], bos)
    assert score(model, chunk, bos, 1) == pytest.approx(expected, rel=1e-5)
    assert len(expected) == logits_file.scored_tokens(9) == 4


# ---- beside llama-perplexity -----------------------------------------------------------------------------


def both(
    toolchain: Toolchain, model: Path, gguf: Path, text: Path, tmp_path: Path
) -> tuple[ReferencePerplexity, float, float]:
    """The reference, and llama-perplexity's value and standard error, on the same tokens.

    With a cache in float32, which llama.cpp keeps in 16 bits otherwise, and without what else it rounds for.
    """
    base = tmp_path / "base.kld"
    command: list[str | Path] = [
        toolchain.tool(TOOL),
        "-m",
        gguf,
        "-f",
        text,
        "-c",
        "512",
        "-b",
        "512",
        "--chunks",
        "4",
    ]
    exactly = ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "-fit", "off", "-t", "2"]
    done = process.run([*command, *exactly, "--kl-divergence-base", base])
    printed = re.search(r"PPL = (\S+) \+/- (\S+)", "\n".join((*done.stdout, *done.stderr)))
    assert printed, done.tail
    saved = logits_file.read(base)
    found = perplexity(model, saved.chunks(), bos=BOS)
    assert found.scored_tokens == saved.scored_tokens == 4 * 255
    return found, float(printed[1]), float(printed[2])


@pytest.mark.tool
def test_the_example_in_16_bits(toolchain: Toolchain, example: Path, base_gguf: Path, tmp_path: Path) -> None:
    found, value, error = both(toolchain, example, base_gguf, example / "heldout.txt", tmp_path)
    assert found.value == pytest.approx(value, rel=1e-3)
    assert found.standard_error == pytest.approx(error, rel=1e-2)


@pytest.mark.tool
def test_a_real_checkpoint_in_32_bits(
    toolchain: Toolchain, stories: Path, example: Path, store: Store, tmp_path: Path
) -> None:
    """Here nothing is rounded between the two, and they agree to the last digit that is printed."""
    gguf = store.converted(toolchain, stories, "f32", by_hand=True)
    found, value, error = both(toolchain, stories, gguf, example / "heldout.txt", tmp_path)
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.standard_error == pytest.approx(error, rel=1e-4)


# ---- when it cannot speak --------------------------------------------------------------------------------


def test_too_few_tokens(example: Path) -> None:
    for chunks in ([], [[1, 2, 3]], [[1, 2], CHUNKS[0]]):
        assert "too few tokens" in refusal(UsageProblem, example, chunks).what


def test_tokens_of_another_model(example: Path) -> None:
    assert "2048" in refusal(CheckpointProblem, example, [[*CHUNKS[0], 2048]]).why


def test_not_a_checkpoint(tmp_path: Path) -> None:
    refusal(CheckpointProblem, tmp_path)


@pytest.mark.torch
def test_a_class_that_transformers_does_not_have(example: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyForCausalLM"]}))
    error = refusal(CheckpointProblem, folder)
    assert "has no NobodyForCausalLM" in error.why and "--reference" in error.next_step


@pytest.mark.torch
def test_weights_that_do_not_fit_the_config(example: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    assert str(folder) in refusal(CheckpointProblem, folder).what


def test_values_that_are_not_numbers(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from ggq.measurement.transformers_perplexity_child import say
for nlls in ([1.0, 2.0], [1.0, float("nan")], [float("inf"), 1.0]):
    say("chunk", nlls=nlls)
say("done", torch="2", transformers="5")
"""
    child(monkeypatch, code)
    error = refusal(CheckpointProblem, example)
    assert "not numbers" in error.what and "chunk 2 of 3" in error.why


def test_a_model_larger_than_memory(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 500_000_000)
    assert "500 MB are free" in refusal(DoesNotFit, example).why


@pytest.mark.torch
def test_memory_that_runs_out_on_the_way(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import resource, sys
from ggq.measurement import transformers_perplexity_child as reference_child
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
reference_child.run = lambda job: bytearray(4 << 30)
sys.exit(reference_child.main())
"""
    child(monkeypatch, code)
    assert "Memory ran out" in refusal(DoesNotFit, example).what


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal(example: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    child(monkeypatch, f"import os; os.kill(os.getpid(), {int(number)})")
    error = refusal(DoesNotFit if number == signal.SIGKILL else CheckpointProblem, example)
    assert number.name in str(error) and str(example) in error.what


def test_an_early_end(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, "import sys; sys.exit('no torch here')")
    assert refusal(CheckpointProblem, example).why == "no torch here"
    child(monkeypatch, "")
    refusal(CheckpointProblem, example)
