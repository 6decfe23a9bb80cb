"""transformers runs no code of a checkpoint in a child of ggq, whoever trusts it."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from ggq.checkpoint import transformers_model
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process, python_child

# In a folder of its own, with or without ggq's prohibition: what the converter does in a dozen places.
TRUSTING = """
import sys
from pathlib import Path
from ggq.checkpoint import transformers_model
if sys.argv[2] == "forbidden":
    transformers_model.forbid_code()
import transformers
for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
    try:
        getattr(transformers, name).from_pretrained(sys.argv[1], trust_remote_code=True)
    except Exception as error:
        print(name, type(error).__name__)
"""


@pytest.fixture
def trusting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "trusting.py").write_text(TRUSTING)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def evil(example: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint that brings code for everything, and where the code leaves a note."""
    folder, note = Path(shutil.copytree(example, tmp_path / "evil")), tmp_path / "fired"
    (folder / "evil.py").write_text(
        f"open({str(note)!r}, 'w').close()\n"
        "from transformers import LlamaConfig as C, PreTrainedTokenizerFast as T, LlamaForCausalLM as M\n"
        "class Config(C): pass\nclass Tokenizer(T): pass\nclass Model(M): pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "new", "auto_map": names}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "New", "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}})
    )
    return folder, note


@pytest.mark.torch
def test_whoever_trusts_it_nothing_runs(trusting: Path, evil: tuple[Path, Path]) -> None:
    folder, note = evil
    done = python_child.run("trusting", folder, "forbidden", env=transformers_model.ENVIRONMENT)
    assert not note.exists()
    assert "AutoConfig CheckpointProblem" in done.stdout


@pytest.mark.torch
def test_without_the_prohibition_it_does(trusting: Path, evil: tuple[Path, Path]) -> None:
    folder, note = evil
    python_child.run("trusting", folder, "allowed", env=transformers_model.ENVIRONMENT, check=False)
    assert note.exists()


@pytest.mark.torch
def test_the_functions_that_are_closed_are_all_that_lead_to_python_files() -> None:
    """In transformers' loader, whatever imports, executes or copies a module file is one of them or is
    called by one."""
    import transformers.dynamic_module_utils as loader

    tree = ast.parse(Path(str(loader.__file__)).read_text(encoding="utf-8"))
    running = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(
            isinstance(call, ast.Call)
            and ast.unparse(call.func).rpartition(".")[2] in ("exec_module", "import_module", "exec", "eval")
            for call in ast.walk(node)
        )
    }
    assert running and running <= set(transformers_model._CODE_LOADERS)


def trusting_architectures(conversion: Path) -> set[str]:
    """The architectures of the modules that pass ``trust_remote_code=True``, read from the sources
    (conversion/base.py does so for all the others, in three functions that these reach too)."""
    trees = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in conversion.glob("*.py")}
    trusting = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and getattr(node.value, "value", None) is True
    }
    found = set[str]()
    for name, tree in trees.items():
        if name not in trusting:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ModelBase.register"):
                found |= {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
    return found


MANY = """
import io, json, sys
from pathlib import Path
from ggq.checkpoint import transformers_model
transformers_model.import_lightly()
transformers_model.forbid_code()
from ggq.llamacpp import converter
source, folder, output = map(Path, sys.argv[1:4])
converter.prepare(source)
config = json.loads((folder / "config.json").read_text())
for name in sys.argv[4:]:
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    try:
        converter.run(source, folder, "x", output, "f16", ["--vocab-only"], lambda it: None, lambda it: None)
        print(); print(name, "made")
    except Exception as error:
        print(); print(name, type(error).__name__)
"""


@pytest.mark.tool
def test_nothing_runs_for_any_architecture_that_the_converter_trusts(
    trusting: Path, evil: tuple[Path, Path], toolchain: Toolchain
) -> None:
    """The converter itself, without ggq's view before it: the prohibition alone must hold."""
    folder, note = evil
    names = tuple(sorted(trusting_architectures(toolchain.converter.parent / "conversion")))
    assert len(names) > 30 and "LLaDAModelLM" in names
    (trusting / "modules" / "many.py").write_text(MANY)
    done = python_child.run(
        "many", toolchain.converter.parent, folder, trusting / "out.gguf", *names,
        env=transformers_model.ENVIRONMENT, check=False,
    )  # fmt: skip
    tried = [line.split()[0] for line in done.stdout if line.startswith(names)]
    assert tuple(tried) == names, done.stderr[-5:]
    assert not note.exists()


@pytest.mark.tool
def test_the_converter_by_hand_does_run_it(
    trusting: Path, evil: tuple[Path, Path], toolchain: Toolchain, tmp_path: Path
) -> None:
    """So that the test above can fail."""
    from benchmarks.common import convert_by_hand

    folder, note = evil
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LLaDAModelLM"]}))
    done: process.Completed = convert_by_hand(toolchain, folder, tmp_path / "x.gguf", "f16", "--vocab-only")
    assert note.exists(), done.stderr[-3:]
