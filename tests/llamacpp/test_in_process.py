"""A model in this process: long tokens whole, no library from the current folder, whatever its template."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggq.llamacpp import binding, in_process
from ggq.llamacpp.toolchain import Toolchain

LONG = "x" * 200
TOKENS = ["<unk>", "<s>", "</s>", LONG, " " * 40, "é"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary with tokens that are longer than most."""
    file = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([2, 3, 3, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }")  # it has no end
    writer.add_tensor("token_embd.weight", np.zeros((len(TOKENS), 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_tokens_of_any_length_are_whole(toolchain: Toolchain, vocabulary: Path) -> None:
    library = binding.load(toolchain)
    before = Path.cwd()
    llama = in_process.open_model(library, vocabulary, {"vocab_only": True})
    assert Path.cwd() == before
    pieces = [in_process.piece(library, llama._model.vocab, token) for token in range(3, len(TOKENS))]
    assert [it.decode() for it in pieces] == [LONG, " " * 40, "é"]
    llama.close()
