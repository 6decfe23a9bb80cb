"""The chat template in llama.cpp's engine beside transformers' rendering: for a conversion's child process.

A template is a program that came with the checkpoint, so it runs in a process of its own (forked from the
child), within bounds of time and memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ggq.conversion import checkpoint_view
from ggq.conversion.tokenizer_checks import SETTINGS
from ggq.conversion.tokenizer_file import read_json, text_of
from ggq.llamacpp.chat_template import Engine

_SECONDS = 20
_MEMORY_BYTES = 1 << 30
_LIMIT_BYTES = 1 << 20
_ANSWER_BYTES = 1 << 20
DEFAULT, TOOL_USE = "default", "tool_use"

_ASK = {"role": "user", "content": "What is the weather in Seoul?"}
_ANSWER = {"role": "assistant", "content": "I can look that up."}
_SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "A city."}},
            "required": ["place"],
        },
    },
}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"place": "Seoul"}},
        }
    ],
}
_RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "21 degrees"}
_PLAIN = [_ASK, _ANSWER, {"role": "user", "content": "Do it, please."}]
_CONVERSATIONS: tuple[tuple[str, list[Any], list[Any] | None], ...] = (
    ("with a system message", [_SYSTEM, *_PLAIN], None),
    ("without a system message", _PLAIN, None),
    ("with a tool call", [_ASK, _CALL, _RESULT], [_TOOL]),
)


def find(folder: Path) -> dict[str, str]:
    """Name -> text, as transformers resolves the files: chat_template.jinja before the settings."""
    settings = read_json(folder / SETTINGS).get("chat_template")
    found: dict[str, str] = {}
    file = folder / "chat_template.jinja"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if file.is_file() and file.stat().st_size <= _LIMIT_BYTES:
            found[DEFAULT] = file.read_text(encoding="utf-8")
        for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            if extra.is_file() and extra.stat().st_size <= _LIMIT_BYTES:
                found[extra.stem] = extra.read_text(encoding="utf-8")
    if found:
        return found
    if isinstance(settings, str):
        return {DEFAULT: settings}
    if isinstance(settings, list):
        return {
            str(one["name"]): one["template"]
            for one in settings
            if isinstance(one, dict) and isinstance(one.get("template"), str) and "name" in one
        }
    alone = read_json(folder / "chat_template.json").get("chat_template")
    return {DEFAULT: alone} if isinstance(alone, str) else {}


def settle(folder: Path) -> None:
    """Have a view's settings hold the templates that transformers takes: the converter prefers other files,
    and finds none at all without tokenizer_config.json."""
    found, settings = find(folder), read_json(folder / SETTINGS)
    if not found:
        return
    named = [{"name": name, "template": text} for name, text in found.items()]
    wanted: Any = found[DEFAULT] if list(found) == [DEFAULT] else named
    if settings.get("chat_template") != wanted:
        checkpoint_view.replace(folder / SETTINGS, settings | {"chat_template": wanted})


def compare(folder: Path, in_gguf: str | None, tools_in_gguf: str | None, lib_dir: Path) -> dict[str, Any]:
    """What ``verification.verdict`` is told: how many conversations agree, and what does not.

    ``in_gguf``, ``tools_in_gguf``: the templates that the GGUF has.
    """
    right = find(folder)
    if not right and not in_gguf:
        return {"tried": 0, "agree": 0, "why_not": "", "remarks": []}
    if in_gguf is None and tools_in_gguf is None:
        return {"tried": 0, "agree": 0, "why_not": "the GGUF has no chat template", "remarks": []}
    try:
        engine = Engine(lib_dir)
    except OSError:
        why_not = "this llama.cpp was built without ggq's library for it; `ggq setup` builds it"
        return {"tried": 0, "agree": 0, "why_not": why_not, "remarks": []}
    settings = read_json(folder / SETTINGS)
    specials = {name: text_of(settings.get(name)) or "" for name in ("bos_token", "eos_token")}
    default = in_gguf or tools_in_gguf or ""
    outcomes = []
    for name, messages, tools in _CONVERSATIONS:
        ours = tools_in_gguf if tools and tools_in_gguf else default
        theirs = right.get(TOOL_USE if tools and TOOL_USE in right else DEFAULT) or next(
            iter(right.values()), ours
        )
        if tools and TOOL_USE not in right and not ("tools" in theirs or "tool" in theirs):
            continue

        def both(ours: str = ours, theirs: str = theirs, one: Any = messages, with_: Any = tools) -> Any:
            made = engine.render(ours, _strings(one), with_, specials["bos_token"], specials["eos_token"])
            return [made.text, made.words, made.parses, *_by_transformers(theirs, one, with_, specials)]

        outcomes.append((name, _apart(both)))
    return _verdict(outcomes)


def _verdict(outcomes: list[tuple[str, Any]]) -> dict[str, Any]:
    remarks: list[str] = []
    agree = tried = 0
    for name, outcome in outcomes:
        if isinstance(outcome, str):
            remarks.append(f"the chat template could not be compared for a conversation {name}: {outcome}")
            tried += 1
            continue
        text, words, parses, expected, refusal = outcome
        if not parses:
            remarks = [f"llama.cpp cannot read the chat template: {_line(words)}"]
            return {"tried": len(outcomes), "agree": 0, "why_not": "", "remarks": remarks}
        if refusal and words:
            continue  # both refuse it: the template is not made for such a conversation
        if refusal:
            continue  # llama.cpp may render what the template itself refuses (it moves a system message)
        tried += 1
        if words:
            remarks.append(f"llama.cpp does not render a conversation {name}: {_line(words)}")
        elif text != expected:
            place = _first_difference(text, expected)
            remarks.append(
                f"the chat template gives another prompt in llama.cpp for a conversation {name}: at letter "
                f"{place} {_excerpt(text, place)} where transformers has {_excerpt(expected, place)}"
            )
        else:
            agree += 1
    why_not = "" if tried or remarks else "the template renders no conversation that was tried"
    return {"tried": tried, "agree": agree, "why_not": why_not, "remarks": remarks}


def _by_transformers(template: str, messages: Any, tools: Any, specials: dict[str, str]) -> tuple[str, str]:
    """transformers' prompt, or its words."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # llama-server's own variable; its default there is true.
        made = render_jinja_template(
            [messages],
            tools,
            chat_template=template,
            add_generation_prompt=True,
            enable_thinking=True,
            **specials,
        )
        return (made[0] if isinstance(made, tuple) else made)[0], ""
    except Exception as error:
        return "", _line(str(error)) or type(error).__name__


