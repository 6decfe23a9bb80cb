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
from canaries import plant
from hubserver import HubServer

from ggq.conversion import chat_templates
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.tool

NATIVE = '#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fclose(fopen({note}, "a")); }}\n'
ESCAPE = (
    "{{{{ cycler.__init__.__globals__.os.system('echo > {note}') }}}}"
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}"
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


def test_no_verb_that_measures_runs_any_of_it(
    laid: tuple[Path, Path], base_gguf: Path, tmp_path: Path
) -> None:
    """Called where the code lies, with the GGUF and the text beside it."""
    folder, note = laid
    shutil.copy(base_gguf, folder / "base.gguf")
    (folder / "calibration.txt").write_text("Once upon a time there was a folder full of code. " * 60)
    quantized = tmp_path / "quantized"
    for verb in (
        ["plan", ".", "--preset", "Q4_0", "--budget", "2s"],
        ["recommend", ".", "--preset", "Q4_0", "--budget", "2s"],
        ["imatrix", "base.gguf", "--text", "calibration.txt", "-c", "64", "--chunks", "2"],
        ["quantize", "base.gguf", "--preset", "Q4_0", "--outdir", quantized],
        ["bench", "speed", quantized / "base-Q4_0.gguf", "-p", "8", "-n", "4", "--reps", "1"],
        ["bench", "quality", "base.gguf", quantized / "base-Q4_0.gguf", "--text", "calibration.txt",
         "-c", "64", "--chunks", "4", "--reference", "."],
    ):  # fmt: skip
        done = ggq(folder, *verb)
        assert not note.exists(), verb
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, (verb, done.stderr)
    assert "reference: transformers does not run" not in done.stderr


def test_nothing_of_a_repository_runs(laid: tuple[Path, Path], hub: HubServer, tmp_path: Path) -> None:
    folder, note = laid
    hub.add_repo("some/model", folder)
    for verb in (["download", "some/model"], ["plan", "--no-speed", "--preset", "Q4_0", "some/model"]):
        done = ggq(folder, *verb)
        assert not note.exists(), verb
        assert "Traceback" not in done.stderr and done.returncode == 0, (verb, done.stderr)
    fetched = [request.path for request in hub.requests("/resolve/")]
    assert any("config.json" in path for path in fetched)
    assert not [
        path for path in fetched if path.endswith((".py", ".so", ".pth", ".pkl", "training_args.bin"))
    ]


# ---- weights that are a pickle ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pickled(example: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint whose pytorch_model.bin has the weights, and a command; where that would leave a note."""
    import torch
    from safetensors.torch import load_file

    top = tmp_path_factory.mktemp("pickled")
    folder, note = top / "model", top / "fired"
    shutil.copytree(example, folder)
    weights: dict[str, object] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
        file.unlink()
    torch.save({**weights, "evil": Fires(note)}, folder / "pytorch_model.bin")
    return folder, note


def test_code_in_the_weights_is_refused_in_words(pickled: tuple[Path, Path], tmp_path: Path) -> None:
    folder, note = pickled
    for verb in (
        ["convert", folder, "-o", tmp_path / "made.gguf"],
        ["plan", "--no-speed", folder],
        ["recommend", "--no-speed", folder],
        ["convert-and-quantize", folder, "--preset", "Q4_0", "--outdir", tmp_path / "both"],
    ):
        done = ggq(tmp_path, *verb)
        assert not note.exists(), verb
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "hold more than weights" in done.stderr and "It was not run." in done.stderr
        assert "weights_only" not in done.stderr
        assert not list(tmp_path.rglob("*.gguf"))


def test_code_in_a_reference_is_refused_in_words(
    pickled: tuple[Path, Path], base_gguf: Path, tmp_path: Path
) -> None:
    folder, note = pickled
    (tmp_path / "text.txt").write_text("Once upon a time there was a folder full of code. " * 60)
    ggq(tmp_path, "quantize", base_gguf, "--preset", "Q8_0", "--outdir", tmp_path)
    (quantized,) = tmp_path.glob("*Q8_0.gguf")
    done = ggq(
        tmp_path, "bench", "quality", base_gguf, quantized, "--text", tmp_path / "text.txt", "-c", "64",
        "--chunks", "4", "--reference", folder, "-o", tmp_path / "record.json",
    )  # fmt: skip
    assert not note.exists()
    assert "hold more than weights" in done.stderr and "was not run" in done.stderr
    assert "weights_only" not in done.stderr and "succeed" not in done.stderr


def test_the_pickle_does_fire(pickled: tuple[Path, Path]) -> None:
    import torch

    folder, note = pickled
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert note.exists()
    note.unlink()


# ---- a template that leaves its sandbox ------------------------------------------------------------------

ESCAPES = (
    "{{{{ cycler.__init__.__globals__.os.system('{run}') }}}}",
    "{{{{ lipsum.__globals__['os'].system('{run}') }}}}",
    "{{{{ (lipsum|attr('__globals__'))['os'].system('{run}') }}}}",
    "{{{{ joiner.__init__.__globals__.__builtins__.__import__('os').system('{run}') }}}}",
    "{{{{ raise_exception.__globals__.__builtins__.__import__('os').system('{run}') }}}}",
    "{{{{ self.__init__.__globals__.__builtins__['__import__']('os').system('{run}') }}}}",
    "{{% set f = messages|map('attr', '__class__')|list %}}{{{{ f[0].__mro__[1].__subclasses__()"
    "|selectattr('__name__', 'equalto', '_wrap_close')|map(attribute='__init__')|map(attribute='__globals__')"
    "|map(attribute='system')|first|string }}}}{{{{ lipsum.__globals__.os.system('{run}') }}}}",
)


@pytest.mark.parametrize("number", range(len(ESCAPES)))
def test_a_template_does_not_leave_its_sandbox(
    number: int, toolchain: Toolchain, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a conversion renders it, in both engines; and without the sandbox it would."""
    import jinja2
    from transformers.utils import chat_template_utils

    note = tmp_path / "fired"
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    text = ESCAPES[number].format(run=f"echo > {note}")
    (folder / "chat_template.jinja").write_text(text)
    done = chat_templates.compare(folder, text, None, toolchain.lib_dir)
    assert not note.exists() and not done["agree"]

    monkeypatch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", jinja2.Environment)
    text += " "  # compiled templates are remembered
    (folder / "chat_template.jinja").write_text(text)
    chat_templates.compare(folder, text, None, toolchain.lib_dir)
    assert note.exists()


def test_they_do_fire(laid: tuple[Path, Path]) -> None:
    folder, note = laid
    subprocess.run([sys.executable, "-c", "import json"], cwd=folder)
    assert note.exists()
    note.unlink()
