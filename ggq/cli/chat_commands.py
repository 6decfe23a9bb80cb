"""What begins with a slash in ``ggq chat``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggq.cli.output import Output
from ggq.errors import UsageProblem
from ggq.system import places

if TYPE_CHECKING:
    from ggq.serving.conversation import Conversation

# What /set knows, and what makes a value of its word; "n" is Conversation's own.
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "temp": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repeat_penalty": float,
    "seed": int,
    "max_tokens": int,
}


class Leave(Exception):
    """The person has seen enough."""


def obey(talk: Conversation, text: str, out: Output) -> str | None:
    """Do what a command says. Returns a question to be asked (again), or None.

    Raises Leave, and GgqError for a command that cannot be done.
    """
    word, _, rest = text.partition(" ")
    return COMMANDS[word][1](talk, rest.strip(), out)


def _help(talk: Conversation, rest: str, out: Output) -> None:
    out.fields([(f"{word}{_ARGUMENTS.get(word, '')}", meaning) for word, (meaning, _) in COMMANDS.items()])


def _set(talk: Conversation, rest: str, out: Output) -> None:
    name, _, word = rest.replace("=", " ", 1).partition(" ")
    name, word = name.replace("-", "_"), word.strip()
    if not name:
        values = dataclasses.asdict(talk.sampling) | {"max_tokens": talk.most_tokens}
        out.fields([(key, "-" if value is None else f"{value:g}") for key, value in values.items()])
        return
    if name not in _NUMBERS:
        raise UsageProblem(f"/set knows no {name!r}.", "", f"It knows {', '.join(_NUMBERS)}.")
    try:
        value = None if word.lower() in ("", "-", "none") else _NUMBERS[name](word)
        if value is not None and not value >= 0:
            raise ValueError
    except ValueError as error:
        raise UsageProblem(
            f"{word!r} is no value for {name}.", "", "Give a number, as /set temp 0.7."
        ) from error
    if name == "max_tokens":
        talk.most_tokens = value or None
    elif value is None and name != "seed":
        value = next(it.default for it in dataclasses.fields(talk.sampling) if it.name == name)
    if name != "max_tokens":
        changed: dict[str, Any] = {name: value}
        talk.sampling = dataclasses.replace(talk.sampling, **changed)
    out.info(f"{name}: {'-' if value is None else format(value, 'g')}")


def _system(talk: Conversation, rest: str, out: Output) -> None:
    talk.system = rest or None
    out.info("The system prompt is set." if rest else "There is no system prompt.")


def _save(talk: Conversation, rest: str, out: Output) -> None:
    path = _path(rest, "/save")
    talk.save(path)
    out.info(f"Saved: {path}")


def _load(talk: Conversation, rest: str, out: Output) -> None:
    talk.load(_path(rest, "/load"))
    out.info(f"{len(talk.messages)} messages are loaded.")


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise UsageProblem(f"{command} needs a file.", "", f"Give one: {command} chat.json")
    return places.expanded(rest)


def _retry(talk: Conversation, rest: str, out: Output) -> str | None:
    question = talk.forget_last()
    if question is None:
        raise UsageProblem("Nothing was asked yet.")
    return question


def _clear(talk: Conversation, rest: str, out: Output) -> None:
    talk.clear()
    out.info("The conversation begins again.")


def _stats(talk: Conversation, rest: str, out: Output) -> None:
    last = talk.model.last
    rows = [("messages", f"{len(talk.messages)}, of which {talk.left_out} are left out")]
    if last is not None:
        speed = f"{last.tokens_per_s:,.1f} tokens/s" if last.tokens_per_s else "-"
        used = last.prompt_tokens + last.tokens
        rows += [
            ("context", f"{used:,} of {talk.model.context_tokens:,} tokens"),
            ("last answer", f"{last.tokens} tokens in {last.seconds:.2f} s, {speed}"),
        ]
        if last.first_token_s is not None:
            rows.append(("first token", f"after {last.first_token_s:.2f} s"))
    out.fields([*rows, *talk.model.parameters.described()])


def _exit(talk: Conversation, rest: str, out: Output) -> None:
    raise Leave


_ARGUMENTS = {"/set": " NAME VALUE", "/system": " TEXT", "/save": " FILE", "/load": " FILE"}
_Command = Callable[["Conversation", str, Output], "str | None"]
COMMANDS: dict[str, tuple[str, _Command]] = {
    "/set": ("Set temp, top_p, top_k, min_p, repeat_penalty, seed or max_tokens; alone: show them.", _set),
    "/system": ("Set the system prompt; alone: remove it.", _system),
    "/save": ("Save the conversation.", _save),
    "/load": ("Load a conversation that was saved.", _load),
    "/retry": ("Ask the last question again.", _retry),
    "/clear": ("Forget the conversation.", _clear),
    "/stats": ("Show speed, context and how the model runs.", _stats),
    "/help": ("Show this list.", _help),
    "/exit": ("Leave (also Ctrl-D).", _exit),
}
