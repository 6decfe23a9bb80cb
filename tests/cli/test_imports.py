"""Help is quick: none of the heavy packages is imported to print it."""

from __future__ import annotations

import sys

import pytest

from ggq import process
from ggq.cli.main import cli

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "matplotlib",
    "llama_cpp",
    "gguf",
    "huggingface_hub",
    "tokenizers",
    "sentencepiece",
}
ASK = """
import sys
from ggq.cli.main import cli
try:
    cli(sys.argv[1:], prog_name="ggq")
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--version"], *[[name, "-h"] for name in cli.commands], ["bench", "all", "-h"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = process.run([sys.executable, "-c", ASK, *arguments], check=False)
    loaded = set(done.stderr[-1].split())
    assert "click" in loaded, done.stderr
    assert loaded & HEAVY == set()