def _strings(messages: Any) -> Any:
    """The arguments of calls as strings, as OpenAI's interface has them; llama.cpp reads them again."""
    made = json.loads(json.dumps(messages))
    for message in made:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return made


def _apart(work: Callable[[], Any]) -> Any:
    """``work`` in a process of its own: what it returns (JSON), or how it ended, in words."""
    if not hasattr(os, "fork"):
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(reading)
            _bound()
            with os.fdopen(writing, "wb") as answer:
                answer.write(json.dumps(work()).encode())
            status = 0
        os._exit(status)
    os.close(writing)
    with _ended(child) as end:
        raw, whole = _read(reading)
        end["late"] = not whole
    if end["late"]:
        return f"it took longer than {_SECONDS} s, or made more text than any prompt has"
    if end["signal"]:
        return f"the process ended by {signal.Signals(end['signal']).name}"
    try:
        return json.loads(raw)
    except ValueError:
        return "it did not end in good order, as where memory runs out"


@contextlib.contextmanager
def _ended(child: int) -> Iterator[dict[str, Any]]:
    end: dict[str, Any] = {"late": True, "signal": 0}
    try:
        yield end
    finally:
        if end["late"]:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        end["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) and not end["late"] else 0


def _read(reading: int) -> tuple[bytes, bool]:
    """What comes through a pipe, and whether it came whole and in time."""
    until = time.monotonic() + _SECONDS
    parts: list[bytes] = []
    with os.fdopen(reading, "rb", buffering=0) as source:
        while (left := until - time.monotonic()) > 0 and sum(map(len, parts)) < _ANSWER_BYTES:
            if not select.select([source], [], [], left)[0]:
                break
            part = source.read(65536)
            if not part:
                return b"".join(parts), True
            parts.append(part)
    return b"".join(parts), False


def _bound() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        mapped = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY_BYTES, mapped + _MEMORY_BYTES))


def _first_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _excerpt(text: str, place: int) -> str:
    return repr(text[place : place + 24]) if place < len(text) else "the end"


def _line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return " ".join(lines)[:200]
