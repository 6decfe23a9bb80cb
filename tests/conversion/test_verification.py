"""Whether a model was compared stands in the GGUF itself, in the manifest, and is told by later runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import ggq
from ggq.conversion import convert, default_name
from ggq.conversion.child_process import Child
from ggq.conversion.settings import Verify
from ggq.conversion.verification import COMPARED, KEY, Verification, not_compared
from ggq.gguf import file as gguf_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files


def test_a_verdict_has_one_length_and_the_same_words_in_every_run() -> None:
    found = [
        Verification("off", 1, 1).verdict,
        Verification("sampled", 1, 1, logits_cosine=1.0).verdict,
        Verification("sampled", 1, 1, vectors_cosine=0.99999).verdict,
        Verification("sampled", 1, 1, why_not=f"transformers has no {'Very' * 90}Long\x1b[31mÄ").verdict,
        not_compared("it does not fit into memory: 1.20 GB are free"),
    ]
    assert len(set(map(len, found))) == 1 and all(text.isascii() and text.isprintable() for text in found)
    assert [text.strip() for text in found[:3]] == ["not compared", COMPARED, COMPARED]
    assert found[3].startswith("not compared: transformers has no Very")
    assert found[4].strip() == "not compared: it does not fit into memory"


def verdict(path: Path) -> str:
    return (gguf_file.read(path).text(KEY) or "").strip()


@dataclass
class Made:
    folder: Path
    heard: list[str]


@pytest.fixture(scope="module")
def uncompared(tmp_path_factory: pytest.TempPathFactory, example: Path) -> Made:
    """A kept base and presets by both engines, of a conversion without logits."""
    folder = tmp_path_factory.mktemp("uncompared")
    settings = Settings(keep_base=True, engine="llama-quantize")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Child, "_no_logits", lambda _: "it does not fit into memory: 3 MB are free")
        ggq.convert_and_quantize(str(example), ["Q8_0"], folder, settings)
    heard: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            heard.append(event.text)

    ggq.convert_and_quantize(str(example), ["Q8_0", "Q4_0"], folder, session=Session(listener=listen))
    return Made(folder, heard)


@pytest.mark.tool
def test_it_stands_in_the_base_and_in_the_files_of_both_engines(uncompared: Made, example: Path) -> None:
    names = ["tiny-llama-BF16.gguf", "tiny-llama-Q4_0.gguf", "tiny-llama-Q8_0.gguf"]
    assert sorted(path.name for path in uncompared.folder.glob("*.gguf")) == names
    said = {verdict(uncompared.folder / name) for name in names}
    assert said == {"not compared: it does not fit into memory"}


@pytest.mark.tool
def test_the_manifest_has_it_and_a_run_that_converts_nothing_tells_it(uncompared: Made) -> None:
    step = Manifest.of("tiny-llama", uncompared.folder).steps["convert"]
    assert step.findings["why_not"] == "it does not fit into memory: 3 MB are free"
    assert [text for text in uncompared.heard if "was not compared" in text] == [
        "The conversion of an earlier run was not compared with transformers: it does not fit into memory: "
        "3 MB are free."
    ]


@pytest.mark.tool
def test_a_verdict_that_was_not_expected_is_put_in_place(
    uncompared: Made, example: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as where it was known in advance, and their digest."""
    verified = Child.verified

    def failing(self: Child, level: Verify, made: gguf_file.GgufFile) -> Verification:
        self._found["logits"] = {"why_not": "it does not fit into memory: it was killed"}
        return verified(self, level, made)

    monkeypatch.setattr(Child, "verified", failing)
    output = tmp_path / "made.gguf"
    written: list[str] = []
    convert(
        example,
        output,
        on_written=lambda path: written.append(files.sha256_file(path)),
        session=Session(toolchain),
    )
    known = files.sha256_file(uncompared.folder / "tiny-llama-BF16.gguf")
    assert files.sha256_file(output) == known
    assert len(written) == 2 and written[0] != known == written[1]
    monkeypatch.undo()
    out = tmp_path / "out"
    ggq.convert_and_quantize(
        str(example), ["Q8_0"], out, Settings(keep_base=True), session=Session(toolchain=toolchain)
    )
    compared = out / default_name("tiny-llama", "bf16")
    assert verdict(compared) == verdict(out / "tiny-llama-Q8_0.gguf") == COMPARED
    assert files.sha256_file(compared) == written[0]
    assert compared.stat().st_size == output.stat().st_size
