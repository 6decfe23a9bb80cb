"""Code in every place that a checkpoint has, and every verb that takes one: none of it runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_python_child import plant

pytestmark = pytest.mark.tool

NATIVE = '#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fclose(fopen({note}, "a")); }}\n'
ESCAPE = (
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}"
    "{{{{ cycler.__init__.__globals__.os.system('echo > {note}') }}}}"
)


class Fires:
    """A pickle that runs a command."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo pickle >> {self.note}",)


@pytest.fixture(scope="module")
def laid(example: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder named ``torch`` below one named ``json``, full of code; and where it would leave a note."""
    top = tmp_path_factory.mktemp("canaries")
    folder, note = top / "json" / "torch", top / "fired"
    shutil.copytree(example, folder)
    places = [folder, folder.parent, folder / "sub", folder / "custom_generate", folder / "1_Pooling"]
    for place in places:
        plant(place, note)
        (place / "evil.py").write_text(f"open({str(note)!r}, 'a').close()")
    if compiler := shutil.which("cc"):
        (top / "native.c").write_text(NATIVE.format(note=json.dumps(str(note))))
        library = top / "native.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, top / "native.c"], check=True)
        for place in places:
            for name in ("__init__.abi3.so", "torch.abi3.so", "libggml-cuda.so", "libggml-vulkan-x.so"):
                shutil.copy(library, place / name)
    (folder / "training_args.bin").write_bytes(pickle.dumps(Fires(note)))
    (folder / "vocab.pkl").write_bytes(pickle.dumps(Fires(note)))
    names = {
        "auto_map": {
            "AutoConfig": "evil.C",
            "AutoTokenizer": ["evil.T", "evil.T"],
            "AutoProcessor": "sub.evil--C",
        },
        "configuration_files": ["config.4.0.0.json"],
        "custom_generate": "custom_generate",
        "custom_pipelines": {"text-generation": {"impl": "evil.P"}},
    }
    for name in (
        "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
        "generation_config.json", "config.4.0.0.json",
    ):  # fmt: skip
        file = folder / name
        file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **names}))
    (folder / "chat_template.jinja").write_text(ESCAPE.format(note=note))
    return folder, note


def ggq(where: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command as it is installed: without the current folder in its own path."""
    command = [sys.executable, "-I", "-m", "ggq", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("inside", [True, False], ids=["in the folder", "beside it"])
def test_no_verb_runs_any_of_it(laid: tuple[Path, Path], tmp_path: Path, inside: bool) -> None:
    folder, note = laid
    where, model = (folder, ".") if inside else (folder.parent, "torch")
    made, quantized = tmp_path / "made.gguf", tmp_path / "quantized"
    for verb in (
        ["inspect", model],
        ["convert", model, "-o", made],
        ["plan", "--no-speed", model],
        ["convert-and-quantize", model, "--preset", "Q4_0", "--outdir", tmp_path / "both", "--verify", "off"],
        ["quantize", made, "--preset", "Q8_0", "--outdir", quantized, "--engine", "llama-quantize"],
        ["run", quantized / "made-Q8_0.gguf", "Once", "-n", "2"],
    ):
        done = ggq(where, *verb)
        assert not note.exists(), verb
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, (verb, done.stderr)


def test_they_do_fire(laid: tuple[Path, Path]) -> None:
    folder, note = laid
    subprocess.run([sys.executable, "-c", "import json"], cwd=folder)
    assert note.exists()
    note.unlink()
