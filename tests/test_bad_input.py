"""What a stranger may do wrong: every case ends with words and exit 1 or 2, and leaves nothing half-made.

Each case gets a fresh folder with a whole checkpoint (``model``), a whole base (``base.gguf``) and an ``out``
folder, spoils something, and returns the command. Its ``words`` must stand in what a person reads.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from disks import tmpfs

from ggq.cli.main import cli

pytestmark = pytest.mark.tool

Spoil = Callable[["Place"], list[str]]


@dataclass
class Place:
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def base(self) -> Path:
        return self.folder / "base.gguf"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def main_job(self, model: Path | str | None = None, *more: str) -> list[str]:
        preset = () if "--preset" in more else ("--preset", "q4_k_m")
        model = model or self.model
        return ["convert-and-quantize", str(model), *preset, "--outdir", str(self.out), *more]

    def quantize(self, *more: str) -> list[str]:
        return ["quantize", str(self.base), "--outdir", str(self.out), "--preset", "q4_k_m", *more]

    def repack(self, pack: Callable[[str, Any], dict[str, Any]]) -> None:
        """Replace each linear weight of the layers by the tensors that ``pack`` makes of it."""
        import torch
        from safetensors.torch import load_file, save_file

        file = self.model / "model.safetensors"
        packed: dict[str, Any] = {}
        for name, weight in load_file(file).items():
            packed |= pack(name, weight) if name.endswith("_proj.weight") else {name: weight}
        save_file({name: torch.as_tensor(it) for name, it in packed.items()}, file, {"format": "pt"})

    def config(self, **changes: Any) -> None:
        """Change keys of config.json; None removes one."""
        file = self.model / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def header(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrite the safetensors header, the data as they were."""
        file = self.model / "model.safetensors"
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    def index(self, text: str | None = None, **weight_map: str) -> None:
        """A shard index beside (or instead of) the single file."""
        content = text if text is not None else json.dumps({"weight_map": weight_map})
        (self.model / "model.safetensors.index.json").write_text(content)

    def patch(self, offset: int, new: bytes) -> None:
        with self.base.open("r+b") as stream:
            stream.seek(offset)
            stream.write(new)

    def only(self, **files: str) -> list[str]:
        """A folder with just these files; ``__`` stands for the dot before the extension."""
        shutil.rmtree(self.model)
        self.model.mkdir()
        for name, text in files.items():
            (self.model / name.replace("__", ".")).write_text(text)
        return self.main_job()


CASES: list[tuple[str, str, Spoil]] = []


def case(words: str) -> Callable[[Spoil], Spoil]:
    def keep(spoil: Spoil) -> Spoil:
        CASES.append((spoil.__name__, words, spoil))
        return spoil

    return keep


# ---- the model's name ------------------------------------------------------------------------------------


@case("org/name")
def a_bare_name(place: Place) -> list[str]:
    return place.main_job("Qwen3-8B")


@case("no file or folder")
def a_path_that_is_not_there(place: Place) -> list[str]:
    return place.main_job("./nothing-here")


@case("no file or folder")
def a_gguf_that_is_not_there(place: Place) -> list[str]:
    return ["convert-and-quantize", "missing.gguf"]


@case("revision")
def a_revision_of_a_folder(place: Place) -> list[str]:
    return place.main_job(None, "--revision", "main")


@case("")
def no_model_at_all(place: Place) -> list[str]:
    return ["convert-and-quantize"]


# ---- the checkpoint --------------------------------------------------------------------------------------


@case("")
def an_empty_folder(place: Place) -> list[str]:
    return place.only()


@case("config.json")
def weights_without_a_config(place: Place) -> list[str]:
    (place.model / "config.json").unlink()
    return place.main_job()


@case("JSON")
def a_config_that_is_not_json(place: Place) -> list[str]:
    (place.model / "config.json").write_text("{hidden_size: 256}")
    return place.main_job()


@case("config.json")
def a_config_that_is_a_list(place: Place) -> list[str]:
    (place.model / "config.json").write_text("[1, 2]")
    return place.main_job()


@case("architectures")
def a_config_without_architectures(place: Place) -> list[str]:
    place.config(architectures=None)
    return place.main_job()


@case("LlamaForCausalLM")
def an_architecture_that_is_misspelt(place: Place) -> list[str]:
    place.config(architectures=["LamaForCausalLM"])
    return place.main_job()


@case("weights")
def a_config_without_weights(place: Place) -> list[str]:
    (place.model / "model.safetensors").unlink()
    return place.main_job()


