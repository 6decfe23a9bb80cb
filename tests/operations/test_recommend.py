"""`ggq recommend`: the choice, its reasons, and what is said when there is none."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import ggq
from ggq.cli.main import cli
from ggq.errors import CannotServe, DoesNotFit
from ggq.estimation.estimator import PresetSize
from ggq.estimation.hollow_model import ModelSource
from ggq.estimation.memory import MemoryEstimate
from ggq.estimation.placement import Room
from ggq.estimation.speed import RateEstimate, SpeedEstimate
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.rpc import loopback_device
from ggq.llamacpp.server import Companions
from ggq.llamacpp.threads import ThreadChoice
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.model_ref import ModelRef
from ggq.operations.plan import plan
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.plan_types import LoadPlan, Plan, PresetPlan
from ggq.operations.recommend import make_command, recommend
from ggq.operations.recommend_types import Limits
from ggq.presets import catalogue as presets
from ggq.presets.published_kld import PublishedKld
from ggq.session import Session
from ggq.system import process

GB = 1_000_000_000
QUIET = PlanSettings(speed_budget_s=0, threads=1)


def preset(name: str, gigabytes: float, kld: float, tokens_per_s: float, layers: int = 0) -> PresetPlan:
    """A preset as it would be planned, with 16 GB of RAM."""
    speed = RateEstimate(tokens_per_s, 0.03)
    memory = MemoryEstimate(4096, "f16", "f16", int(gigabytes * GB), 0, 0, 0, 0, 0, 16 * GB, ())
    estimate = SpeedEstimate(speed, speed, speed, 4096, ThreadChoice(2, 2), (1, 4))
    load = LoadPlan(Offload(n_gpu_layers=layers), memory, estimate)
    size = PresetSize(int(gigabytes * GB), 8.0, 0, 10, False)
    return PresetPlan(name, size, (load,), PublishedKld("Another", "a table", kld))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, toolchain: Toolchain) -> list[PresetPlan]:
    """What the plan will say; the choosing is under test, and plans have tests of their own."""
    given: list[PresetPlan] = []

    def plan(*_: object, **__: object) -> Plan:
        return Plan(
            source=ModelSource("tiny"),
            parameter_count=1,
            context_length=4096,
            layer_count=33,
            devices=("CUDA0",),
            room=Room(16 * GB),
            companions=Companions(),
            companions_room=Room(0),
            threads=ThreadChoice(2, 2),
            is_elsewhere=False,
            presets=tuple(given),
            disk_free_bytes=1,
            seconds=1.0,
        )

    monkeypatch.setitem(recommend.__globals__, "plan", plan)
    return given


def choice(limits: Limits | None = None) -> str:
    return recommend("org/tiny", limits=limits).chosen.preset


def test_speed_and_loss_decide_and_not_what_is_largest(planned: list[PresetPlan]) -> None:
    # The larger one runs half on the CPU, the smaller one on the card: the speed decides.
    planned += [preset("Q4_K_M", 5, 0.031, 20.0, layers=33), preset("Q6_K", 7, 0.005, 8.0, layers=20)]
    assert choice() == "Q4_K_M"
    # Both are quicker than anybody reads: the loss decides.
    planned[:] = [preset("Q4_K_M", 5, 0.031, 90.0), preset("Q6_K", 7, 0.005, 60.0)]
    assert choice() == "Q6_K"
    assert choice(Limits(prefer="speed")) == "Q4_K_M"
    # Both are slower than reading: quality asks for more of it all the same, speed does not.
    planned[:] = [preset("Q4_K_M", 5, 0.031, 3.0), preset("Q6_K", 7, 0.005, 2.0)]
    assert choice() == "Q4_K_M"
    assert choice(Limits(prefer="quality")) == "Q6_K"


def test_limits_are_kept_or_the_nearest_is_named(planned: list[PresetPlan]) -> None:
    planned += [
        preset("Q2_K", 3, 0.445, 12.0),
        preset("Q4_K_M", 5, 0.031, 8.0),
        preset("Q8_0", 9, 0.001, 5.0),
    ]
    assert choice(Limits(min_tokens_per_s=10)) == "Q2_K"
    assert choice(Limits(max_kld=0.01)) == "Q8_0"
    with pytest.raises(DoesNotFit) as refused:
        choice(Limits(min_tokens_per_s=10, max_kld=0.01))
    assert (
        "Q2_K, makes 12 tokens/s with a full context" in refused.value.why
        and "Q8_0 loses least" in refused.value.why
    )
    assert refused.value.exit_code == 3


def test_what_does_not_fit_or_cannot_be_made_is_no_choice(planned: list[PresetPlan]) -> None:
    iq = preset("IQ2_M", 3, 0.1, 30.0)
    planned += [preset("Q8_0", 20, 0.001, 50.0), preset("Q4_K_M", 5, 0.031, 8.0)]
    planned.append(replace(iq, size=replace(iq.size, needs_imatrix=True)))
    planned.append(replace(iq, preset="MINE", published=None))
    found = recommend("org/tiny")
    assert (found.chosen.preset, found.others) == ("Q4_K_M", ())
    planned[:] = planned[-2:]
    with pytest.raises(CannotServe, match="nothing to choose from"):
        recommend("org/tiny")


def test_what_was_not_timed_comes_last(planned: list[PresetPlan]) -> None:
    slow, untimed = preset("Q4_K_M", 5, 0.031, 0.4), preset("Q8_0", 9, 0.001, 1.0)
    planned += [replace(untimed, loads=(replace(untimed.loads[0], speed=None),)), slow]
    found = recommend("org/tiny")
    assert (found.chosen.preset, [it.preset for it in found.others]) == ("Q4_K_M", ["Q8_0"])


def test_without_any_speed_what_is_whole_on_the_gpu_is_preferred(planned: list[PresetPlan]) -> None:
    for made in (preset("Q4_K_M", 5, 0.031, 1, layers=33), preset("Q8_0", 9, 0.001, 1, layers=20)):
        planned.append(replace(made, loads=(replace(made.loads[0], speed=None),)))
    assert choice() == "Q4_K_M"


def test_the_slowest_speed_is_held_against_the_limit(planned: list[PresetPlan]) -> None:
    deep = preset("Q4_K_M", 5, 0.031, 12.0)
    [cell] = deep.loads
    assert cell.speed is not None
    full = replace(cell.speed, full_context=RateEstimate(6.0, 0.03))
    planned.append(replace(deep, loads=(replace(cell, speed=full),)))
    with pytest.raises(DoesNotFit, match="6 tokens/s"):
        choice(Limits(min_tokens_per_s=10))


def test_the_reasons_have_the_numbers(planned: list[PresetPlan]) -> None:
    planned += [preset("Q4_K_M", 5, 0.031, 20.0, layers=33), preset("Q6_K", 7, 0.005, 15.0, layers=33)]
    found = recommend("org/tiny")
    fits, speed, loss = found.reasons
    assert "5.00 GB of the 16.0 GB of RAM that may be used, 33 of 33 layers on CUDA0" in fits
    assert "generates 20 tokens/s (± 3%)" in speed
    assert "mean KLD is 0.0310 (published for Another); Q6_K would have KLD 0.0050, 25% slower" in loss
    assert found.trades == ("KLD 0.0050, 25% slower, 2.00 GB larger",)
    assert found.commands["make"] == ("ggq", "convert-and-quantize", "org/tiny", "--preset", "Q4_K_M")
    served = " ".join(found.commands["serve"])
    assert "tiny/tiny-Q4_K_M.gguf -c 4096 -ngl 33" in served and "-t 2" in served
    assert found.llama is not None and found.llama["n_gpu_layers"] == 33 and found.llama["n_ctx"] == 4096


def test_what_cannot_be_made_is_not_the_nearest(planned: list[PresetPlan]) -> None:
    small = preset("IQ1_S", 5, 0.9, 9)
    planned += [preset("Q8_0", 20, 0.001, 5), replace(small, size=replace(small.size, needs_imatrix=True))]
    with pytest.raises(DoesNotFit, match="The nearest, Q8_0, takes 20") as refused:
        recommend("org/tiny")
    assert "IQ1_S" not in str(refused.value)


def test_the_command_makes_what_was_planned(planned: list[PresetPlan]) -> None:
    planned.append(preset("Q4_K_M", 5, 0.02, 20))
    found = recommend("org/tiny@v1", session=Session(offline=True))
    assert found.commands["make"][2:] == ("org/tiny@v1", "--preset", "Q4_K_M", "--offline")
    made = make_command(ModelRef("hub", "org/m"), "Q4_K_M", found.plan, Session())
    assert made == ("ggq", "convert-and-quantize", "org/m", "--preset", "Q4_K_M")
    size = replace(planned[0].size, needs_imatrix=True)
    unlikely = replace(found.plan, presets=(replace(planned[0], size=size),))
    assert make_command(ModelRef("hub", "org/m"), "Q4_K_M", unlikely, Session())[5:] == ("--imatrix", "auto")


# --- on real plans ---------------------------------------------------------------------------------------


@pytest.mark.tool
def test_the_commands_run(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    """The Python call, with the file that the first command makes."""
    found = recommend(example, ["Q4_K_M"], settings=QUIET, session=Session(toolchain=toolchain))
    made = CliRunner().invoke(
        cli, [*found.commands["make"][1:], "--outdir", str(tmp_path), "-q"], catch_exceptions=False
    )
    assert made.exit_code == 0
    file = tmp_path / Path(found.commands["serve"][2]).name
    assert file.is_file()
    call = f"llama_cpp.Llama({str(file)!r}, verbose=False, **{dict(found.llama or {})!r})"
    code = f"import llama_cpp; print(len({call}('Once', max_tokens=2, temperature=0)['choices']))"
    run = [sys.executable, "-c", code]
    done = process.run(run, env={"LLAMA_CPP_LIB_PATH": str(toolchain.lib_dir)}, cwd=toolchain.lib_dir)
    assert done.stdout[-1] == "1"
    # llama-server knows every option: it stops at the file, which is not there.
    ended = process.run(found.commands["serve"], check=False, cwd=tmp_path)
    assert ended.returncode != 0 and "invalid argument" not in "\n".join((*ended.stderr, *ended.stdout))
    assert "failed to open" in "\n".join((*ended.stderr, *ended.stdout))


@pytest.mark.tool
def test_the_loss_of_a_record_takes_the_published_ones_place(
    example: Path, stories: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    names = ["Q4_K_M", "Q8_0"]
    arguments = ["convert-and-quantize", str(example), "--preset", ",".join(names), "--keep-base", "-q"]
    assert CliRunner().invoke(cli, [*arguments, "--outdir", str(tmp_path)]).exit_code == 0
    text = example / "heldout.txt"
    files = [str(next(tmp_path.glob(f"*-{name}.gguf"))) for name in ("BF16", *names)]
    bench = ["bench", "quality", *files, "--text", str(text), "--chunks", "4", "-c", "128", "-q"]
    record = tmp_path / "record.json"
    shown = CliRunner().invoke(cli, [*bench, "-o", str(record)])
    assert shown.exit_code == 0, shown.stderr
    before = recommend(example, names, settings=QUIET, session=Session(toolchain=toolchain))
    after = recommend(
        example, names, limits=Limits(records=(record,)), settings=QUIET, session=Session(toolchain=toolchain)
    )
    assert not before.chosen.measured and after.chosen.measured
    assert before.chosen.kld != after.chosen.kld
    assert "(measured)" in after.reasons[-1]
    # A preset of the user's own is found by its file's name, whatever that looks like.
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[preset.MY_Q4_K_M]\nftype = "Q4_K_M"\nbits_per_weight = 4.9\nsummary = "Mine."\nuse = "Mine."\n'
    )
    written = json.loads(record.read_text())
    renamed = json.dumps(written).replace("tiny-llama-Q4_K_M.gguf", "tiny-llama-MY_Q4_K_M.gguf")
    record.write_text(renamed)
    catalogue = presets.load(mine)
    own = recommend(
        example,
        ["MY_Q4_K_M"],
        limits=Limits(records=(record,)),
        settings=QUIET,
        session=Session(catalogue=catalogue),
    )
    assert own.chosen.preset == "MY_Q4_K_M" and own.chosen.measured
    with pytest.raises(CannotServe, match="no measured KLD"):
        recommend(
            stories,
            names,
            limits=Limits(records=(record,)),
            settings=QUIET,
            session=Session(toolchain=toolchain),
        )


@pytest.mark.tool
def test_when_nothing_fits_a_shorter_context_is_named(larger: Path, toolchain: Toolchain) -> None:
    small = replace(QUIET, contexts=(512, 1024), type_k=(CacheType.Q8_0,))
    shorter, whole = plan(larger, ["Q8_0"], small, session=Session(toolchain=toolchain)).presets[0].loads
    room = whole.memory.ram_bytes - 1
    assert shorter.memory.ram_bytes < room
    settings = replace(QUIET, contexts=(1024,), ram_bytes=room, reserve_ram_bytes=0)
    with pytest.raises(DoesNotFit, match="fits with -c 512 -ctk q8_0"):
        recommend(larger, ["Q8_0"], settings=settings, session=Session(toolchain=toolchain))


@pytest.mark.tool
def test_a_draft_is_served_with_it(example: Path, base_gguf: Path, toolchain: Toolchain) -> None:
    found = recommend(
        example, ["Q8_0"], settings=replace(QUIET, draft=base_gguf), session=Session(toolchain=toolchain)
    )
    served = list(found.commands["serve"])
    assert served[served.index("-md") + 1] == str(base_gguf) and "draft-simple" in served
    assert found.llama is None
    served[2] = "missing.gguf"
    ended = process.run(served, check=False)
    words = "\n".join((*ended.stderr, *ended.stdout))
    assert "failed to open" in words and "invalid argument" not in words


@pytest.mark.tool
@pytest.mark.parametrize("layers", [None, 0], ids=["model-on-devices", "model-on-cpu"])
def test_a_draft_is_served_where_it_was_planned(
    layers: int | None, example: Path, base_gguf: Path, toolchain: Toolchain
) -> None:
    with loopback_device(toolchain) as first, loopback_device(toolchain) as second:
        settings = replace(QUIET, draft=base_gguf, rpc=(first, second), n_gpu_layers=layers)
        served = recommend(
            example, ["Q8_0"], settings=settings, session=Session(toolchain=toolchain)
        ).commands["serve"]
        words = list(served)
        words[2] = str(base_gguf)
        said: list[str] = []
        child: list[int] = []

        def hear(line: str) -> None:
            said.append(line)
            if "listening" in line:
                os.kill(child[0], signal.SIGKILL)

        process.run(
            [*words, "--port", "0", "-lv", "4"], watch=process.Watch(hear, hear, child.append),
            check=False, timeout_s=120,
        )  # fmt: skip
    model, draft = (re.findall(r"RPC\d\[(\S+)\] KV buffer", "\n".join(it)) for it in _loads(said))
    assert set(model) <= {first, second} and bool(model) == (layers is None)
    assert draft == [first]


def _loads(said: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines of the model's load, and those of the draft's."""
    starts = [index for index, line in enumerate(said) if "CPU_Mapped model buffer" in line]
    assert len(starts) == 2, said
    return list(said[: starts[1]]), list(said[starts[1] :])


@pytest.mark.tool
def test_the_command_prints_and_refuses(example: Path, toolchain: Toolchain) -> None:
    arguments = ["recommend", str(example), "--no-speed", "--preset", "q4_k_m,q8_0"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.stderr
    assert (
        shown.stdout.startswith("tiny-llama: Q8_0\n")
        and "make it:   ggq convert-and-quantize" in shown.stdout
    )
    told = CliRunner().invoke(cli, [*arguments, "--json"])
    assert json.loads(told.stdout)["chosen"]["preset"] == "Q8_0"
    refused = CliRunner().invoke(cli, [*arguments, "--ram", "1M"])
    assert refused.exit_code == 3 and "No preset of tiny-llama fits" in refused.stderr
    assert ggq.recommend is recommend
