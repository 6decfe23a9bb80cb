"""Publishing to a Hub on loopback, with the real client: what arrives, what is sent again, what is asked."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner, Result
from hubserver import HubServer
from measured import Timed, quality, record, speed

from ggq.cli.main import cli
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import model_file
from ggq.system import files

pytestmark = [
    pytest.mark.tool,
    pytest.mark.hub,
    # huggingface_hub's own way to send a file, in its own HTTP library's words.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

REPO = "you/Stories-GGUF"
PRESETS = ("Q8_0", "Q4_K_M")


@pytest.fixture
def hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub, with a token that may write. Xet, which needs servers of its own, is off."""
    hub.tokens.add("a-token")
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub


@pytest.fixture(scope="module")
def made(toolchain: Toolchain, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that ggq made of a model of the Hub, and measured."""
    root = tmp_path_factory.mktemp("made")
    checkpoint = root / "stories"
    shutil.copytree(stories, checkpoint)
    (checkpoint / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [en, ko]\ntags: [tiny, safetensors]\n"
        "pipeline_tag: text-generation\n---\n"
    )
    folder = root / "files"
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(root / "hf"))
        hub.add_repo("org/stories", checkpoint)
        command = ["convert-and-quantize", "org/stories", "--preset", ",".join(PRESETS), "--verify", "off",
                   "--keep-base", "--outdir", str(folder)]  # fmt: skip
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
    subjects = model_file.distinct(map(model_file.of, sorted(folder.glob("*.gguf"))))
    by_name = {it.name: it for it in subjects}
    base = by_name.pop(next(name for name in by_name if name not in PRESETS))
    record(
        folder / "ggq-bench.json",
        models=[base, *by_name.values()],
        qualities=quality({"Q8_0": [0.0004] * 3, "Q4_K_M": [0.01, 0.011, 0.012]}),
        speeds={name: speed(name, [Timed("generation", 32, [[20.0, 21.0, 22.0]] * 2)]) for name in PRESETS},
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "files"))


def with_base(hub: HubServer, **options: object) -> None:
    hub.add_repo("org/stories", {"config.json": b"{}"}, **options)


def publish(folder: Path, *options: str, repo: str = REPO) -> Result:
    return CliRunner().invoke(cli, ["publish", str(folder), "--repo", repo, *options])


def published(hub: HubServer, branch: str = "main", repo: str = REPO) -> dict[str, str]:
    """Name -> sha256 of everything in the repository."""
    found = hub.repos["models", repo]
    return {
        path: it.sha256 for path, it in found.commits[found.refs[branch]].items() if path != ".gitattributes"
    }


def text_of(hub: HubServer, name: str) -> str:
    found = hub.repos["models", REPO]
    source = found.commits[found.refs["main"]][name].source
    assert isinstance(source, bytes)
    return source.decode()


def local(folder: Path) -> dict[str, str]:
    return {it.name: files.sha256_file(it) for it in folder.glob("*.gguf")}


# --- what arrives ----------------------------------------------------------------------------------------


def test_files_card_and_checksums_arrive_whole(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    with_base(hub)
    done = publish(folder)
    assert done.exit_code == 0, done.output
    there = published(hub)
    assert {name: digest for name, digest in there.items() if name.endswith(".gguf")} == local(folder)
    assert set(there) == {*local(folder), "README.md", "SHA256SUMS"}
    # coreutils' own tool reads the checksums, beside the files.
    (folder / "SHA256SUMS").write_text(text_of(hub, "SHA256SUMS"))
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count(": OK") == len(local(folder))
    assert not (folder / ".ggq-publish").exists()


def test_a_second_time_nothing_is_sent(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    assert publish(folder).exit_code == 0
    hub.log.clear()
    again = publish(folder)
    assert again.exit_code == 0, again.output
    assert "Nothing was sent" in again.stdout
    assert [it for it in hub.log if it.method == "PUT"] == []
    assert hub.requests("/commit/", "POST") == []
    assert hub.requests("/batch", "POST") == []


def test_only_what_changed_is_sent(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    assert publish(folder, "--preset", "q8_0").exit_code == 0
    before = published(hub)
    hub.log.clear()
    told = publish(folder, "--json")
    sent = json.loads(told.stdout)["sent"]
    assert sorted(sent) == sorted([*(set(local(folder)) - set(before)), "README.md", "SHA256SUMS"])
    arrived = {it.path.split("/")[2] for it in hub.requests("/upload/", "PUT")}
    assert arrived == set(local(folder).values()) - set(before.values())


def test_the_front_matter_is_what_the_hub_reads(hub: HubServer, folder: Path) -> None:
    from huggingface_hub import ModelCard

    with_base(hub)
    assert publish(folder, "--tag", "a-tag", "--author", "Andrej", "--quantized-by", "me").exit_code == 0
    card = ModelCard(text_of(hub, "README.md"))
    data = card.data.to_dict()
    assert data["base_model"] == "org/stories"
    assert data["base_model_relation"] == "quantized"
    assert data["quantized_by"] == "me"
    assert data["license"] == "mit"
    assert data["language"] == ["en", "ko"]
    assert data["pipeline_tag"] == "text-generation"
    assert data["model_creator"] == "Andrej"
    assert {"gguf", "tiny", "a-tag"} <= set(data["tags"])
    assert "safetensors" not in data["tags"]


def test_the_card_says_what_was_made_and_measured(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    assert publish(folder).exit_code == 0
    card = text_of(hub, "README.md")
    rows = {line.split("|")[1].strip(): line for line in card.splitlines() if line.startswith("| [")}
    (q4,) = (line for name, line in rows.items() if "Q4" in name)
    assert "0.011" in q4, "its KLD"
    assert "21" in q4, "its tokens per second"
    assert "A CPU" in card, "the machine"
    manifest = json.loads(next(folder.glob("*.ggq.json")).read_text())
    commit = manifest["model"]["commit"]
    assert f"org/stories@{commit} --preset" in card
    assert manifest["environment"]["llama_cpp_commit"] in card
    # Rows of 64 values are no K-quant: llama.cpp took others, and the card names these tensors.
    fallen = card[card.index("cannot be K-quants") :]
    assert re.search(r"`blk\.\*\.attn_q\.weight` is Q[58]_0", fallen)
    assert f"llama-server -hf {REPO}:Q4_K_M" in card


def test_figures_of_a_file_that_is_another_now_are_left_out(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    (changed,) = folder.glob("*-Q4_K_M.gguf")
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert publish(folder).exit_code == 0
    rows = [line for line in text_of(hub, "README.md").splitlines() if line.startswith("| [")]
    (q4,) = (line for line in rows if "Q4" in line)
    (q8,) = (line for line in rows if "Q8" in line)
    assert "21" not in q4.split("|", 4)[4]
    assert "21" in q8.split("|", 4)[4]


@pytest.mark.parametrize("repo", ["Stories-GGUF", "you/--", "a/b/c", "../x"])
def test_a_name_that_no_repository_has(hub: HubServer, folder: Path, repo: str) -> None:
    assert publish(folder, repo=repo).exit_code == 2


def test_large_files_go_up_in_shards(
    hub: HubServer, folder: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    with_base(hub)
    source = next(folder.glob("*-F32.gguf"))
    assert source.stat().st_size > 10**6
    options = ("--preset", "f32", "--split-max-size", "1M")
    done = publish(folder, *options)
    assert done.exit_code == 0, done.output
    shards = sorted(name for name in published(hub) if name.endswith(".gguf"))
    assert len(shards) > 1
    assert all(re.fullmatch(rf"{source.stem}/{source.stem}-\d{{5}}-of-\d{{5}}\.gguf", it) for it in shards)
    assert "tree/main/" in text_of(hub, "README.md")
    assert not (folder / ".ggq-publish").exists(), "the shards stay"
    found = hub.repos["models", REPO]
    for name in shards:
        content = found.commits[found.refs["main"]][name].source
        target = tmp_path / "down" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    merged = tmp_path / "merged.gguf"
    tool = toolchain.tool("llama-gguf-split")
    subprocess.run([tool, "--merge", tmp_path / "down" / shards[0], merged], check=True, capture_output=True)
    theirs, ours = (gguf.GGUFReader(path) for path in (merged, source))
    assert [(it.name, it.data.tobytes()) for it in theirs.tensors] == [
        (it.name, it.data.tobytes()) for it in ours.tensors
    ]
    hub.log.clear()
    again = publish(folder, *options)
    assert "Nothing was sent" in again.stdout, again.output


# --- broken off ------------------------------------------------------------------------------------------


def test_broken_off_five_times_every_digest_is_right(hub: HubServer, larger: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of the upload: what had arrived whole is not sent again, and all is right."""
    folder = tmp_path / "files"
    command = ["convert-and-quantize", str(larger), "--preset", "q8_0,q6_k,q5_k_m,q4_k_m,q3_k_m,q2_k",
               "--verify", "off", "--outdir", str(folder)]  # fmt: skip
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 0, made.output
    hub.fault("/upload/", method="PUT", times=float("inf"), bytes_per_s=8e6)
    total = sum(it.stat().st_size for it in folder.glob("*.gguf"))
    chance = random.Random(int(os.environ.get("GGQ_TEST_SEED", "0")) or 15)
    typed = [sys.executable, "-m", "ggq", "publish", str(folder), "--repo", REPO, "--yes", "-q"]
    for _ in range(5):
        enough = hub.arrived_bytes + chance.uniform(0.02, 0.3) * total
        with subprocess.Popen(typed, stderr=subprocess.PIPE) as run:
            while run.poll() is None and hub.arrived_bytes < enough:
                time.sleep(0.002)
            assert run.poll() is None, "it ended before it was broken off"
            run.send_signal(signal.SIGKILL)
    assert ("models", REPO) not in hub.repos or "README.md" not in published(hub), "half a release is shown"
    kept = set(hub.objects)
    assert kept, "nothing had arrived"
    hub.log.clear()
    last = subprocess.run(typed, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    there = published(hub)
    assert {name: digest for name, digest in there.items() if name.endswith(".gguf")} == local(folder)
    sent_again = {it.path.split("/")[2] for it in hub.requests("/upload/", "PUT")}
    assert not sent_again & kept, "what had arrived was sent again"
    hub.log.clear()
    assert subprocess.run(typed).returncode == 0
    assert hub.requests("/upload/", "PUT") == hub.requests("/commit/", "POST") == []


@pytest.mark.parametrize(
    "fault",
    [{"cut_after_bytes": 100_000, "reset": True}, {"cut_after_bytes": 50_000}, {"status": 503}],
    ids=["reset", "cut", "503"],
)
def test_a_network_that_stumbles_is_tried_again(
    hub: HubServer, folder: Path, fault: dict[str, object]
) -> None:
    with_base(hub)
    hub.fault("/upload/", method="PUT", times=2, **fault)
    done = publish(folder)
    assert done.exit_code == 0, done.output
    assert local(folder).items() <= published(hub).items()


def test_a_hub_that_holds_something_else_is_found_out(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    repo = hub.add_repo(REPO, {".gitattributes": b""})
    repo.lies["SHA256SUMS"] = {"size": 3}
    done = publish(folder)
    assert done.exit_code == 1
    assert "does not hold what was uploaded: SHA256SUMS" in done.stderr


# --- where it goes ---------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    shown = publish(folder, "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.stdout)
    assert plan["is_new"] is True
    assert {it["path"] for it in plan["files"]} == {*local(folder), "README.md", "SHA256SUMS"}
    assert {it.method for it in hub.log} <= {"GET", "HEAD"}
    # What it shows is what goes up.
    assert publish(folder).exit_code == 0
    assert text_of(hub, "README.md") == plan["card"]


def test_private_branch_and_pull_request(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    assert publish(folder, "--private").exit_code == 0
    assert hub.repos["models", REPO].private
    assert publish(folder, "--revision", "next").exit_code == 0
    assert local(folder).items() <= published(hub, "next").items()
    before = published(hub)
    asked = publish(folder, "--create-pr", "--tag", "more")
    assert asked.exit_code == 0, asked.output
    assert "/discussions/1" in asked.stdout
    assert published(hub) == before, "a pull request changed the main branch"
    assert published(hub, "refs/pr/1")["README.md"] != before["README.md"]


def test_files_of_another_model_are_not_overwritten(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    hub.add_repo(REPO, {"README.md": b"mine"}, card={"base_model": "org/other"})
    done = publish(folder)
    assert done.exit_code == 1
    assert "files of another model" in done.stderr
    assert publish(folder, "--force").exit_code == 0


def test_a_card_written_by_hand_is_not_overwritten(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    hub.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\nmine"})
    done = publish(folder)
    assert done.exit_code == 1
    assert "ggq did not write" in done.stderr
    assert text_of(hub, "README.md").endswith("mine")


def test_names_that_differ_by_case_alone_are_refused(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    source = next(folder.glob("*-Q8_0.gguf"))
    shutil.copy(source, folder / source.name.replace("Q8_0", "q8_0"))
    done = publish(folder)
    assert done.exit_code == 2
    assert "would collide" in done.stderr


# --- who may, and what is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "options", "question"),
    [
        ({}, ["--license", "cc-by-nd-4.0"], "allows no derivatives"),
        ({}, ["--license", "other"], "does not know the licence"),
        ({"gated": True}, [], "org/stories is gated"),
    ],
    ids=["no derivatives", "unknown", "gated"],
)
def test_what_a_licence_or_a_gate_asks_is_asked(
    hub: HubServer, folder: Path, base: dict[str, object], options: list[str], question: str
) -> None:
    with_base(hub, **base)
    asked = publish(folder, *options)
    assert asked.exit_code == 1
    assert question in asked.stderr
    assert "--yes" in asked.stderr
    assert ("models", REPO) not in hub.repos, "something was sent all the same"
    if options[-1:] != ["other"]:  # which the Hub takes with a name alone
        assert publish(folder, *options, "--yes").exit_code == 0


def test_conditions_of_a_licence_are_said(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    shown = publish(folder, "--license", "llama3.1", "--dry-run")
    assert shown.exit_code == 0
    assert "Built with Llama" in shown.stderr


def test_without_a_token_it_says_how_to_get_one(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = publish(folder)
    assert done.exit_code == 1
    assert "hf auth login" in done.stderr


def test_a_token_that_may_not_write_is_named(hub: HubServer, folder: Path) -> None:
    with_base(hub)
    hub.add_repo(REPO, {".gitattributes": b""}, writers={"another"})
    done = publish(folder)
    assert done.exit_code == 1
    assert "may not write" in done.stderr
    assert "a-token" not in done.output