@case("truncated")
def a_safetensors_cut_in_its_data(place: Place) -> list[str]:
    file = place.model / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    return place.main_job()


@case("model.safetensors")
def a_safetensors_cut_in_its_header(place: Place) -> list[str]:
    os.truncate(place.model / "model.safetensors", 40)
    return place.main_job()


@case("model.safetensors")
def an_empty_safetensors(place: Place) -> list[str]:
    os.truncate(place.model / "model.safetensors", 0)
    return place.main_job()


@case("truncated")
def a_safetensors_header_of_an_exabyte(place: Place) -> list[str]:
    with (place.model / "model.safetensors").open("r+b") as stream:
        stream.write(struct.pack("<Q", 1 << 60))
    return place.main_job()


@case("not in UTF-8")
def a_safetensors_header_that_is_not_json(place: Place) -> list[str]:
    with (place.model / "model.safetensors").open("r+b") as stream:
        stream.seek(8)
        stream.write(b"\xff\xff\xff\xff")
    return place.main_job()


@case("model.norm.weight")
def data_offsets_outside_the_file(place: Place) -> list[str]:
    place.header(lambda header: header["model.norm.weight"].update(data_offsets=[1 << 40, (1 << 40) + 512]))
    return place.main_job()


@case("model.norm.weight")
def a_shape_that_is_not_its_bytes(place: Place) -> list[str]:
    place.header(lambda header: header["model.norm.weight"].update(shape=[3]))
    return place.main_job()


@case("model.norm.weight")
def a_shape_beyond_all_memory(place: Place) -> list[str]:
    place.header(lambda header: header["model.norm.weight"].update(shape=[1 << 62, 1 << 62]))
    return place.main_job()


@case("model.norm.weight")
def a_negative_shape(place: Place) -> list[str]:
    place.header(lambda header: header["model.norm.weight"].update(shape=[-256]))
    return place.main_job()


@case("unknown type")
def a_dtype_that_nobody_knows(place: Place) -> list[str]:
    place.header(lambda header: header["model.norm.weight"].update(dtype="Q9"))
    return place.main_job()


@case("model-00002-of-00002.safetensors")
def a_shard_that_is_missing(place: Place) -> list[str]:
    (place.model / "model.safetensors").rename(place.model / "model-00001-of-00002.safetensors")
    place.index(
        **{"model.norm.weight": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}
    )
    return place.main_job()


@case("beside it")
def a_shard_outside_the_folder(place: Place) -> list[str]:
    place.index(**{"model.norm.weight": "../../../etc/passwd"})
    return place.main_job()


@case("beside it")
def a_shard_with_an_absolute_path(place: Place) -> list[str]:
    place.index(**{"model.norm.weight": "/etc/passwd"})
    return place.main_job()


@case("model.safetensors.index.json")
def an_index_that_is_not_json(place: Place) -> list[str]:
    place.index("{")
    return place.main_job()


@case("weight_map")
def an_index_without_a_weight_map(place: Place) -> list[str]:
    place.index("{}")
    return place.main_job()


@case("tokenizer")
def an_empty_tokenizer(place: Place) -> list[str]:
    (place.model / "tokenizer.model").write_bytes(b"")
    return place.main_job()


@case("tokenizer")
def no_tokenizer(place: Place) -> list[str]:
    (place.model / "tokenizer.model").unlink()
    return place.main_job()


@case("adapter")
def only_a_lora_adapter(place: Place) -> list[str]:
    adapter = json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    return place.only(adapter_config__json=adapter, adapter_model__safetensors="x")


@case(".gguf")
def a_folder_of_gguf_files(place: Place) -> list[str]:
    return place.only(model__gguf="GGUF")


