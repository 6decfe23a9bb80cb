"""The main job on real tools: same bytes as by hand, resumed from anywhere, nothing overwritten."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from completion import complete
from hubserver import HubServer
from job_plans import plan_convert_and_quantize, plan_quantize
from outputs import digests
from tiers import tier

import ggq
from ggq.errors import DiskFull, HubProblem, OutputProblem, UsageProblem
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files

pytestmark = [pytest.mark.tool, pytest.mark.usefixtures("shared_hollow_models")]

KILLS = tier(6, 20)
K_QUANTS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
UNVERIFIED = Settings(verify="off")


def test_ten_presets_are_llama_quantizes_own_bytes(
    larger: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    settings = Settings(keep_base=True)
    result = ggq.convert_and_quantize(str(larger), ["k-quants"], tmp_path / "ggq", settings)
    assert [file.preset for file in result.files] == list(K_QUANTS)
    assert result.base is not None
    by_hand = tmp_path / "hand.gguf"
    for file in result.files:
        tools.quantize(toolchain, result.base, by_hand, file.preset)
        assert files.sha256_file(by_hand) == files.sha256_file(file.paths[0]), file.preset
        assert file.size.fallback_count == 0
    # Fewer bits, fewer bytes: in the order of the group, ties excluded by name.
    sizes = {file.preset: file.size.file_bytes for file in result.files}
    assert sizes["Q2_K"] < sizes["Q3_K_M"] < sizes["Q4_K_M"] < sizes["Q5_K_M"] < sizes["Q6_K"] < sizes["Q8_0"]
    assert result.verification["logits_cosine"] >= 0.999


def test_a_model_that_mostly_falls_back_still_talks(
    stories: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    result = ggq.convert_and_quantize(str(stories), ["k-quants"], tmp_path)
    assert all(file.size.mostly_fell_back for file in result.files if file.preset != "Q8_0")
    for file in result.files:
        if file.preset in ("Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"):
            text = complete(toolchain, file.paths[0], "Once upon a time", 40)
            assert text.startswith("Once upon a time, there was a little girl named Lily"), (
                file.preset,
                text,
            )


def test_a_second_run_makes_nothing_and_a_third_only_what_is_missing(example: Path, tmp_path: Path) -> None:
    first = ggq.convert_and_quantize(str(example), ["Q4_K_M", "Q8_0"], tmp_path, UNVERIFIED)
    before = digests(tmp_path)
    assert not any(file.reused for file in first.files)
    assert set(before) == {"tiny-llama-Q4_K_M.gguf", "tiny-llama-Q8_0.gguf"}, "the base was not removed"

    second = ggq.convert_and_quantize(str(example), ["Q4_K_M", "Q8_0"], tmp_path, UNVERIFIED)
    assert all(file.reused for file in second.files)

    (tmp_path / "tiny-llama-Q8_0.gguf").unlink()
    third = ggq.convert_and_quantize(str(example), ["Q4_K_M", "Q8_0"], tmp_path, UNVERIFIED)
    assert [file.reused for file in third.files] == [True, False]
    assert digests(tmp_path) == before


def test_a_changed_option_makes_the_file_anew(example: Path, tmp_path: Path) -> None:
    from ggq.llamacpp.tools import QuantizeOptions

    plain = Settings(verify="off", keep_base=True)
    ggq.convert_and_quantize(str(example), ["Q4_K_M"], tmp_path, plain)
    before = digests(tmp_path)
    wider = Settings(verify="off", options=QuantizeOptions(output_tensor_type="q8_0"))
    heard: list[Event] = []
    again = ggq.convert_and_quantize(
        str(example), ["Q4_K_M"], tmp_path, wider, session=Session(listener=heard.append)
    )
    assert any(isinstance(it, Notice) and "Q4_K_M is made again" in it.text for it in heard)
    assert again.base == tmp_path / "tiny-llama-BF16.gguf", "it was kept before"
    after = digests(tmp_path)
    assert not again.files[0].reused
    assert after["tiny-llama-BF16.gguf"] == before["tiny-llama-BF16.gguf"]
    assert after["tiny-llama-Q4_K_M.gguf"] != before["tiny-llama-Q4_K_M.gguf"]


def test_quantize_starts_from_a_gguf_and_refuses_to_start_from_its_own_result(
    base_gguf: Path, tmp_path: Path
) -> None:
    made = ggq.quantize(base_gguf, ["q4_k_m"], tmp_path)
    assert made.files[0].paths[0].parent == tmp_path
    with pytest.raises(Exception, match="is quantized already"):
        ggq.quantize(made.files[0].paths[0], ["q2_k"], tmp_path)


def test_a_base_is_not_overwritten_by_its_own_preset(base_gguf: Path, tmp_path: Path) -> None:
    base = tmp_path / "model-BF16.gguf"
    base.write_bytes(base_gguf.read_bytes())
    with pytest.raises(UsageProblem, match="overwritten by itself"):
        ggq.quantize(base, ["bf16"])


def test_a_file_that_stands_in_the_way_stays(example: Path, tmp_path: Path) -> None:
    mine = tmp_path / "tiny-llama-Q4_K_M.gguf"
    mine.write_text("mine")
    with pytest.raises(OutputProblem, match="exists already"):
        ggq.convert_and_quantize(str(example), ["Q4_K_M"], tmp_path, UNVERIFIED)
    assert mine.read_text() == "mine"


def test_a_preset_with_the_bases_name_is_refused_before_any_work(example: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="overwritten by itself"):
        ggq.convert_and_quantize(str(example), ["bf16", "q8_0"], tmp_path, Settings(outtype="bf16"))
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_users_with_the_bases_name_is_not_removed(example: Path, tmp_path: Path) -> None:
    ggq.convert_and_quantize(str(example), ["Q8_0"], tmp_path, UNVERIFIED)
    mine = tmp_path / "tiny-llama-BF16.gguf"
    mine.write_text("mine")
    again = ggq.convert_and_quantize(str(example), ["Q8_0"], tmp_path, UNVERIFIED)
    assert again.files[0].reused and mine.read_text() == "mine"


def test_a_base_that_was_kept_stays_kept(example: Path, tmp_path: Path) -> None:
    """Also where the conversion is done again, or is never a file."""
    base = tmp_path / "tiny-llama-BF16.gguf"

    def run(preset: str, **changes: object) -> None:
        settings = replace(UNVERIFIED, **changes)
        ggq.convert_and_quantize(str(example), [preset], tmp_path, settings)

    run("Q4_0", keep_base=True)
    unchecked = files.sha256_file(base)
    run("Q8_0", verify="full")
    kept = files.sha256_file(base)
    assert kept != unchecked, "it says now that it was compared"
    base.write_bytes(b"damaged, and so of no use")
    with pytest.raises(OutputProblem, match="exists already"):
        run("Q5_0", verify="sampled")
    run("Q5_0", verify="sampled", force=True)
    assert files.sha256_file(base) == kept
    run("Q5_1")
    assert files.sha256_file(base) == kept


def test_force_takes_the_place_of_a_users_base_and_does_not_remove_it(example: Path, tmp_path: Path) -> None:
    base = tmp_path / "tiny-llama-BF16.gguf"
    base.write_bytes(b"of the user")
    settings = Settings(verify="sampled", force=True)
    ggq.convert_and_quantize(str(example), ["Q8_0"], tmp_path, settings)
    assert base.stat().st_size > 1_000_000


def test_a_base_of_the_same_name_from_elsewhere_is_another_model(base_gguf: Path, tmp_path: Path) -> None:
    one, other = (files.make_folder(tmp_path / name) / "m-BF16.gguf" for name in ("one", "other"))
    shutil.copy(base_gguf, one)
    other.write_bytes(base_gguf.read_bytes())
    out = tmp_path / "out"
    (first,) = ggq.quantize(one, ["Q8_0"], out).files
    with pytest.raises(OutputProblem, match="holds the files of another m") as refused:
        ggq.quantize(other, ["Q8_0"], out)
    assert str(one.parent) in refused.value.why
    assert ggq.quantize(one, ["Q8_0"], out).files[0].reused
    assert ggq.quantize(other, ["Q8_0"], out, Settings(force=True)).files[0].paths == first.paths


def test_what_needs_a_matrix_is_refused_before_the_conversion(example: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="IQ2_XS needs an imatrix"):
        ggq.convert_and_quantize(str(example), ["Q8_0", "iq2_xs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ggq.convert_and_quantize(str(example), ["q8_0"], tmp_path / "done")
    done = plan_convert_and_quantize(str(example), ["q8_0"], tmp_path / "done")
    assert done.base is None and done.needed_bytes == 0, "there is nothing to do"
    with pytest.raises(UsageProblem, match="IQ2_XS needs an imatrix"):
        plan_convert_and_quantize(str(example), ["iq2_xs"], tmp_path / "out")


def test_the_records_beside_a_checkpoint_are_no_part_of_it(stories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    for reused in (False, True):
        made = ggq.convert_and_quantize(str(folder), ["Q8_0"], folder, UNVERIFIED)
        assert made.files[0].reused is reused
        (folder / "ggq-bench.json").write_text("{}")


def test_a_dry_run_knows_every_byte_and_writes_nothing(base_gguf: Path, tmp_path: Path) -> None:
    chosen, out = [*K_QUANTS, "legacy"], tmp_path / "out"
    planned = plan_quantize(base_gguf, chosen, out).files
    assert not out.exists() and all(file.exact and not file.made for file in planned)
    made = ggq.quantize(base_gguf, chosen, out).files
    for before, after in zip(planned, made, strict=True):
        assert (before.name, before.size.file_bytes) == (after.paths[0].name, after.size.file_bytes)
        assert before.size.bits_per_weight == pytest.approx(after.size.bits_per_weight, abs=1e-4)
        assert (before.size.fallback_count, before.size.quantized_count) == (
            after.size.fallback_count,
            after.size.quantized_count,
        )
    again = plan_quantize(base_gguf, chosen, out)
    assert all(file.made for file in again.files) and again.needed_bytes == 0


@pytest.mark.parametrize("outtype", ["auto", "f16", "f32"])
def test_a_dry_run_of_a_checkpoint_knows_every_byte(outtype: str, stories: Path, tmp_path: Path) -> None:
    settings = Settings(outtype=outtype, keep_base=True, verify="off")
    words = (str(stories), ["q4_k_m", "q8_0"], tmp_path / "out", settings)
    plan = plan_convert_and_quantize(*words)
    assert not (tmp_path / "out").exists()
    made = ggq.convert_and_quantize(*words)
    assert made.base is not None and plan.base is not None and plan.base.kept
    assert (plan.base.name, plan.base.file_bytes) == (made.base.name, made.base.stat().st_size)
    assert [file.size.file_bytes for file in plan.files] == [file.size.file_bytes for file in made.files]
    assert [file.size.fallback_count for file in plan.files] == [
        file.size.fallback_count for file in made.files
    ]
    assert any(file.size.mostly_fell_back for file in plan.files)


def test_a_dry_run_refuses_what_the_run_refuses(base_gguf: Path, example: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-llama-Q8_0.gguf").write_text("precious")
    for force in (False, True):
        settings = Settings(force=force)
        for planned in (
            partial(plan_quantize, base_gguf, ["q8_0"], tmp_path, settings),
            partial(plan_convert_and_quantize, str(example), ["q8_0"], tmp_path, settings),
        ):
            if force:
                assert not planned().files[0].made
            else:
                with pytest.raises(OutputProblem, match=r"tiny-llama-Q8_0.gguf exists already"):
                    planned()
    ggq.convert_and_quantize(str(example), ["q4_0"], tmp_path / "done")
    other = tmp_path / "tiny-llama"
    shutil.copytree(example, other, copy_function=shutil.copyfile)
    with pytest.raises(OutputProblem, match="holds the files of another tiny-llama"):
        plan_convert_and_quantize(str(other), ["q4_0"], tmp_path / "done")
    for plan_it in (plan_convert_and_quantize, ggq.convert_and_quantize):
        with pytest.raises(OutputProblem, match="cannot be written"):
            plan_it(str(example), ["q4_0"], example / "config.json" / "out")


def test_a_dry_run_knows_what_an_earlier_run_made(example: Path, tmp_path: Path) -> None:
    model, out = str(example), tmp_path / "out"
    ggq.convert_and_quantize(model, ["q4_0"], out, UNVERIFIED)

    def states(settings: Settings, *names: str) -> tuple[list[bool], bool, int]:
        plan = plan_convert_and_quantize(model, names, out, settings)
        return [file.made for file in plan.files], plan.base is not None, plan.needed_bytes

    assert states(UNVERIFIED, "q4_0") == ([True], False, 0)
    assert states(UNVERIFIED, "q4_0", "q8_0")[0] == [True, False]
    other = replace(UNVERIFIED, options=QuantizeOptions(output_tensor_type="q8_0"))
    made, has_base, needed_bytes = states(other, "q4_0")
    assert not made[0] and not has_base and needed_bytes > 0, "of other options it is made again"
    # The base: to keep where it is not there, and as it was where it is.
    keeping = replace(UNVERIFIED, keep_base=True)
    assert states(keeping, "q4_0")[:2] == ([True], True)
    ggq.convert_and_quantize(model, ["q4_0"], out, keeping)
    assert states(keeping, "q4_0", "q8_0")[:2] == ([True, False], False)
    (out / "tiny-llama-F16.gguf").write_text("precious")
    with pytest.raises(OutputProblem, match=r"tiny-llama-F16.gguf exists already"):
        states(replace(keeping, outtype="f16"), "q4_0")


def test_a_dry_run_counts_a_matrix_that_is_there(example: Path, tmp_path: Path) -> None:
    settings = replace(UNVERIFIED, imatrix="auto", imatrix_text=example / "heldout.txt")
    before = plan_convert_and_quantize(str(example), ["q4_k_m"], tmp_path, settings)
    (made,) = ggq.convert_and_quantize(str(example), ["q4_k_m"], tmp_path, settings).files
    after = plan_convert_and_quantize(str(example), ["q4_k_m"], tmp_path, settings)
    assert before.makes_imatrix and not after.makes_imatrix
    assert after.files[0].made
    assert after.files[0].size.file_bytes == made.size.file_bytes == before.files[0].size.file_bytes


def test_a_dry_run_says_that_the_disk_is_too_small(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 1_000_000)
    plan = plan_convert_and_quantize(str(example), ["q8_0"], tmp_path / "out", UNVERIFIED)
    assert plan.missing_bytes == plan.needed_bytes - 1_000_000 > 0


@pytest.mark.hub
def test_what_can_be_refused_is_refused_before_the_download(
    hub: HubServer, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (example / "model.safetensors").stat().st_size
    hub.add_repo("org/tiny-llama", example)
    out = tmp_path / "out"
    run = partial(ggq.convert_and_quantize, "org/tiny-llama", ["q8_0"], out)
    with pytest.raises(HubProblem):
        ggq.convert_and_quantize("org/tiny-lama", ["q8_0"], out)
    assert not out.exists(), "a wrong name leaves no folder"
    out.mkdir()
    (out / "tiny-llama-Q8_0.gguf").write_text("precious")
    with pytest.raises(OutputProblem, match="exists already"):
        run()
    (out / "tiny-llama-Q8_0.gguf").unlink()
    # The cache and the folder lie on one disk, which has room for the download alone.
    with monkeypatch.context() as short:
        short.setattr(files, "free_bytes", lambda _: weights + 500_000)
        with pytest.raises(DiskFull, match="the download of org/tiny-llama and the files") as refused:
            run()
        assert "--stream" in refused.value.next_step
    # The header alone was read, to say what the files will weigh.
    header = hub.bytes_sent("model.safetensors")
    assert header <= 32 << 10
    assert run().files[0].size.file_bytes > 0
    assert hub.bytes_sent("model.safetensors") == header + weights


def test_killed_at_random_moments_it_ends_with_the_same_bytes(example: Path, tmp_path: Path) -> None:
    """kill -9, KILLS times, each followed by the same command in the same folder."""
    command = [
        sys.executable, "-m", "ggq", "convert-and-quantize", str(example),
        "--preset", "q2_k,q4_k_m,q8_0", "--keep-base", "-q", "--outdir",
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run([*command, tmp_path / "undisturbed"], check=True)
    whole = time.monotonic() - started
    expected = digests(tmp_path / "undisturbed")
    assert len(expected) == 4

    rng = random.Random(20)
    kills = finished = 0
    folder = tmp_path / "killed-0"
    while kills < KILLS:
        child = subprocess.Popen([*command, folder], stderr=subprocess.DEVNULL)
        try:
            child.wait(timeout=rng.uniform(0.05, whole))
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            for path in folder.glob("*.gguf"):
                assert files.sha256_file(path) == expected[path.name], "a partial file under a final name"
        else:
            assert child.returncode == 0
            assert digests(folder) == expected
            finished += 1
            folder = tmp_path / f"killed-{finished}"
    subprocess.run([*command, folder], check=True)
    assert digests(folder) == expected
    assert sorted(path.name for path in folder.iterdir()) == [
        "tiny-llama-BF16.gguf", "tiny-llama-Q2_K.gguf", "tiny-llama-Q4_K_M.gguf", "tiny-llama-Q8_0.gguf",
        "tiny-llama.ggq.json",
    ]  # fmt: skip


def test_the_manifest_says_what_was_done(example: Path, tmp_path: Path) -> None:
    result = ggq.convert_and_quantize(str(example), ["Q4_K_M"], tmp_path)
    manifest = Manifest(result.manifest)
    convert, quantized = manifest.steps["convert"], manifest.steps["quantize Q4_K_M"]
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= convert.inputs.keys()
    assert quantized.inputs["base"] == convert.outputs[0].sha256
    # Peaks are None for a child that stays below what this process, from which the kernel counts, has itself.
    assert convert.seconds > 0 and quantized.seconds > 0
    assert json.loads(result.manifest.read_text())["environment"]["llama_cpp_commit"]
