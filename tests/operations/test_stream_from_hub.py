"""``--stream``: a Hub checkpoint quantized while it is read, nothing of its weights kept, whatever breaks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from ctrl_c import heed_ctrl_c
from hubserver import HubServer
from job_plans import plan_convert_and_quantize
from outputs import converters, digests, finished, watched
from tiny import mixtral

import ggq
from ggq.checkpoint import checkpoint
from ggq.cli.main import cli
from ggq.errors import Damaged, HubProblem, UsageProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations import plan
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files

pytestmark = [pytest.mark.tool, pytest.mark.hub]

FILE = "model.safetensors"
STREAM = Settings(verify="off", stream=True)
PRESETS = ["q2_k", "q4_k_m", "q6_k"]


def weight_start(model: Path) -> int:
    """Where the tensors' data begin in a checkpoint's one file."""
    return 8 + int.from_bytes((model / FILE).read_bytes()[:8], "little")


def without_stream(model: Path, folder: Path, presets: list[str]) -> dict[str, str]:
    """The same files from the same repository, downloaded and made by the converter and llama-quantize."""
    settings = Settings(verify="off", engine="llama-quantize")
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(folder / "hf"))
        hub.add_repo(f"org/{model.name}", model)
        ggq.convert_and_quantize(f"org/{model.name}", presets, folder / "out", settings)
    return digests(folder / "out")


@pytest.fixture(scope="module")
def expected(larger: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return without_stream(larger, tmp_path_factory.mktemp("without-stream"), PRESETS)


def test_on_a_bad_line_the_files_are_the_same_and_the_disk_holds_nothing_else(
    hub: HubServer,
    larger: Path,
    expected: dict[str, str],
    tmp_path: Path,
    isolated_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add_repo("org/larger-llama", larger)
    dice = random.Random(5)
    for _ in range(3):
        hub.fault(FILE, cut_after_bytes=dice.randrange(40_000, 4_000_000))
        hub.fault(FILE, status=dice.choice((500, 502, 503)), times=dice.randrange(1, 3))
    hub.fault(FILE, bytes_per_s=4e6)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    outdir, heard = tmp_path / "out", list[Event]()
    with watched(outdir, scratch, isolated_environment) as seen:
        made = ggq.convert_and_quantize(
            "org/larger-llama", PRESETS, outdir, STREAM, session=Session(listener=heard.append)
        )
    assert digests(outdir) == expected
    # Beside the files: config and tokenizer in the Hub cache, headers, and what the converter makes of them.
    assert max(seen) <= sum(file.size.file_bytes for file in made.files) + (1 << 20)
    first = 32 << 10  # that much is read of a file to learn its header
    data = (larger / FILE).stat().st_size - weight_start(larger)
    assert hub.bytes_sent(FILE) <= first + data + (1 << 16), "something was fetched twice"
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert any("that the Hub announces" in text for text in said)
    assert sum("trying again" in text for text in said) >= 5
    # A later run finds that the checkpoint is the same, by whatever way it comes.
    again = ggq.convert_and_quantize("org/larger-llama", PRESETS, outdir, Settings(verify="off"))
    assert all(file.reused for file in again.files)


def test_broken_off_it_goes_on_with_the_first_tensor_that_is_not_finished(
    hub: HubServer, larger: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    hub.add_repo("org/larger-llama", larger)
    names = {tensor.name: tensor for tensor in checkpoint.read(larger).tensors}
    words = ["convert-and-quantize", "org/larger-llama", "--preset", ",".join(PRESETS), "--stream"]
    command = [sys.executable, "-m", "ggq", *words, "--verify", "off", "--outdir", str(tmp_path)]
    before: list[str] = []
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        hub.log.clear()
        slow = hub.fault(FILE, bytes_per_s=2e6, times=99)
        with subprocess.Popen(
            command, stderr=subprocess.DEVNULL, preexec_fn=heed_ctrl_c, env=os.environ
        ) as child:
            deadline = time.monotonic() + 120
            while len(finished(tmp_path, "larger-llama")) < len(before) + 3:
                assert time.monotonic() < deadline and child.poll() is None
                time.sleep(0.005)
            below = psutil.Process(child.pid).children(recursive=True)
            child.send_signal(number)
            child.wait(timeout=30)
        slow.times = 0
        assert below and not psutil.wait_procs(below, timeout=10)[1], "the converter lives on"
        assert not digests(tmp_path)
        after = finished(tmp_path, "larger-llama")
        assert after[: len(before)] == before and len(after) == len(set(after)), "a tensor was made twice"
        if before:
            assert _first_byte_asked_for(hub) >= _end_of_first(larger, len(before))
        before = after
    hub.log.clear()
    made = ggq.convert_and_quantize("org/larger-llama", PRESETS, tmp_path, STREAM)
    assert _first_byte_asked_for(hub) >= _end_of_first(larger, len(before))
    assert len(names) > len(before)
    assert Manifest(made.manifest).steps["quantize Q4_K_M"].findings["kept_pairs"] >= len(before)
    assert digests(tmp_path) == expected


def _first_byte_asked_for(hub: HubServer) -> int:
    """Of the tensors' data: the header is asked for from the file's first byte on."""
    return min(start for start in hub.resumed_at(FILE) if start)


def _end_of_first(model: Path, count: int) -> int:
    """Where the first ``count`` tensors of the file end; the base has its tensors in the same order."""
    with (model / FILE).open("rb") as stream:
        header = json.loads(stream.read(weight_start(model))[8:])
    ends = sorted(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return weight_start(model) + int(ends[count - 1])


def test_experts_are_merged_out_of_order_and_it_is_said(
    hub: HubServer, example: Path, tmp_path: Path
) -> None:
    mixtral(tmp_path / "tiny-mixtral", example)
    hub.add_repo("org/tiny-mixtral", tmp_path / "tiny-mixtral")
    expected = without_stream(tmp_path / "tiny-mixtral", tmp_path / "without", ["q4_k_m"])
    heard: list[Event] = []
    ggq.convert_and_quantize(
        "org/tiny-mixtral", ["q4_k_m"], tmp_path / "out", STREAM, session=Session(listener=heard.append)
    )
    assert digests(tmp_path / "out") == expected
    size = (tmp_path / "tiny-mixtral" / FILE).stat().st_size
    assert hub.bytes_sent(FILE) <= (32 << 10) + 2 * size
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert any("could not be checked" in text for text in said)

    def reused(settings: Settings) -> bool:
        made = ggq.convert_and_quantize("org/tiny-mixtral", ["q4_k_m"], tmp_path / "out", settings)
        return made.files[0].reused

    # A stream does no better the next time; a download does.
    assert reused(STREAM) and not reused(replace(STREAM, stream=False)) and reused(STREAM)
    assert digests(tmp_path / "out") == expected


def test_what_arrives_damaged_is_worth_nothing(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    fault = hub.fault(FILE, flip_byte=weight_start(example) + 400_000, times=9)
    with pytest.raises(Damaged):
        ggq.convert_and_quantize("org/tiny-llama", ["q8_0"], tmp_path / "out", STREAM)
    assert not list((tmp_path / "out").glob("*.gguf")) and not list((tmp_path / "out").glob(".ggq-sweep*"))
    assert not converters()
    fault.times = 0
    ggq.convert_and_quantize("org/tiny-llama", ["q8_0"], tmp_path / "out", STREAM)


def test_weights_that_are_gone_are_told_in_the_hubs_words(
    hub: HubServer, example: Path, tmp_path: Path
) -> None:
    at_the_content_network = f"/models/org/tiny-llama/{hub.add_repo('org/tiny-llama', example).refs['main']}"
    hub.fault(f"{at_the_content_network}/{FILE}")  # the header comes
    hub.fault(f"{at_the_content_network}/{FILE}", status=404, times=9)
    with pytest.raises(HubProblem, match="The Hub refused a request"):
        ggq.convert_and_quantize("org/tiny-llama", ["q8_0"], tmp_path / "out", STREAM)
    assert not converters()


def test_what_is_in_the_cache_is_not_read_again(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    assert CliRunner().invoke(cli, ["download", "org/tiny-llama"]).exit_code == 0
    before = hub.bytes_sent()
    heard: list[Event] = []
    ggq.convert_and_quantize(
        "org/tiny-llama",
        ["q8_0"],
        tmp_path / "out",
        replace(STREAM, keep_base=False),
        session=Session(listener=heard.append),
    )
    assert hub.bytes_sent() == before
    assert any(isinstance(event, Notice) and "nothing is streamed" in event.text for event in heard)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--keep-base"], "--keep-base asks for it"),
        (["--engine", "llama-quantize"], "llama-quantize reads it"),
        (["--imatrix", "auto"], "imatrix is to be made"),
    ],
)
def test_what_needs_a_base_is_refused_before_anything(
    hub: HubServer, example: Path, tmp_path: Path, words: list[str], why: str
) -> None:
    hub.add_repo("org/tiny-llama", example)
    done = CliRunner().invoke(
        cli,
        ["convert-and-quantize", "org/tiny-llama", "--preset", "q8_0", "--stream", *words,
         "--outdir", str(tmp_path / "out")],
    )  # fmt: skip
    assert done.exit_code == 2 and why in " ".join(done.stderr.split())
    assert not hub.log and not (tmp_path / "out").exists()


def test_a_folder_is_not_streamed(example: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="is on this disk already"):
        ggq.convert_and_quantize(str(example), ["q8_0"], tmp_path, STREAM)


def test_a_dry_run_says_what_is_read_and_not_kept(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    done = CliRunner().invoke(
        cli,
        ["convert-and-quantize", "org/tiny-llama", "--preset", "q8_0", "--stream", "--dry-run",
         "--outdir", str(tmp_path / "out")],
    )  # fmt: skip
    assert done.exit_code == 0 and "of which the weights are not kept" in done.stdout
    assert "on the way" not in done.stdout
    made = ggq.convert_and_quantize("org/tiny-llama", ["q8_0"], tmp_path / "here").files[0].size.file_bytes
    assert f"{made:,}" in done.stdout, "to the byte"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_no_stream_can_make(
    hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    hub.add_repo("org/tiny-llama", example)
    unknown = replace(toolchain, commit=None)
    for run in (plan_convert_and_quantize, ggq.convert_and_quantize):
        with pytest.raises(UsageProblem, match="cannot be made from a stream"):
            run("org/tiny-llama", ["q8_0"], tmp_path / "out", STREAM, session=Session(unknown))


def test_where_the_checkpoint_has_no_room_the_plan_names_the_only_way(
    hub: HubServer, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/tiny-llama", example)
    settings = PlanSettings(speed_budget_s=0)
    assert not plan.plan("org/tiny-llama", ["q8_0"], settings).must_be_streamed
    monkeypatch.setattr(files, "free_bytes", lambda _: 1 << 20)
    done = CliRunner().invoke(cli, ["plan", "org/tiny-llama", "--preset", "q8_0", "--no-speed"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "--stream is the only way here" in said
    assert "ggq convert-and-quantize org/tiny-llama --preset Q8_0 --stream" in said
