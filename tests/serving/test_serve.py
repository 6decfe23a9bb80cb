"""`ggq serve`: what the official client of OpenAI's interface gets, who is let in, and how it ends."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
from click.testing import CliRunner
from servers import Serving, serving

from ggq.cli.main import cli
from ggq.errors import DoesNotFit
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.serving.page import PageChoice
from ggq.serving.server import explained
from ggq.serving.server_plan import ServeSettings, prepare
from ggq.serving.settings import LoadMode, LoadSettings
from ggq.session import Session
from ggq.system import process

pytestmark = pytest.mark.tool
PARIS = [{"role": "user", "content": "What is the capital of France?"}]
KEY = "the-right-key"


def client(server: Serving, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def server(chat_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with serving(chat_gguf, "--parallel", "2", "--api-key", KEY, "--log-file", log) as found:
        yield found


def test_the_openai_client_gets_an_answer(server: Serving) -> None:
    answer = client(server, KEY).chat.completions.create(
        model=next(iter(server.told["models"])), messages=PARIS, temperature=0
    )
    assert (answer.choices[0].message.content or "").strip() == "The capital of France is Paris."
    assert answer.usage and answer.usage.completion_tokens > 5


def test_the_openai_client_gets_a_stream(server: Serving) -> None:
    stream = client(server, KEY).chat.completions.create(
        model="any", messages=PARIS, temperature=0, stream=True
    )
    pieces = [it.choices[0].delta.content or "" for it in stream if it.choices]  # type: ignore[union-attr]
    assert len([it for it in pieces if it]) > 3
    assert "".join(pieces).strip() == "The capital of France is Paris."


def test_fifty_requests_at_once_are_all_answered(server: Serving) -> None:
    asked = client(server, KEY)

    def one(_: int) -> str:
        answer = asked.chat.completions.create(model="any", messages=PARIS, temperature=0)
        return (answer.choices[0].message.content or "").strip()

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one, range(50)))
    assert answers == ["The capital of France is Paris."] * 50


def test_a_wrong_key_is_refused(server: Serving) -> None:
    for key in ("wrong", "none"):
        with pytest.raises(openai.AuthenticationError):
            client(server, key).chat.completions.create(model="any", messages=PARIS)
    # Others see the command line: the key must not stand in it.
    commands = [it.cmdline() for it in server.family()]
    assert commands and all(KEY not in " ".join(it) for it in commands)
    assert Path(server.told["log_file"]).stat().st_mode & 0o077 == 0
    assert KEY not in Path(server.told["log_file"]).read_text(encoding="utf-8")


def test_each_client_has_a_whole_context(server: Serving) -> None:
    command = server.told["command"]
    assert command[command.index("-c") + 1] == "1024" and command[command.index("-np") + 1] == "2"
    (model,) = server.told["models"].values()
    assert model["parameters"]["context"].startswith("512 tokens for each of 2")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(chat_gguf: Path, number: signal.Signals) -> None:
    with serving(chat_gguf, "-c", "65536") as server:
        family = server.family()
        # An answer without an end is on its way.
        stream = client(server).chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Sing a song."}], temperature=0, stream=True
        )
        next(iter(stream))
        server.process.send_signal(number)
        server.process.wait(30)  # 3 s of grace, and a busy machine
        assert server.process.returncode == 0
        assert family and psutil.wait_procs(family, timeout=10)[1] == []


def test_kill_9_leaves_no_process(chat_gguf: Path, tmp_path: Path) -> None:
    other = shutil.copy(chat_gguf, tmp_path / "other.gguf")
    for models in ((chat_gguf,), (chat_gguf, other)):
        with serving(*models) as server:
            asked = client(server)
            asked.chat.completions.create(model=next(iter(server.told["models"])), messages=PARIS)
            family = server.family()
            assert len(family) == len(models), "the router runs one model, and itself"
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(30)
            assert psutil.wait_procs(family, timeout=30)[1] == []


def test_several_models_share_an_address(chat_gguf: Path, tmp_path: Path) -> None:
    other = shutil.copy(chat_gguf, tmp_path / "other.gguf")
    with serving(chat_gguf, other, "--api-key", KEY) as server:
        asked = client(server, KEY)
        assert {it.id for it in asked.models.list()} == {"chat260K-BF16", "other"}
        for name in ("chat260K-BF16", "other"):
            answer = asked.chat.completions.create(model=name, messages=PARIS, temperature=0)
            assert (answer.choices[0].message.content or "").strip() == "The capital of France is Paris."
            assert answer.model == name
        with pytest.raises(openai.BadRequestError):
            asked.chat.completions.create(model="nobody", messages=PARIS)


def test_vectors(chat_gguf: Path) -> None:
    with serving(chat_gguf, "--embeddings") as server:
        assert next(iter(server.told["models"].values()))["use"] == "embeddings"
        found = client(server).embeddings.create(model="any", input=["a dog", "a dog", "the sky"])
        dog, again, sky = (it.embedding for it in found.data)
        assert len(dog) == 64, "the model is 64 wide"
        assert dog == pytest.approx(again, abs=1e-4) and dog != pytest.approx(sky, abs=1e-2)


def test_the_default_port_is_left_to_who_has_it(chat_gguf: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(cli, ["serve", str(chat_gguf), "--port", str(port)])
        assert done.exit_code == 2 and f"Port {port}" in done.stderr
    done = CliRunner().invoke(cli, ["serve", str(chat_gguf), "--dry-run", "--json"])
    first = json.loads(done.stdout)["url"].rsplit(":", 1)[1]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(first)))
        taken.listen()
        done = CliRunner().invoke(cli, ["serve", str(chat_gguf), "--dry-run", "--json"])
        assert json.loads(done.stdout)["url"].rsplit(":", 1)[1] != first


def test_other_addresses_need_a_key(chat_gguf: Path) -> None:
    done = CliRunner().invoke(cli, ["serve", str(chat_gguf), "--host", "0.0.0.0", "--dry-run"])
    assert done.exit_code == 2 and "needs an API key" in done.stderr
    asked = ["serve", str(chat_gguf), "--host", "0.0.0.0", "--api-key", "auto", "--dry-run", "--json"]
    made = [CliRunner().invoke(cli, asked) for _ in range(2)]
    keys = [json.loads(it.stdout)["api_key"] for it in made]
    assert keys[0] != keys[1] and min(map(len, keys)) >= 24


def test_what_llama_cpp_does_not_load_is_told(chat_gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    key = b"llama.attention.head_count"
    broken.write_bytes(chat_gguf.read_bytes().replace(key, b"llama.attention.head_cOUNT", 1))
    command = [sys.executable, "-m", "ggq", "serve", str(broken)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "llama.cpp does not load this model" in ended.stderr and "blk.0.attn_q.weight" in ended.stderr


def test_a_server_out_of_memory_is_told_what_would_fit(
    toolchain: Toolchain, chat_gguf: Path, tmp_path: Path
) -> None:
    session = Session(toolchain)
    load = LoadSettings(context_tokens=2_000_000)
    plan = prepare([chat_gguf], ServeSettings(port=0, load=load, log_file=tmp_path / "log"), session)
    # It may take 700 MB of addresses; its cache alone would be 1.3 GB.
    done = process.run(
        ["sh", "-c", f"ulimit -v 700000; exec {shlex.join(plan.command())}"], check=False, timeout_s=120
    )
    problem = explained(done, plan, session)
    assert isinstance(problem, DoesNotFit)
    assert "ran out of memory" in problem.what and re.search(r"needs [\d.]+ GB of RAM", problem.why)
    assert "-c 512" in problem.next_step


def test_the_command_says_what_was_chosen(toolchain: Toolchain, chat_gguf: Path) -> None:
    session = Session(toolchain)
    load = LoadSettings(context_tokens=128, threads=1, type_k=CacheType.BF16, load_mode=LoadMode.MMAP)
    settings = ServeSettings(port=0, page=PageChoice.OFF, load=load)
    command = prepare([chat_gguf], settings, session).command()
    chosen = list(itertools.pairwise(command))
    for pair in (("-c", "128"), ("-t", "1"), ("-ctk", "bf16"), ("-lm", "mmap"), ("--host", "127.0.0.1")):
        assert pair in chosen
    assert "--no-ui" in command and "--path" not in command


def test_scores(chat_gguf: Path) -> None:
    with serving(chat_gguf, "--reranking") as server:
        assert next(iter(server.told["models"].values()))["use"] == "reranking"
        asked = json.dumps({"query": "a dog", "documents": ["the dog runs", "the sky"]}).encode()
        request = urllib.request.Request(
            f"{server.url}/v1/rerank", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)["results"]
        assert {it["index"] for it in found} == {0, 1}
        assert all(isinstance(it["relevance_score"], float) for it in found)