@case("awq")
def an_awq_checkpoint(place: Place) -> list[str]:
    def pack(name: str, weight: Any) -> dict[str, Any]:
        out_width, in_width = weight.shape
        stem = name.removesuffix("weight")
        return {
            f"{stem}qweight": np.zeros((in_width, out_width // 8), np.int32),
            f"{stem}qzeros": np.zeros((in_width // 32, out_width // 8), np.int32),
            f"{stem}scales": np.ones((in_width // 32, out_width), np.float16),
        }

    place.repack(pack)
    place.config(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32})
    return place.main_job()


@case("bitsandbytes")
def a_bitsandbytes_checkpoint(place: Place) -> list[str]:
    def pack(name: str, weight: Any) -> dict[str, Any]:
        scales = np.ones(weight.shape[0], np.float32)
        return {name: np.zeros(weight.shape, np.int8), name.replace("weight", "SCB"): scales}

    place.repack(pack)
    place.config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    return place.main_job()


@case("code")
def a_pickle_that_carries_code(place: Place) -> list[str]:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {place.folder}/attacked",)

    (place.model / "model.safetensors").unlink()
    with zipfile.ZipFile(place.model / "pytorch_model.bin", "w") as archive:  # as torch.save writes it
        archive.writestr("archive/data.pkl", pickle.dumps({"model.norm.weight": Attack()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return place.main_job()


@case("before 1.6")
def a_pickle_as_old_torch_wrote_it(place: Place) -> list[str]:
    (place.model / "model.safetensors").unlink()
    (place.model / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": 1}))
    return place.main_job()


@case("NaN")
def weights_that_are_nan(place: Place) -> list[str]:
    file = place.model / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-200_000:] = b"\xff" * 200_000
    file.write_bytes(raw)
    return place.main_job()


# ---- the GGUF --------------------------------------------------------------------------------------------


@case("not a GGUF")
def a_text_for_a_gguf(place: Place) -> list[str]:
    place.base.write_text("hello, world")
    return place.quantize()


@case("empty")
def an_empty_gguf(place: Place) -> list[str]:
    place.base.write_bytes(b"")
    return place.quantize()


@case("truncated")
def a_gguf_cut_in_its_data(place: Place) -> list[str]:
    os.truncate(place.base, place.base.stat().st_size - 10_000)
    return place.quantize()


@case("truncated")
def a_gguf_cut_in_its_header(place: Place) -> list[str]:
    os.truncate(place.base, 300)
    return place.quantize()


@case("version")
def a_gguf_of_version_1(place: Place) -> list[str]:
    place.patch(4, struct.pack("<I", 1))
    return place.quantize()


@case("tensors")
def a_gguf_of_a_quintillion_tensors(place: Place) -> list[str]:
    place.patch(8, struct.pack("<Q", 1 << 60))
    return place.quantize()


@case("header")
def a_gguf_with_a_key_of_an_exabyte(place: Place) -> list[str]:
    place.patch(24, struct.pack("<Q", 1 << 60))
    return place.quantize()


@case("quantized already")
def a_base_that_is_quantized(place: Place) -> list[str]:
    made = CliRunner().invoke(cli, ["quantize", str(place.base), "--preset", "q8_0", "-q"])
    assert made.exit_code == 0, made.output
    return ["quantize", str(place.folder / "base-Q8_0.gguf"), "--outdir", str(place.out)]


@case("shards")
def a_split_gguf_with_a_part_missing(place: Place) -> list[str]:
    split = place.folder / "base-00001-of-00002.gguf"
    place.base.rename(split)
    return ["quantize", str(split), "--outdir", str(place.out)]


# ---- the request -----------------------------------------------------------------------------------------


@case("Did you mean Q4_K_M")
def a_preset_that_is_misspelt(place: Place) -> list[str]:
    return place.main_job(None, "--preset", "q4_km")


@case("needs an imatrix")
def a_preset_without_its_imatrix(place: Place) -> list[str]:
    return ["quantize", str(place.base), "--preset", "iq2_xs", "--outdir", str(place.out)]


@case("not an imatrix")
def an_imatrix_that_is_none(place: Place) -> list[str]:
    return place.quantize("--imatrix", str(place.model / "config.json"))


def a_matrix(place: Place) -> str:
    import gguf

    file = place.folder / "matrix.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


@case("is not a model")
def a_matrix_for_a_base(place: Place) -> list[str]:
    return ["quantize", a_matrix(place), "--outdir", str(place.out)]


@case("is not a model")
def a_matrix_to_be_planned(place: Place) -> list[str]:
    return ["plan", a_matrix(place), "--no-speed"]


@case("is not a model")
def a_matrix_that_is_to_talk(place: Place) -> list[str]:
    return ["run", a_matrix(place), "Hello"]


@case("has no context of 5,000 tokens")
def more_tokens_than_the_model_has(place: Place) -> list[str]:
    return ["run", str(place.base), "Hello", "-n", "5000"]


@case("NAME=TYPE")
def a_tensor_type_without_a_type(place: Place) -> list[str]:
    return place.quantize("--tensor-type", "attn_v")


@case("Did you mean q8_0")
def a_tensor_type_that_is_misspelt(place: Place) -> list[str]:
    return place.quantize("--output-tensor-type", "q80")


@case("presets.toml")
def a_presets_file_with_a_wrong_key(place: Place) -> list[str]:
    file = place.folder / "presets.toml"
    file.write_text('[preset.MINE]\nftype = "Q4_K_M"\nbits = 4\n')
    return place.main_job(None, "--presets", str(file))


@case("--outtype")
def an_outtype_that_is_none(place: Place) -> list[str]:
    return place.main_job(None, "--outtype", "int4")


# ---- where it goes ---------------------------------------------------------------------------------------


@case("is a file")
def an_output_folder_that_is_a_file(place: Place) -> list[str]:
    place.out.write_text("a file")
    return place.main_job()


@case("cannot be written")
def an_output_folder_below_a_file(place: Place) -> list[str]:
    return place.main_job(None, "--outdir", str(place.base / "below"))


@case("exists already")
def an_output_that_is_the_users(place: Place) -> list[str]:
    place.out.mkdir()
    (place.out / "model-Q4_K_M.gguf").write_text("mine")
    return place.main_job()


@case("manifest")
def a_manifest_that_is_damaged(place: Place) -> list[str]:
    place.out.mkdir()
    (place.out / "model.ggq.json").write_text('{"schema_version": 7}')
    return place.main_job()


@case("GGQ_LLAMA_CPP")
def a_toolchain_that_is_none(place: Place) -> list[str]:
    os.environ["GGQ_LLAMA_CPP"] = str(place.model)
    return place.quantize()


@pytest.fixture
def place(example: Path, base_gguf: Path, tmp_path: Path) -> Place:
    shutil.copytree(example, tmp_path / "model")
    shutil.copy(base_gguf, tmp_path / "base.gguf")
    return Place(tmp_path)


def check(place: Place, command: list[str], words: str) -> None:
    """Run a command that must fail in words and leave no file under a final name."""
    kept = {path: path.read_bytes() for path in place.folder.rglob("*.gguf") if path.is_file()}
    result = CliRunner().invoke(cli, command)
    assert result.exit_code in (1, 2), (result.exit_code, result.output)
    assert not isinstance(result.exception, Exception), result.exception
    said = result.stderr
    assert "Traceback" not in said
    assert "something that it does not know" not in said, said
    assert words in said, said
    assert "next: " in said or "--help" in said or "Try" in said, said
    left = {path: path.read_bytes() for path in place.folder.rglob("*.gguf") if path.is_file()}
    assert left == kept, "a file was left under a final name, or the user's was touched"


@pytest.mark.parametrize(
    "words, spoil", [pytest.param(words, spoil, id=name) for name, words, spoil in CASES]
)
def test_it_ends_with_words(place: Place, words: str, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGQ_LLAMA_CPP", "")  # restored after a case that sets it
    check(place, spoil(place), words)
    assert not (place.folder / "attacked").exists(), "code from a pickle was run"


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) + 2 >= 40


def test_a_full_disk_is_refused_with_the_numbers(place: Place) -> None:
    # No room for the preset alone; with room for that, the base is never written.
    with tmpfs(place.folder / "small", "size=1m") as small:
        check(
            place,
            place.main_job(None, "--outdir", str(small / "out")),
            "disk",
        )
        check(place, ["quantize", str(place.base), "--preset", "q8_0", "--outdir", str(small)], "free")


def test_a_read_only_folder_is_met_with_words(place: Place) -> None:
    with tmpfs(place.folder / "frozen", "size=20m,ro") as frozen:
        check(
            place,
            place.main_job(None, "--outdir", str(frozen)),
            "cannot be written",
        )


def ggq(*arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """As a shell in a UTF-8 locale runs it."""
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    return subprocess.run(
        [sys.executable, "-m", "ggq", *arguments], capture_output=True, env=env, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["plan", ".", "--ram", "foo"], "is not a size"),
        (["plan", ".", "--ram", "9" * 400], "is not a size"),
        (["quantize", "x.gguf", "--imatrix-text", "y"], "of no use without"),
    ],
)
def test_json_also_tells_what_is_wrong_with_an_option(arguments: list[str], word: str) -> None:
    done = ggq(*arguments, "--json")
    assert done.returncode == 2 and word in json.dumps(json.loads(done.stdout))


def test_a_name_that_is_no_text_is_told_as_well_as_it_can_be() -> None:
    done = ggq("inspect", b"\xff\xfe.gguf", "--json")
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert "??.gguf" in json.dumps(json.loads(done.stdout))
