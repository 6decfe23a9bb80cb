"""A GGUF that is not a whole model under its own name: every verb says what it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from ggq.cli.main import cli
from ggq.errors import GgufProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.toolchain import Toolchain


def write(
    path: Path, architecture: str, fill: Callable[[gguf.GGUFWriter], None], *, tensors: bool = True
) -> Path:
    """A GGUF by gguf's own writer; returns ``path``."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    if tensors:
        writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kinds(folder: Path) -> dict[str, Path]:
    """A file of each kind, by a word of what it is."""
    return {
        "imatrix": write(folder / "i.gguf", "none", lambda it: it.add_type("imatrix")),
        "adapter (lora)": write(folder / "a.gguf", "llama", lambda it: it.add_string("adapter.type", "lora")),
        "adapter": write(folder / "b.gguf", "llama", lambda it: it.add_type("adapter")),
        "projector": write(folder / "p.gguf", "clip", lambda it: None),
        "mmproj": write(folder / "m.gguf", "clip", lambda it: it.add_type("mmproj")),
        "control vector": write(folder / "c.gguf", "controlvector", lambda it: None),
        "vocabulary alone": write(
            folder / "v.gguf", "llama", lambda it: it.add_tokenizer_model("gpt2"), tensors=False
        ),
    }


VERBS = (
    ("run", "FILE", "Once upon"),
    ("bench", "speed", "FILE"),
    ("bench", "memory", "FILE"),
    ("bench", "quality", "FILE", "FILE"),
    ("bench", "FILE"),
    ("quantize", "FILE", "--preset", "Q4_0"),
    ("imatrix", "FILE"),
    ("plan", "FILE"),
    ("recommend", "FILE"),
)


@pytest.mark.tool
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_says_what_the_file_is(
    verb: tuple[str, ...], toolchain: Toolchain, tmp_path: Path
) -> None:
    for what, file in kinds(tmp_path).items():
        done = CliRunner().invoke(cli, [str(file) if word == "FILE" else word for word in verb])
        assert done.exit_code == 1, (what, done.output)
        assert "is not a model." in done.stderr, (what, done.stderr)
        assert what in done.stderr
        assert "next: Give " in done.stderr


def test_inspect_shows_every_kind(tmp_path: Path) -> None:
    for what, file in kinds(tmp_path).items():
        done = CliRunner().invoke(cli, ["inspect", str(file)])
        assert done.exit_code == 0 and what in done.stdout, (what, done.stdout)


@pytest.mark.tool
def test_no_text_is_fetched_for_what_has_no_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggq import corpora as corpus

    monkeypatch.setattr(corpus, "resolve", lambda *_args, **_options: pytest.fail("a text was looked for"))
    base = write(tmp_path / "e.gguf", "bert", lambda it: it.add_causal_attention(False))
    other = write(
        tmp_path / "e-Q8_0.gguf", "bert", lambda it: (it.add_causal_attention(False), it.add_name("other"))
    )
    done = CliRunner().invoke(cli, ["bench", "quality", str(base), str(other)])
    assert done.exit_code == 1 and "encoder (bert)" in done.stderr
    alone = CliRunner().invoke(cli, ["bench", "quality", str(base), str(base)])
    assert alone.exit_code == 2 and "nothing to compare" in alone.stderr


@pytest.mark.tool
def test_an_encoder_is_not_asked_to_continue(tmp_path: Path) -> None:
    encoder = write(tmp_path / "e.gguf", "bert", lambda it: it.add_causal_attention(False))
    done = CliRunner().invoke(cli, ["run", str(encoder), "Once upon"])
    assert done.exit_code == 1
    assert "does not continue texts" in done.stderr
    assert "encoder (bert)" in done.stderr


@pytest.fixture
def split(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> list[Path]:
    """The embedded model in shards, by llama-gguf-split."""
    tool = toolchain.tool("llama-gguf-split")
    subprocess.run(
        [tool, "--split-max-tensors", "8", base_gguf, tmp_path / "tiny"], check=True, capture_output=True
    )
    return sorted(tmp_path.glob("tiny-*.gguf"))


@pytest.mark.tool
def test_any_shard_stands_for_all(split: list[Path]) -> None:
    assert len(split) == 3
    whole = gguf_file.read_model(split[0])
    for shard in split[1:]:
        assert gguf_file.read_model(shard).paths == whole.paths == tuple(split)
        assert gguf_file.read_model(shard).tensors == whole.tensors
    done = CliRunner().invoke(cli, ["run", str(split[1]), "Remove the", "-n", "4"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("Remove the")


@pytest.mark.tool
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2)])
def test_joined_shards_are_told(split: list[Path], order: tuple[int, ...], tmp_path: Path) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(split[index].read_bytes() for index in order))
    with pytest.raises(GgufProblem, match="llama-gguf-split --merge") as raised:
        gguf_file.read(joined)
    assert f"byte {split[order[0]].stat().st_size:,} of" in raised.value.why


@pytest.mark.tool
@pytest.mark.parametrize(
    ("shard", "name", "words"),
    [
        (1, "renamed.gguf", "shard 2 of 3, under another name"),
        (0, "renamed.gguf", "shard 1 of 3, under another name"),
        (2, "tiny-00001-of-00001.gguf", "shard 3 of 3, under another name"),
    ],
)
def test_a_renamed_shard_is_told(split: list[Path], shard: int, name: str, words: str) -> None:
    renamed = split[shard].rename(split[shard].with_name(name))
    with pytest.raises(GgufProblem, match=words) as raised:
        gguf_file.read_all(renamed)
    assert f"-{shard + 1:05d}-of-00003.gguf" in raised.value.next_step


@pytest.mark.tool
def test_shards_under_each_others_names_are_told(split: list[Path], tmp_path: Path) -> None:
    split[1].rename(tmp_path / "aside")
    split[2].rename(split[1])
    (tmp_path / "aside").rename(split[2])
    with pytest.raises(GgufProblem, match="shard 3 of 3, under another name"):
        gguf_file.read_all(split[0])


def test_bytes_behind_the_last_tensor_are_told(tmp_path: Path) -> None:
    file = write(tmp_path / "t.gguf", "llama", lambda it: None)
    assert gguf_file.read(file).trailing_bytes == 0
    with file.open("ab") as stream:
        stream.write(b"hello")
    assert gguf_file.read(file).trailing_bytes == 5
    assert "5 bytes that belong to no tensor" in CliRunner().invoke(cli, ["inspect", str(file)]).stdout


@pytest.mark.tool
def test_a_template_that_llama_cpp_cannot_parse_does_not_stop_run(base_gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    reader = gguf.GGUFReader(base_gguf)
    writer = gguf.GGUFWriter(broken, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    writer.add_chat_template("{% for m in messages %}{{ m.content }")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = CliRunner().invoke(cli, ["run", str(broken), "Remove the", "-n", "4"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("Remove the")
