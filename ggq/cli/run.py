"""``ggq run``: one answer of a model, as it is made."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from ggq.cli.options import model_argument, session_options
from ggq.cli.output import Output
from ggq.cli.settings import settings_options
from ggq.errors import CannotServe, UsageProblem
from ggq.model_ref import ModelRef
from ggq.serving.settings import AnswerSettings, GrammarSettings, LoadSettings, SamplingSettings
from ggq.session import Session

if TYPE_CHECKING:
    from ggq.serving.model import Answer, Model
    from ggq.serving.parameters import Parameters

STDIN = "-"


@click.command()
@model_argument("FILE|FOLDER|MODEL")
@click.argument("prompt", required=False)
@settings_options(AnswerSettings, "asked")
@settings_options(SamplingSettings, "sampling")
@settings_options(GrammarSettings, "grammar")
@settings_options(LoadSettings, "load")
@session_options(hub=True)
def run(
    model: ModelRef,
    prompt: str | None,
    asked: AnswerSettings,
    sampling: SamplingSettings,
    grammar: GrammarSettings,
    load: LoadSettings,
    session: Session,
    out: Output,
) -> None:
    """Answer PROMPT with a model, on this machine.

    FILE is a GGUF; of a FOLDER of GGUFs the largest quantized one is taken that fits. A MODEL on the Hub, or
    a checkpoint folder, is converted and quantized first. PROMPT may come from a pipe (or be `-`). A model
    without a chat template continues PROMPT, as --raw does: with the likeliest token each time, unless --temp
    is given. -v shows how the model is loaded.

    \b
    ggq run Qwen3-0.6B-Q4_K_M.gguf "Why is the sky blue?"
    git diff | ggq run Qwen/Qwen3-0.6B --system "Write a commit message."
    ggq run Qwen3-0.6B-Q4_K_M.gguf "Once upon a time" --raw -n 40
    ggq run Qwen3-0.6B-Q4_K_M.gguf "A city in France?" --json-schema schema.json
    """
    text = _prompt(prompt)
    grammar.check()
    with out.progress():
        chosen = chosen_parameters(model, session, load)
        raw = asked.raw or not chosen.file.has_chat_template
        _require_context(chosen, asked.max_tokens)
        if raw and asked.system:
            raise UsageProblem(
                "There is no place for a system prompt.",
                "The prompt is continued as it stands." if chosen.file.has_chat_template
                else f"{chosen.file.path.name} has no chat template.",
                "Leave --system out, or write it into the prompt.",
            )  # fmt: skip
        loaded = opened(session, chosen, out)
    answer = _answered(loaded, text, replace(asked, raw=raw), (sampling, grammar), out)
    tell(out, answer)
    out.result(
        {
            "model": chosen.file.path,
            "prompt": text,
            "raw": raw,
            **asdict(answer),
            "tokens_per_s": answer.tokens_per_s,
            "parameters": dict(chosen.described()),
        }
    )


def chosen_parameters(model: ModelRef, session: Session, load: LoadSettings) -> Parameters:
    """How the GGUF that ``model`` names is run here; it is made first, where it is not there yet."""
    from ggq.operations.ready import ready
    from ggq.serving.parameters import choose

    found = ready(model, session, load)
    found.file.require_text_generation()
    return choose(session.toolchain, found.file.path, load)


def opened(session: Session, chosen: Parameters, out: Output) -> Model:
    """The model in memory; with ``-v`` its parameters are told."""
    from ggq.serving.model import Model

    if out.is_verbose:
        for name, value in chosen.described():
            out.echo(f"{name}: {value}")
    loaded = Model(session.toolchain, chosen)
    click.get_current_context().call_on_close(loaded.close)
    return loaded


def _prompt(given: str | None) -> str:
    if given not in (None, STDIN):
        return given or ""
    if given is None and sys.stdin.isatty():
        raise UsageProblem(
            "There is no prompt.", "", 'Give one: ggq run FILE "Hello"; or talk: ggq chat FILE.'
        )
    return sys.stdin.read().strip()


def _require_context(chosen: Parameters, most_tokens: int | None) -> None:
    """Raises CannotServe for an answer that the context could not hold."""
    if most_tokens and most_tokens >= chosen.context_tokens:
        raise CannotServe(
            f"{chosen.file.path.name} has no context of {most_tokens:,} tokens.",
            f"It has {chosen.context_tokens:,} here; it was trained for {chosen.file.context_length or 0:,}.",
            "Ask for fewer tokens with -n, or give more context with -c.",
        )


def _chat_prompt(model: Model, text: str, system: str | None, out: Output) -> str | None:
    """The prompt that the model's template makes of a question. None, and said why, where it makes none."""
    from ggq.serving.template import ChatTemplate

    messages = [{"role": "system", "content": system}] if system else []
    try:
        template = ChatTemplate(
            model.parameters.file.text("tokenizer.chat_template") or "", model.bos, model.eos
        )
        return template.prompt([*messages, {"role": "user", "content": text}])
    except CannotServe as problem:
        if system:
            raise
        out.warning(f"{problem.what} {problem.why} The prompt is continued as it stands.")
        return None


def _answered(
    model: Model,
    text: str,
    asked: AnswerSettings,
    how: tuple[SamplingSettings, GrammarSettings],
    out: Output,
) -> Answer:
    from ggq.serving.model import Sampling

    settings, wanted = how
    file = model.parameters.file
    prompt = None if asked.raw else _chat_prompt(model, text, asked.system, out)
    raw = prompt is None
    sampling = Sampling.of(settings, file, greedy=raw)
    tokens = model.tokens(text if prompt is None else prompt, special=not raw)
    most_tokens = asked.max_tokens
    if raw:
        most_tokens = most_tokens or 64
        model.require_room(len(tokens))
        out.stream(text)
    for piece in model.stream(
        tokens, sampling, most_tokens=most_tokens, grammar=grammar_of(model, wanted), trim=not raw
    ):
        out.stream(piece)
    out.text()
    assert model.last is not None, "the stream has ended"
    return model.last


def grammar_of(model: Model, wanted: GrammarSettings) -> Any:
    """The grammar that was asked for, or None."""
    if wanted.grammar:
        return model.grammar(gbnf=wanted.grammar.read_text(encoding="utf-8"))
    return model.grammar(json_schema=wanted.schema_text()) if wanted.json_schema else None


def tell(out: Output, answer: Answer) -> None:
    """How fast it was, and why it ended before the model did."""
    words = [f"{answer.tokens} tokens"]
    if answer.tokens_per_s:
        words.append(f"{answer.tokens_per_s:,.1f} tokens/s")
    if answer.first_token_s is not None:
        words.append(f"first token after {answer.first_token_s:.2f} s")
    words.append(f"prompt {answer.prompt_tokens} tokens")
    if answer.reused_tokens:
        words.append(f"{answer.reused_tokens} of them known")
    out.info(f"[{', '.join(words)}]")
    if answer.ending == "context":
        out.warning("The context is full: the answer ends here. More context: -c.")
