"""Help is quick: none of the heavy packages is imported to print it."""

from __future__ import annotations

import sys

import pytest

import ggq
from ggq.cli.main import VERBS
from ggq.system import process

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
    [[], ["--help"], ["--version"], *[[name, "-h"] for name in VERBS], ["bench", "all", "-h"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = process.run([sys.executable, "-c", ASK, *arguments], check=False)
    loaded = set(done.stderr[-1].split())
    assert "click" in loaded, done.stderr
    assert loaded & HEAVY == set()


def test_the_list_of_commands_imports_none_of_them() -> None:
    loaded = process.run([sys.executable, "-c", ASK, "--help"]).stderr[-1].split()
    assert len([name for name in loaded if name.split(".")[0] == "ggq"]) < 20


def test_a_verb_imports_no_other() -> None:
    loaded = set(process.run([sys.executable, "-c", ASK, "doctor", "-h"]).stderr[-1].split())
    assert "ggq.cli.doctor" in loaded
    assert loaded.isdisjoint(
        {"ggq.operations.convert_and_quantize", "ggq.operations.bench", "ggq.operations.plan", "ggq.convert"}
    )


def test_public_names_stay_functions_whatever_was_imported_before() -> None:
    check = (
        "import ggq.estimation.hollow_model, ggq.measurement.speed, ggq.conversion.checkpoint_view\n"
        "import ggq.quantization.recipe, ggq\n"
        "assert all(getattr(ggq, name) for name in ggq.__all__)\n"
        "assert all(callable(getattr(ggq, name)) for name in ('plan', 'bench', 'convert', 'quantize'))\n"
    )
    process.run([sys.executable, "-c", check])


def test_every_public_name_has_a_home() -> None:
    assert sorted(ggq.__all__) == sorted([*ggq._HOMES, "__version__"]) == dir(ggq)
