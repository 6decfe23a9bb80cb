"""The `ggq` command: names the verbs and nothing else."""

from __future__ import annotations

import click

from ggq._version import __version__
from ggq.cli.error_messages import in_words
from ggq.cli.group import GgqGroup

VERBS = {
    "convert-and-quantize": "Download, convert, check and quantize a model.",
    "plan": "What presets weigh, need and do, before a download.",
    "recommend": "The best preset for this machine, and why.",
    "bench": "Measure quality, speed and memory.",
    "download": "Download what a conversion needs of a model.",
    "convert": "Convert a checkpoint to a GGUF, and prove it.",
    "imatrix": "Make the imatrix of a 16-bit GGUF.",
    "quantize": "Quantize a 16-bit GGUF over presets.",
    "run": "Answer a prompt with a model.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Serve a model: a web page and OpenAI's API.",
    "inspect": "Say what a model is, without loading it.",
    "export": "Hand a model over to Ollama, LM Studio, systemd …",
    "report": "Show what was made and measured, on one page.",
    "publish": "Upload files to the Hub, with a model card.",
    "cache": "List or remove what the caches hold.",
    "presets": "List the presets.",
    "setup": "Build llama.cpp's tools, once.",
    "doctor": "Say what this machine has, and what is missing.",
}
CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "GGQ", "max_content_width": 100}


@click.group(cls=GgqGroup, verbs=VERBS, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="ggq")
def cli() -> None:
    """From a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

    \b
    ggq plan Qwen/Qwen3-0.6B
    ggq recommend Qwen/Qwen3-0.6B
    ggq convert-and-quantize Qwen/Qwen3-0.6B
    ggq convert-and-quantize ./my-checkpoint --preset k-quants --keep-base
    ggq bench my-checkpoint
    ggq doctor
    """


def main() -> None:
    """The console script."""
    with in_words():
        cli(prog_name="ggq")


if __name__ == "__main__":
    main()
