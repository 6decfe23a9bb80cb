"""Ollama: a Modelfile, and the model as one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggq.errors import CannotServe
from ggq.gguf.header import Array, GgufFile
from ggq.llamacpp.offload import ALL_LAYERS
from ggq.serving.export.bundle import Bundle, Request
from ggq.serving.export.go_template import Pieces, pieces
from ggq.serving.settings import Use
from ggq.serving.template import ChatTemplate

PROGRAM = "ollama"
_EVERY_LAYER = 999  # Ollama takes as many as there are
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_GGUF_NAMES = {"temperature": "temp"}
_CACHE_DEFAULT = "f16"


def bundle(request: Request, folder: Path) -> Bundle:
    """A folder with a Modelfile; of a split model also with the one file that Ollama wants."""
    file = request.parameters.file
    merged = f"{request.name}.gguf" if request.is_split else ""
    template = _template(file)
    text = "\n".join(_lines(request, f"./{merged}" if merged else str(request.model), template)) + "\n"
    return Bundle(
        folder=folder,
        texts={"Modelfile": text},
        merged=merged,
        commands=[
            (PROGRAM, "create", model_name(request), "-f", str(folder / "Modelfile")),
            (PROGRAM, "run", model_name(request)),
        ],
        remarks=list(_remarks(request, template)),
    )


def model_name(request: Request) -> str:
    """As Ollama takes it: small letters, and a tag for the preset."""
    kept = "".join(it if it.isascii() and (it.isalnum() or it in "._-") else "-" for it in request.name)
    return kept.strip("-._").lower() or "model"


def _lines(request: Request, source: str, template: Pieces | None) -> Iterator[str]:
    file, serving = request.parameters.file, request.parameters.serving
    offload = serving.load.offload
    yield f"# Written by ggq for {_comment(file.path.name)}."
    yield f"FROM {source}"
    if serving.companions.projector is not None:
        yield f"FROM {serving.companions.projector.absolute()}"
    if template is not None:
        yield f'TEMPLATE """{template.go_template()}"""'
    layers = _EVERY_LAYER if offload.n_gpu_layers == ALL_LAYERS else offload.n_gpu_layers
    yield f"PARAMETER num_ctx {request.parameters.context_tokens}"
    yield f"PARAMETER num_gpu {layers}"
    if serving.threads:
        yield f"PARAMETER num_thread {serving.threads}"
    for stop in _stops(file, template):
        yield f'PARAMETER stop "{stop}"'
    for name in _SAMPLING:
        value = file.metadata.get(f"general.sampling.{_GGUF_NAMES.get(name, name)}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"PARAMETER {name} {value:g}"


def _stops(file: GgufFile, template: Pieces | None) -> list[str]:
    """The texts at which an answer ends: of the tokens that end one, and what the template puts behind it."""
    ids = [file.integer(f"tokenizer.ggml.{it}_token_id") for it in ("eos", "eot", "eom")]
    texts = [text for it in ids if (text := token_text(file, it))]
    if template is not None and (end := template.answer_end.strip()):
        texts.append(end)
    plain = [it for it in texts if '"' not in it and "\n" not in it and it.isprintable()]
    return list(dict.fromkeys(plain))


def token_text(file: GgufFile, number: int | None) -> str:
    """The text of a token; empty where there is none."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if number is None or not isinstance(tokens, Array) or not 0 <= number < len(tokens):
        return ""
    return str(tokens[number])


def _template(file: GgufFile) -> Pieces | None:
    """The chat template in Go's language, where that can say it."""
    own = file.text("tokenizer.chat_template")
    if own is None:
        return None
    bos = token_text(file, file.integer("tokenizer.ggml.bos_token_id"))
    eos = token_text(file, file.integer("tokenizer.ggml.eos_token_id"))
    try:
        render = ChatTemplate(own, bos, eos).prompt
    except CannotServe:
        return None
    # Ollama puts the token that begins a text there itself, where the GGUF says so.
    adds_bos = file.metadata.get("tokenizer.ggml.add_bos_token", file.tokenizer == "llama")
    found = pieces(render, bos if adds_bos else "")
    return found if found is not None and '"""' not in found.go_template() else None


def _remarks(request: Request, template: Pieces | None) -> Iterator[str]:
    """What a Modelfile cannot say."""
    file, serving = request.parameters.file, request.parameters.serving
    own = file.text("tokenizer.chat_template")
    if own is None and request.parameters.use is Use.TEXT:
        yield "The model has no chat template: Ollama continues texts with it."
    elif own is not None and template is None:
        yield (
            "The model's chat template does more than Ollama's language can be shown to do: none is written."
            " Ollama takes one of its own, if it knows the model's."
        )
    if own is not None and "tools" in own:
        yield "Calls of tools are not in the Modelfile: Ollama's templates write them in another way."
    if own is not None and "enable_thinking" in own:
        yield "Whether the model thinks before it answers cannot be switched."
    if own is not None and ("strftime_now" in own or "date_string" in own):
        yield "The date in the template is that of today, for good."
    if (serving.load.type_k, serving.load.type_v) != (_CACHE_DEFAULT, _CACHE_DEFAULT):
        yield (
            f"The type of the cache is Ollama's for all models: OLLAMA_KV_CACHE_TYPE={serving.load.type_k},"
            " with OLLAMA_FLASH_ATTENTION=1."
        )
    if serving.load.offload.n_cpu_moe:
        yield "Experts cannot be left on the CPU alone: Ollama puts whole layers there."
    if request.is_split:
        yield "Ollama takes no split files: the shards become one."


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
