"""``ggq chat``: a conversation with a model in the terminal."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from ggq.cli.chat_commands import COMMANDS, Leave, obey
from ggq.cli.error_messages import Terminated
from ggq.cli.options import model_argument, session_options
from ggq.cli.output import Output
from ggq.cli.run import chosen_parameters, grammar_of, opened, tell
from ggq.cli.settings import settings_options
from ggq.errors import CannotServe, GgqError
from ggq.model_ref import ModelRef
from ggq.serving.settings import AnswerSettings, GrammarSettings, LoadSettings, SamplingSettings
from ggq.session import Session

if TYPE_CHECKING:
    from ggq.serving.conversation import Conversation

PROMPT, MORE = ">>> ", "... "
_BLOCK = '"""'


@click.command()
@model_argument("FILE|FOLDER|MODEL")
@settings_options(AnswerSettings, "asked", leave=("raw",))
@settings_options(SamplingSettings, "sampling")
@settings_options(GrammarSettings, "grammar")
@settings_options(LoadSettings, "load")
@session_options(hub=True)
def chat(
    model: ModelRef,
    asked: AnswerSettings,
    sampling: SamplingSettings,
    grammar: GrammarSettings,
    load: LoadSettings,
    session: Session,
    out: Output,
) -> None:
    """Talk with a model, on this machine.

    The model is named as for `ggq run`. Ctrl-C stops an answer; Ctrl-D or /exit leaves. A line that ends with
    a backslash goes on; three quotation marks begin and end a text of several lines. /help lists the
    commands. When the context is full, the oldest turns are left out, and that is said.

    \b
    ggq chat Qwen3-0.6B-Q4_K_M.gguf
    ggq chat Qwen/Qwen3-0.6B --system "Answer briefly." -c 16384
    """
    grammar.check()
    with out.progress():
        chosen = chosen_parameters(model, session, load)
        if not chosen.file.has_chat_template:
            raise CannotServe(
                f"{chosen.file.path.name} has no chat template.",
                "It continues texts, and knows no turns.",
                "Let it continue one: `ggq run FILE PROMPT`.",
            )
        loaded = opened(session, chosen, out)
    from ggq.serving.conversation import Conversation
    from ggq.serving.model import Sampling
    from ggq.serving.places import projector_beside
    from ggq.serving.template import ChatTemplate

    template = ChatTemplate(chosen.file.text("tokenizer.chat_template") or "", loaded.bos, loaded.eos)
    talk = Conversation(
        loaded,
        template,
        Sampling.of(sampling, chosen.file),
        asked.system,
        asked.max_tokens,
        grammar_of(loaded, grammar),
    )
    out.info(
        f"{chosen.file.path.name}: {loaded.context_tokens:,} tokens of context. /help lists the commands."
    )
    if (projector := projector_beside(chosen.file)) is not None:
        out.info(
            f"This chat takes text only. `ggq serve` takes pictures, too ({projector.name} is beside it)."
        )
    _talk(talk, out)
    out.result({"model": chosen.file.path, "system": talk.system, "messages": talk.messages})


def _talk(talk: Conversation, out: Output) -> None:
    """Read and answer until the end of the input."""
    while True:
        try:
            text = _read(out)
        except EOFError:
            out.info("")
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            out.info("\nCtrl-D or /exit leaves.")
            continue
        if not text.strip():
            continue
        try:
            if text.startswith("/") and text.split()[0] in COMMANDS:
                again = obey(talk, text, out)
                if again is not None:
                    answer(talk, again, out)
            elif text.startswith("/") and "\n" not in text and text[1:2].isalpha():
                out.warning(f"There is no command {text.split()[0]}. /help lists them.")
            else:
                answer(talk, text, out)
        except Leave:
            return
        except GgqError as problem:
            if not sys.stdin.isatty():
                raise
            out.error(problem)


def answer(talk: Conversation, text: str, out: Output) -> None:
    """One turn. Ctrl-C ends the answer alone."""
    before = talk.left_out
    try:
        with closing(talk.ask(text)) as pieces:
            told = False
            for piece in pieces:
                if not told and talk.left_out > before:
                    out.info(
                        f"The context is full ({talk.model.context_tokens:,} tokens): from now on the oldest"
                        f" {talk.left_out} messages are left out."
                    )
                told = True
                out.stream(piece)
    except Terminated:
        raise
    except KeyboardInterrupt:
        out.text()
        out.info("[stopped; /retry asks again]")
        return
    out.text()
    last = talk.model.last
    if last is not None:
        tell(out, last)


def _read(out: Output) -> str:
    """A message: a line, several that end with a backslash, or a text between three quotation marks.

    Raises EOFError at the end of the input.
    """
    line = _line(PROMPT)
    if line.lstrip().startswith(_BLOCK):
        lines = [line.lstrip().removeprefix(_BLOCK)]
        while not lines[-1].rstrip().endswith(_BLOCK):
            lines.append(_line(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
        return "\n".join(lines).strip("\n")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{_line(MORE)}"
    return line


def _line(prompt: str) -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
    import readline  # noqa: F401  # input() then knows the arrows, and what was typed before

    return input(prompt)
