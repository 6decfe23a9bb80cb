"""LM Studio, llamafile, a script of Python, and llama-server's own command line."""

from __future__ import annotations

import pprint
import shlex
from pathlib import Path

from ggq.errors import CannotServe
from ggq.llamacpp.server_endpoint import router_ini
from ggq.serving.export.bundle import Bundle, Request
from ggq.serving.settings import Use

LM_STUDIO_MODELS = Path("~/.lmstudio/models")

_SCRIPT = '''#!/usr/bin/env python3
"""Runs {name} as ggq chose it for the machine that it was written on.

Needs llama-cpp-python (pip install llama-cpp-python).
"""

import sys

from llama_cpp import Llama

MODEL = {model}
OPTIONS = {options}


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or {prompt!r}
    model = Llama(MODEL, verbose=False, **OPTIONS)
{body}

if __name__ == "__main__":
    main()
'''
_CHAT = """    messages = [{"role": "user", "content": prompt}]
    for part in model.create_chat_completion(messages, max_tokens=256, stream=True):
        print(part["choices"][0]["delta"].get("content") or "", end="", flush=True)
    print()
"""
_CONTINUE = """    for part in model.create_completion(prompt, max_tokens=256, stream=True):
        print(part["choices"][0]["text"], end="", flush=True)
    print()
"""
_EMBED = """    print(model.embed(prompt))
"""


def lm_studio(request: Request, root: Path | None) -> Bundle:
    """Its folders: publisher, model, file. Shards and a projector lie together."""
    root = (root or LM_STUDIO_MODELS).expanduser()
    folder = root / _part(request.publisher) / _part(request.name)
    parameters = request.parameters
    every = [*parameters.file.paths, *filter(None, [parameters.serving.companions.projector])]
    layers = parameters.serving.load.offload.n_gpu_layers
    return Bundle(
        folder=folder,
        links={it.name: it.absolute() for it in every},
        remarks=[
            "Hard links: no disk is taken, and the model stays until both names are removed.",
            "LM Studio keeps settings of its own. Chosen here:"
            f" context {parameters.context_tokens:,}, GPU layers {layers},"
            f" threads {parameters.serving.threads}.",
        ],
    )


def _part(name: str) -> str:
    """A name as a folder can have it."""
    kept = "".join(it if it.isalnum() or it in "._- " else "-" for it in name).strip(" .")
    return kept or "model"


def python(request: Request, folder: Path) -> Bundle:
    """A script that runs as it is. Raises CannotServe for what llama-cpp-python cannot do."""
    options = request.parameters.serving.binding_options()
    if options is None:
        raise CannotServe(
            "llama-cpp-python has no options for this placement.",
            "A projector, a draft model, or experts on the CPU need llama-server.",
            "Take --to llama-server.",
        )
    use, name = request.parameters.use, f"{request.name}.py"
    body, prompt = (_EMBED, "Hello") if use is not Use.TEXT else (_CONTINUE, "Once upon a time")
    if use is Use.TEXT and request.parameters.file.has_chat_template:
        body, prompt = _CHAT, "Who are you?"
    text = _SCRIPT.format(
        name=_comment(request.name),
        model=repr(str(request.model)),
        options=pprint.pformat(dict(options), sort_dicts=False),
        prompt=prompt,
        body=body,
    )
    return Bundle(
        folder=folder,
        texts={name: text},
        executable=frozenset({name}),
        commands=[("python3", str(folder / name), prompt)],
    )


def llama_server(request: Request, folder: Path) -> Bundle:
    """The command line as a script, and an entry for the INI file of a router of several models."""
    program = str(request.server or "llama-server")
    arguments = request.parameters.serving.server_arguments()
    where = ["--host", request.host, "--port", str(request.port)]
    command = (program, "-m", str(request.model), "-a", request.name, *arguments, *where)
    script = f"{request.name}-server.sh"
    ini = f"{request.name}.ini"
    return Bundle(
        folder=folder,
        texts={
            script: f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n',
            ini: router_ini({request.name: (request.model, arguments)}),
        },
        executable=frozenset({script}),
        commands=[command],
        remarks=[f"Several models at once: {program} --models-preset {shlex.quote(str(folder / ini))}"],
    )


def llamafile(request: Request, folder: Path) -> Bundle:
    """What llamafile wants beside the program: its arguments, and how the three become one file."""
    merged = f"{request.name}.gguf" if request.is_split else ""
    inside = merged or request.model.name
    source = f"./{merged}" if merged else shlex.quote(str(request.model))
    serving = request.parameters.serving
    layers = serving.load.offload.n_gpu_layers
    arguments = ["-m", inside, "-c", str(request.parameters.context_tokens)]
    arguments += ["-ngl", str(layers)] if layers else []
    target = shlex.quote(f"{request.name}.llamafile")
    script = f"""#!/bin/sh
# Makes {_comment(request.name)}.llamafile. Needs llamafile and zipalign of one release of
# https://github.com/Mozilla-Ocho/llamafile in the current folder or on PATH.
set -e
cd "$(dirname "$0")"
PATH="$PWD:$PATH"
cp "$(command -v llamafile)" {target}
chmod +x {target}
zipalign -j0 {target} {source} .args
"""
    # Each on a line of its own; "..." is where what one types goes.
    return Bundle(
        folder=folder,
        texts={".args": "\n".join([*arguments, "..."]) + "\n", "make-llamafile.sh": script},
        merged=merged,
        executable=frozenset({"make-llamafile.sh"}),
        commands=[("sh", str(folder / "make-llamafile.sh"))],
        remarks=[
            "ggq does not come with llamafile's program: the script says where it is to be had.",
            "Its llama.cpp is older than ggq's: a new architecture or type may not be known there.",
            "Windows runs no program above 4 GB: there take the llamafile program with the GGUF beside it.",
        ],
    )


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() and letter not in '"\\' else " " for letter in text)
