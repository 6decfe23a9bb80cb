"""Special tokens in texts: counted and told alike wherever a text is read, and parsed where that is asked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ggq
from ggq.errors import CannotServe, OutputProblem
from ggq.gguf import names as gguf_names
from ggq.llamacpp import perplexity, special_logits, text_tokens
from ggq.llamacpp.logits_file import LogitsFile
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.perplexity import Evaluation
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import model_file, quality
from ggq.measurement.settings import QualitySettings
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.quantization.imatrix import imatrix
from ggq.quantization.imatrix_settings import ImatrixSettings
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import texts

pytestmark = pytest.mark.tool

HOW = Evaluation(context=64, threads=1)


@pytest.fixture(scope="module")
def chat(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty lines, each between the names of two special tokens."""
    file = tmp_path_factory.mktemp("texts") / "chat.txt"
    lines = [line for line in (example / "heldout.txt").read_text(encoding="utf-8").split("\n") if line]
    file.write_text("\n".join(f"<s>{line}</s>" for line in lines[:40]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def base(base_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    os.link(base_gguf, folder / base_gguf.name)
    return folder / base_gguf.name


def warnings(events: list[Event]) -> list[str]:
    return [it.text for it in events if isinstance(it, Notice) and it.level == "warning"]


def test_the_same_warning_with_numbers_in_imatrix_and_bench(
    toolchain: Toolchain, base: Path, chat: Path, tmp_path: Path
) -> None:
    plain, parsed = (
        len(text_tokens.token_ids(toolchain, base, chat, parse_special=parse)) for parse in (False, True)
    )
    assert plain > parsed > 2 * 64
    heard: list[Event] = []
    short = ImatrixSettings(chunks=2, context=64, threads=1)
    target = tmp_path / "m.gguf"
    imatrix(base, short, text=chat, output=target, session=Session(listener=heard.append))
    [warning] = warnings(heard)
    assert "80 special tokens" in warning and "<s> 40 times" in warning and "--parse-special" in warning
    assert f"{plain:,} tokens instead of {parsed:,}" in warning
    before = target.read_bytes()

    # A matrix without them is not taken for one with them, and the record says which it is.
    with pytest.raises(OutputProblem, match="other settings"):
        imatrix(base, replace(short, parse_special=True), text=chat, output=target)
    heard.clear()
    made = imatrix(
        base,
        replace(short, parse_special=True),
        text=chat,
        output=target,
        force=True,
        session=Session(listener=heard.append),
    )
    assert made.parse_special and not warnings(heard) and target.read_bytes() != before
    [step] = Manifest.of(gguf_names.parse_name(base.name).model, tmp_path).steps.values()
    assert step.options["parse_special"] is True

    made_of = ggq.quantize(base, ["Q4_K_M"], tmp_path, Settings(threads=1))
    models = model_file.distinct(map(model_file.of, [base, made_of.files[0].paths[0]]))
    heard.clear()
    how = QualitySettings(chunks=4, context=64, threads=1)
    text = texts.read(chat)
    found = quality.measure(
        models[0], models[1:], text, how, session=Session(toolchain, listener=heard.append), work=tmp_path
    )
    assert warnings(heard) == [warning] and found.text_tokens == plain
    heard.clear()
    with_them = quality.measure(
        models[0], models[1:], text, how, session=Session(toolchain, listener=heard.append), work=tmp_path,
        parse_special=True,
    )  # fmt: skip
    assert not warnings(heard) and with_them.text_tokens == parsed
    assert with_them.models[0].divergence.mean_kld.value != found.models[0].divergence.mean_kld.value


def test_the_tokens_counted_are_those_that_are_scored(
    toolchain: Toolchain, base: Path, example: Path, tmp_path: Path
) -> None:
    """A backslash stays one, and the last line's end is left out."""
    file = tmp_path / "text.txt"
    words = (example / "heldout.txt").read_text(encoding="utf-8")[:3000].replace(" ", "\\n", 40) + "</s>\n"
    file.write_text(words, encoding="utf-8")
    scored = perplexity.save_logits(toolchain, base, file, tmp_path / "logits", HOW)
    tokens = text_tokens.token_ids(toolchain, base, file)
    flat = [token for chunk in scored.chunks() for token in chunk]
    assert flat == tokens[: len(flat)] and len(tokens) - len(flat) < HOW.context


def test_without_special_tokens_its_logits_are_llama_perplexitys(
    toolchain: Toolchain, base: Path, example: Path, chat: Path, tmp_path: Path
) -> None:
    file = example / "heldout.txt"
    theirs = perplexity.save_logits(toolchain, base, file, tmp_path / "theirs", HOW, chunks=3)
    ours = perplexity.save_logits(toolchain, base, file, tmp_path / "ours", HOW, chunks=3, parse_special=True)
    assert theirs.chunks() == ours.chunks()
    one, other = (_steps(it) for it in (theirs, ours))
    assert len(one) == len(other) and np.abs(one - other).max() <= 1

    parsed = perplexity.save_logits(
        toolchain, base, chat, tmp_path / "chat", HOW, chunks=4, parse_special=True
    )
    tokens = text_tokens.token_ids(toolchain, base, chat, parse_special=True)
    assert [token for chunk in parsed.chunks() for token in chunk] == tokens[: 4 * HOW.context]
    # llama-perplexity itself reads the file, and a model is not far from itself.
    assert abs(perplexity.divergence(toolchain, base, parsed, HOW).mean_kld.value) < 1e-4


def _steps(found: LogitsFile) -> np.ndarray:
    raw = found.path.read_bytes()[-found.chunk_count * found.chunk_bytes :]
    return np.frombuffer(raw, "<u2").astype(int)


def test_what_the_binding_cannot_place_is_refused() -> None:
    with pytest.raises(CannotServe, match="--rpc"):
        special_logits.require(Offload(n_gpu_layers=-1, rpc=("127.0.0.1:1",)))
