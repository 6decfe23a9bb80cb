"""llama-perplexity through its wrapper, and its words as they were captured."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared import Store

from ggq.errors import GgufProblem, ToolchainProblem, UsageProblem
from ggq.llamacpp import logits_file, perplexity
from ggq.llamacpp.perplexity import Divergence, Estimate, Evaluation
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process

CAPTURED = Path(__file__).with_name("captured")
HOW = Evaluation(context=64, threads=1)


def lines(name: str) -> list[str]:
    return (CAPTURED / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]


# ---- its words -------------------------------------------------------------------------------------------


def test_perplexity_and_its_standard_error() -> None:
    assert perplexity.parse_perplexity(lines("perplexity")) == Estimate(393.6355, 131.94874)


def test_too_little_text_is_said_with_the_numbers() -> None:
    with pytest.raises(UsageProblem) as caught:
        perplexity.parse_perplexity(lines("perplexity_too_short"))
    assert caught.value.why == "It has 4 tokens; 256 are needed."


def test_a_model_with_a_nan_among_its_weights_is_found_out() -> None:
    with pytest.raises(GgufProblem, match="cannot be measured"):
        perplexity.parse_perplexity(lines("perplexity_not_a_number"))


@pytest.mark.parametrize(
    "text",
    [
        [],
        lines("perplexity")[:-1],
        ["Final estimate: PPL = nan +/- nan"],
        ["Final estimate: PPL = -nan +/- 0.1"],
        ["Final estimate: PPL is 393.6"],
    ],
)
def test_a_missing_or_strange_estimate_is_refused(text: list[str]) -> None:
    with pytest.raises(ToolchainProblem, match="something that ggq does not know"):
        perplexity.parse_perplexity(text)


def test_every_figure_of_a_divergence() -> None:
    assert perplexity.parse_divergence(lines("divergence")) == Divergence(
        perplexity=Estimate(33.077288, 2.356952),
        base_perplexity=Estimate(32.637128, 2.323165),
        ln_ppl_ratio=Estimate(0.013396, 0.003971),
        mean_kld=Estimate(0.010252, 0.000359),
        median_kld=Estimate(0.006008),
        p99_kld=Estimate(0.063863),
        max_kld=0.187150,
        same_top=Estimate(pytest.approx(0.92876), pytest.approx(0.00658)),
        rms_dp=Estimate(pytest.approx(0.02199), pytest.approx(0.00131)),
    )


def test_another_vocabulary_is_said_with_both_sizes() -> None:
    with pytest.raises(GgufProblem) as caught:
        perplexity.parse_divergence(lines("divergence_other_vocabulary"))
    assert caught.value.why == "The 16-bit GGUF has 4096 tokens, this model 512."


@pytest.mark.parametrize("missing", ["Mean    KLD", "99.0%   KLD", "Same top p", "RMS", "Mean PPL(base)"])
def test_a_summary_that_lacks_a_figure_is_refused(missing: str) -> None:
    text = [line for line in lines("divergence") if not line.startswith(missing)]
    with pytest.raises(ToolchainProblem, match="something that ggq does not know"):
        perplexity.parse_divergence(text)


def test_no_summary_at_all_is_refused() -> None:
    with pytest.raises(ToolchainProblem, match="something that ggq does not know"):
        perplexity.parse_divergence(lines("divergence_few_tokens"))


def test_figures_that_are_not_numbers_are_said() -> None:
    text = [line.replace("0.010252", "nan") for line in lines("divergence")]
    with pytest.raises(GgufProblem, match="cannot be measured"):
        perplexity.parse_divergence(text)


# ---- the tool --------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(Path(perplexity.__file__).read_text(encoding="utf-8")[:2000])
    return file


@pytest.mark.tool
def test_no_summary_is_lost_in_fifty_runs(
    toolchain: Toolchain, base_gguf: Path, text: Path, tmp_path: Path
) -> None:
    """Where it is lost, or says no number, saving the logits raises."""
    saved = tmp_path / "logits"
    seen = {
        perplexity.save_logits(toolchain, base_gguf, text, saved, HOW, chunks=1) and saved.read_bytes()
        for _ in range(50)
    }
    assert len(seen) == 1


# A log that is never flushed at exit: what the tools do without ggq's own source in them.
NO_FLUSH = "void _Z16common_log_flushP10common_log(void * log) { (void) log; }"


@pytest.mark.tool
@pytest.mark.skipif(sys.platform != "linux", reason="this system is not Linux")
def test_a_slow_reader_gets_the_summary_too(
    toolchain: Toolchain, base_gguf: Path, text: Path, tmp_path: Path
) -> None:
    """The race that loses last lines, made likely by a small pipe and a reader that lags behind.

    Beside it the same runs without the flush, so that this test is known to tell the difference.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or pytest.skip("there is no C compiler")
    (tmp_path / "no_flush.c").write_text(NO_FLUSH)
    process.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "no_flush.so", tmp_path / "no_flush.c"])
    command = [
        toolchain.tool("llama-perplexity"), "-m", base_gguf, "-f", text, "-c", "64", "--chunks", "1",
        "-t", "1", "-fit", "off", "-ngl", "0", "-lv", "4",
    ]  # fmt: skip
    without = {"LD_PRELOAD": str(tmp_path / "no_flush.so")}
    assert all(summary_arrives(command, {}) for _ in range(10))
    # It ends with the first loss, as a rule of the first ten.
    assert not all(summary_arrives(command, without) for _ in range(100))


