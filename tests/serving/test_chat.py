"""`ggq run` and `ggq chat`, driven through a pseudo-terminal with a model that was taught a few answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from terminals import terminal

pytestmark = pytest.mark.tool
PROMPT = ">>> "


def said(child: pexpect.spawn[str]) -> str:
    """What came up to the next prompt."""
    child.expect_exact(PROMPT)
    return str(child.before)


def ask(child: pexpect.spawn[str], text: str) -> str:
    child.sendline(text)
    return said(child)


def test_a_conversation_remembers_what_was_said(chat_gguf: Path) -> None:
    with terminal("chat", chat_gguf, "--temp", "0") as child:
        assert "512 tokens of context" in said(child)
        assert "Hello Ben." in ask(child, "My name is Ben.")
        answer = ask(child, "What is my name?")
        assert "Your name is Ben." in answer
        assert "tokens/s" in answer and "first token after" in answer
        ask(child, "/clear")
        ask(child, "My name is Sue.")
        assert "Your name is Sue." in ask(child, "What is my name?")
        child.sendeof()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


def test_ctrl_c_ends_the_answer_and_not_the_program(chat_gguf: Path) -> None:
    # Taught a song without an end; a context this long is more than it sings in minutes.
    with terminal("chat", chat_gguf, "--temp", "0", "-c", "65536") as child:
        said(child)
        child.sendline("Sing a song.")
        child.expect_exact("la la la la")
        child.sendintr()
        assert "stopped" in said(child)
        # At the prompt it leaves neither.
        child.sendintr()
        assert "/exit leaves" in said(child)
        assert "Your name is Tom." in [ask(child, "My name is Tom."), ask(child, "What is my name?")][1]
        child.sendline("/exit")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


def test_a_full_context_is_told_and_shortened(chat_gguf: Path) -> None:
    with terminal("chat", chat_gguf, "--temp", "0", "-c", "256") as child:
        said(child)
        for _ in range(20):
            answer = ask(child, "My name is Ann.")
            assert "Hello Ann." in answer
            if "The context is full (256 tokens)" in answer:
                break
        else:
            pytest.fail("it was never full")
        assert "the oldest" in answer and "left out" in answer
        assert "Your name is Ann." in ask(child, "What is my name?")
        # A question that never fits is refused with figures, and the talk goes on.
        refused = ask(child, "la " * 300)
        assert "it does not fit" in refused and "256" in refused
        assert "Your name is Ann." in ask(child, "What is my name?")


def test_commands(chat_gguf: Path, tmp_path: Path) -> None:
    kept = tmp_path / "talk.json"
    with terminal("chat", chat_gguf, "--temp", "0") as child:
        said(child)
        ask(child, "/system You are Jack.")
        assert "I am Jack." in ask(child, "Who are you?")
        assert "I am Jack." in ask(child, "/retry")
        shown = ask(child, "/stats")
        assert "messages     2" in shown and "of 512 tokens" in shown
        ask(child, f"/save {kept}")
        assert "There is no command /save-it" in ask(child, "/save-it")
        assert "is no value for temp" in ask(child, "/set temp hot")
        ask(child, "/set max_tokens 3")
        assert "3 tokens," in ask(child, "Sing a song.")
        helped = ask(child, "/help")
        assert all(word in helped for word in ("/set", "/system", "/save", "/load", "/retry", "/exit"))
        assert "is no saved conversation" in ask(child, f"/load {chat_gguf}")
    content = json.loads(kept.read_text(encoding="utf-8"))
    assert content["system"] == "You are Jack."
    assert [it["role"] for it in content["messages"]] == ["user", "assistant"]
    with terminal("chat", chat_gguf, "--temp", "0") as child:
        said(child)
        ask(child, f"/load {kept}")
        assert "I am Jack." in ask(child, "Who are you?")


def test_several_lines_are_one_message(chat_gguf: Path, tmp_path: Path) -> None:
    kept = tmp_path / "talk.json"
    with terminal("chat", chat_gguf, "--temp", "0", "-n", "4") as child:
        said(child)
        child.sendline('"""My name')
        child.sendline("is Mia.")
        child.sendline('"""')
        said(child)
        child.sendline("My name \\")
        child.sendline("is Mia.")
        said(child)
        child.sendline(f"/save {kept}")
        said(child)
    first, _, second, _ = json.loads(kept.read_text(encoding="utf-8"))["messages"]
    assert first["content"] == "My name\nis Mia."
    assert second["content"] == "My name \nis Mia."


def ggq(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggq", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)


def test_run_streams_an_answer(chat_gguf: Path) -> None:
    with terminal("run", chat_gguf, "What is the capital of France?", "--temp", "0", "-v") as child:
        child.expect_exact("context: 512 tokens")
        child.expect_exact("The capital of France is Paris.")
        child.expect("tokens/s, first token after")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


def test_run_reads_a_pipe_and_writes_only_the_answer(chat_gguf: Path) -> None:
    done = ggq("run", chat_gguf, "-", "--temp", "0", stdin="What color is the sky?\n")
    assert (done.returncode, done.stdout) == (0, "The sky is blue.\n")
    assert "first token after" in done.stderr
    done = ggq("run", chat_gguf, "Who are you?", "--system", "You are Max.", "--temp", "0", "--json")
    found = json.loads(done.stdout)
    assert found["text"] == "I am Max." and found["ending"] == "stop" and found["tokens"] > 1


def test_run_follows_a_schema_and_a_grammar(chat_gguf: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"],
              "additionalProperties": False}  # fmt: skip
    done = ggq("run", chat_gguf, "How many legs has a dog?", "--json-schema", json.dumps(schema), "-n", "60")
    assert isinstance(json.loads(done.stdout)["legs"], int), done.stderr
    grammar = tmp_path / "g.gbnf"
    grammar.write_text('root ::= "red" | "green"', encoding="utf-8")
    done = ggq("run", chat_gguf, "What color is the sky?", "--grammar", grammar)
    assert done.stdout.strip() in ("red", "green")
    grammar.write_text("root ::= nothing", encoding="utf-8")
    done = ggq("run", chat_gguf, "Hello.", "--grammar", grammar)
    assert done.returncode == 2 and "Undefined rule identifier" in done.stderr


def test_the_same_seed_gives_the_same_answer(chat_gguf: Path) -> None:
    # Each of these three leaves only likely tokens, before the temperature counts.
    anything = ("--temp", "9", "--min-p", "0", "--top-k", "0", "--top-p", "1")
    asked = ("run", chat_gguf, "Once", "--raw", *anything, "-n", "24", "-q")
    answers = [ggq(*asked, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]


def test_a_prompt_that_is_too_long_is_refused_with_figures(chat_gguf: Path) -> None:
    done = ggq("run", chat_gguf, "la " * 600)
    assert done.returncode == 1 and done.stdout == ""
    assert "The prompt has 1,2" in done.stderr and "the context 512" in done.stderr
    done = ggq("run", chat_gguf, "la " * 300, "-c", "64")
    assert "-c 512" in done.stderr, "it does not name the context that would do"


def test_raw_and_a_model_without_a_template(chat_gguf: Path, base_gguf: Path) -> None:
    done = ggq("run", chat_gguf, "Once upon a time", "--raw", "-n", "8", "-q")
    assert done.stdout.startswith("Once upon a time") and len(done.stdout) > 20
    done = ggq("run", base_gguf, "Remove the", "-n", "4", "-q")
    assert done.returncode == 0 and done.stdout.startswith("Remove the")
    done = ggq("chat", base_gguf)
    assert done.returncode == 1 and "has no chat template" in done.stderr
