"""Where a turn ends, in the header that llama.cpp's converter writes: for ggq's child process only."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

FindStops = Callable[[Callable[[str], "int | None"]], Collection[int]]

# Names by which llama.cpp finds the token that ends a turn (llama-vocab.cpp, "find EOT token").
_KNOWN_TURN_ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
     "_<EOT>", "[EOT]", "<end_of_utterance>")
)  # fmt: skip


def say_of_tokens(find_stops: FindStops, adds_bos: bool | None) -> None:
    """From now on have the header name tokens at which a turn ends, as far as it has room: the end of the
    text, of a turn, and of a message. ``find_stops``: their ids, the end of the text first, given what knows
    a token's id; ``adds_bos``: whether a text begins with a token of its own, for a header that does not say
    so (None: not known)."""
    from gguf.constants import Keys
    from gguf.gguf_writer import GGUFWriter

    write = GGUFWriter.write_header_to_file  # it counts the keys

    def write_header_to_file(self: Any, path: Path | None = None) -> None:
        keys = self.kv_data[0]
        listed = getattr(keys.get(Keys.Tokenizer.LIST), "value", None)
        if listed:
            names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in listed]
            found = find_stops({name: token for token, name in enumerate(names)}.get)
            stops = [token for token in found if token < len(names)]
            own = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)
            if adds_bos is not None and Keys.Tokenizer.ADD_BOS not in keys:
                self.add_bool(Keys.Tokenizer.ADD_BOS, adds_bos)
            if stops and own[0] not in keys:
                # Without it llama.cpp assumes one by the kind of vocabulary: 11, a comma, for GPT-2's.
                self.add_uint32(own[0], stops[0])
            named = {keys[key].value for key in own if key in keys}
            wanted = [token for token in stops if token not in named]
            # Those that llama.cpp knows by their names come last: they need no key.
            wanted.sort(key=lambda token: names[token] in _KNOWN_TURN_ENDS)
            free = [key for key in own if key not in keys]
            if any(names[token] in _KNOWN_TURN_ENDS for token in stops):
                free.sort(key=lambda key: key == Keys.Tokenizer.EOT_ID)  # llama.cpp fills that one by itself
            for key, token in zip(free, wanted, strict=False):
                self.add_uint32(key, token)
        write(self, path)

    GGUFWriter.write_header_to_file = write_header_to_file