def summary_arrives(command: list[str | Path], env: dict[str, str]) -> bool:
    """Run with a pipe of 4 KiB that is read late and by drops."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=writing, env={**os.environ, "OMP_NUM_THREADS": "1", **env}
    )
    os.close(writing)
    time.sleep(0.3)
    words = b""
    while block := os.read(reading, 512):
        words += block
        time.sleep(0.002)
    os.close(reading)
    assert child.wait() == 0
    return b"Final estimate" in words


@pytest.mark.tool
def test_too_little_text_is_said(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("def")
    with pytest.raises(UsageProblem, match="too short"):
        perplexity.save_logits(
            toolchain, base_gguf, tmp_path / "short.txt", tmp_path / "logits", Evaluation()
        )


@pytest.mark.tool
def test_logits_are_saved_cut_into_parts_and_compared_with(
    toolchain: Toolchain, base_gguf: Path, example: Path, tmp_path: Path
) -> None:
    how, text = Evaluation(context=128, threads=1), example / "heldout.txt"
    seen: list[int] = []
    whole = perplexity.save_logits(
        toolchain, base_gguf, text, tmp_path / "logits", how, chunks=4, on_chunk=seen.append
    )
    assert seen == [1, 2, 3, 4]
    assert (whole.context, whole.vocabulary_size, whole.chunk_count) == (128, 2048, 4)
    assert whole.path.stat().st_size == whole.file_bytes == logits_file.logits_bytes(2048, 128, 4)
    halves = [whole.part(first, 2, tmp_path / f"part{first}") for first in (0, 2)]
    assert [logits_file.read(half.path) for half in halves] == halves
    assert halves[0].chunks() + halves[1].chunks() == whole.chunks()
    # A model does not diverge from itself, but for the 16 bits in which the file keeps its probabilities.
    same = [perplexity.divergence(toolchain, base_gguf, part, how) for part in (whole, *halves)]
    assert all(abs(found.mean_kld.value) < 1e-4 and found.same_top.value > 0.99 for found in same)
    # Parts of one size: the mean of their log perplexities is the whole's.
    product = same[1].perplexity.value * same[2].perplexity.value
    assert product == pytest.approx(same[0].perplexity.value ** 2, rel=1e-5)


@pytest.mark.tool
def test_a_foreign_vocabulary_is_said(
    toolchain: Toolchain, base_gguf: Path, example: Path, tmp_path: Path, stories: Path, store: Store
) -> None:

    other = store.converted(toolchain, stories, "f32", by_hand=True)
    logits = perplexity.save_logits(
        toolchain, base_gguf, example / "heldout.txt", tmp_path / "logits", HOW, chunks=4
    )
    with pytest.raises(GgufProblem, match="vocabulary"):
        perplexity.divergence(toolchain, other, logits, HOW)


@pytest.mark.parametrize(
    "line, said",
    [
        ("kl_divergence: inconsistent vocabulary (600 vs 512)", "600 tokens, this model 512"),
        ("get_sub_batch: failed to add token 591 at index 3 (error -2, n = 64)", "the token 591"),
    ],
)
def test_either_line_tells_a_foreign_vocabulary(line: str, said: str) -> None:
    """Which of the two arrives is chance: the tool aborts, and its logger writes from a thread."""
    with pytest.raises(GgufProblem, match="vocabulary") as caught:
        perplexity.refuse_foreign_vocabulary(["first", line])
    assert said in caught.value.why


@pytest.mark.parametrize("content", [b"", b"_logits_", b"_logits_" + bytes(12), b"GGUF" + bytes(40)])
def test_a_file_that_is_no_logits_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "logits").write_bytes(content)
    with pytest.raises(ToolchainProblem, match="does not know"):
        logits_file.read(tmp_path / "logits")
