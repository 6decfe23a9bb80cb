"""llama.cpp's converter, run inside this process: for ggq's child process only.

Two things are given to it that its own files do not have: keys that a checkpoint's config lacks, and the
pre-tokenizers of vocabularies that it does not know. Both reach it through methods of its classes, which are
replaced before it runs; its files stay as they are.
"""

from __future__ import annotations

import contextlib
import functools
import runpy
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ggq.errors import GgqError
from ggq.llamacpp.toolchain import CONVERTER
from ggq.system import process

# The pre-tokenizer of a WordPiece vocabulary: llama.cpp reads its name and does without one.
_NO_RULES = "default"
_TABLE_BYTES = 1 << 20  # rotary factors take some hundred bytes

Completer = Callable[[dict[str, Any]], None]
PreTokenizers = Callable[[Mapping[str, Any]], "str | None"]


@dataclass(frozen=True)
class Refusal:
    """How the converter failed: the exception's type and text, and where in its sources."""

    kind: str
    text: str
    where: str


class NeedsValues(Exception):
    """The converter asked for the value of a weight before it wrote the header."""


class ConverterFailed(Exception):
    """The converter ended with an exception, or with an exit status other than 0."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def prepare(source_dir: Path) -> None:
    """Put the converter's own modules first: its package and its gguf-py."""
    sys.path[:0] = [str(source_dir), str(source_dir / "gguf-py")]


def architectures(*, mmproj: bool) -> tuple[str, ...]:
    """The names that the converter knows; empty when this llama.cpp keeps them elsewhere."""
    with contextlib.suppress(ImportError, AttributeError):
        import conversion  # type: ignore[import-not-found]

        known = conversion.MMPROJ_MODEL_MAP if mmproj else conversion.TEXT_MODEL_MAP
        return tuple(known)
    return ()


def run(
    source_dir: Path,
    checkpoint: Path,
    name: str,
    output: Path,
    outtype: str,
    arguments: Sequence[str],
    complete_config: Completer,
    known_pre_tokenizer: PreTokenizers,
) -> None:
    """Convert a folder to the GGUF that one of the name ``name`` would become.

    Its log and its progress bar go to stderr. Raises ConverterFailed, and a GgqError that was raised in it.
    """
    script = source_dir / CONVERTER
    command = [str(checkpoint), "--outfile", str(output), "--outtype", outtype, *arguments]
    with _arguments([str(script), *command]):
        try:
            _fill_gaps(complete_config, known_pre_tokenizer)
            _name_folder(checkpoint, name)
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise ConverterFailed(Refusal("SystemExit", str(end.code), "")) from end
        except GgqError:
            raise
        except Exception as error:
            raise ConverterFailed(_refusal(error, source_dir)) from error


def _fill_gaps(complete_config: Completer, known_pre_tokenizer: PreTokenizers) -> None:
    try:
        from conversion.base import ModelBase, TextModel  # type: ignore[import-not-found]

        load = ModelBase.load_hparams
        recognise = TextModel.get_vocab_base_pre
    except (ImportError, AttributeError):
        return  # a llama.cpp of another commit: it runs as it is, and what it writes is checked all the same

    def load_hparams(*positional: Any, **named: Any) -> Any:
        config = load(*positional, **named)
        complete_config(config)
        return config

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognise(self, tokenizer))
        except NotImplementedError:
            if _is_wordpiece(tokenizer):
                return _NO_RULES
            name = known_pre_tokenizer(_rules(tokenizer))
            if name is None:
                raise
            return name

    ModelBase.load_hparams = staticmethod(load_hparams)
    TextModel.get_vocab_base_pre = get_vocab_base_pre
    # Each of these reads a whole tokenizer, and one that fails is kept alive by its traceback.
    for name in ("_set_vocab_llama_hf", "get_vocab_base"):
        setattr(TextModel, name, _tidily(getattr(TextModel, name)))


def _name_folder(folder: Path, name: str) -> None:
    """Have the converter read ``name`` where it asks for the folder's: it is the model's, with its size and
    version, and tells some models apart."""
    with contextlib.suppress(ImportError, AttributeError):
        from conversion.base import ModelBase

        construct = ModelBase.__init__

        @functools.wraps(construct)
        def named(self: Any, dir_model: Path, *positional: Any, **options: Any) -> None:
            construct(
                self, _named(dir_model, name) if dir_model == folder else dir_model, *positional, **options
            )

        ModelBase.__init__ = named


def _named(folder: Path, name: str) -> Path:
    """A path that is ``folder`` for the system, and has another name."""

    class Named(type(folder)):  # type: ignore[misc]
        @property
        def name(self) -> str:
            own: str = super().name
            return name if str(self) == str(folder) else own

    named: Path = Named(folder)
    return named


def take_tokenizers_from(folder: Path, make: Callable[[Path], Any]) -> None:
    """From now on have whoever asks transformers for the tokenizer of ``folder`` get what ``make`` makes."""
    from transformers import AutoTokenizer

    as_ever = AutoTokenizer.from_pretrained

    def from_pretrained(name: Any, *positional: Any, **named: Any) -> Any:
        if Path(name).resolve() == folder.resolve():
            return make(folder)
        return as_ever(name, *positional, **named)

    AutoTokenizer.from_pretrained = from_pretrained


def look_at_rows(look: Callable[[int, Mapping[str, int], str], None]) -> None:
    """From now on have ``look`` called before a header is written, with the count of its tokens, the rows of
    its tensors by name, and its architecture. It may raise. A header without a list of tokens is passed over.
    """
    from gguf.constants import Keys
    from gguf.gguf_writer import GGUFWriter

    write = GGUFWriter.write_header_to_file

    def write_header_to_file(self: Any, path: Path | None = None) -> None:
        names = getattr(self.kv_data[0].get(Keys.Tokenizer.LIST), "value", None)
        if names:
            shapes = {name: info.shape for part in self.tensors for name, info in part.items()}
            look(len(names), {name: int(shape[0]) for name, shape in shapes.items() if len(shape)}, self.arch)
        write(self, path)

    GGUFWriter.write_header_to_file = write_header_to_file


def add_text(key: str, text: str) -> None:
    """From now on have headers end with this text, too."""
    from gguf.gguf_writer import GGUFWriter

    write = GGUFWriter.write_header_to_file

    def write_header_to_file(self: Any, path: Path | None = None) -> None:
        self.add_string(key, text)
        write(self, path)

    GGUFWriter.write_header_to_file = write_header_to_file


def _tidily(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method``, which leaves nothing behind but what it returns."""

    @functools.wraps(method)
    def tidily(*positional: Any, **named: Any) -> Any:
        try:
            return method(*positional, **named)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            process.give_back_memory()

    return tidily


def leave_holes(*, without_values: bool) -> None:
    """From now on have the converter write headers as ever, and sparse, empty weights.

    Of the data only what is no weight is written: tables that it computed from the config.
    ``without_values``: the checkpoint's weights are empty, too; NeedsValues is then raised where the
    converter looks into them.
    """
    import numpy as np
    from gguf.gguf_writer import GGUFWriter, WriterState
    from gguf.utility import LocalTensor

    def write_tensors_to_file(self: Any, *, progress: bool = False) -> None:
        self.write_ti_data_to_file()
        for stream, tensors in zip(self.fout, self.tensors, strict=True):
            self.write_padding(stream, stream.tell())
            for info in tensors.values():
                end = stream.tell() + self.ggml_pad(info.nbytes, self.data_alignment)
                if isinstance(info.tensor, np.ndarray) and info.nbytes <= _TABLE_BYTES:
                    info.tensor.tofile(stream)
                stream.seek(end)
            stream.truncate()
        self.state = WriterState.WEIGHTS

    def mmap_bytes(self: Any) -> Any:
        raise NeedsValues(f"{self.dtype} of shape {list(self.shape)}")

    GGUFWriter.write_tensors_to_file = write_tensors_to_file
    if without_values:
        LocalTensor.mmap_bytes = mmap_bytes


def read_elsewhere(hollow: Collection[Path], read: Callable[[str, int, memoryview], None]) -> None:
    """From now on have the converter take the values of weights in the files ``hollow``, which hold no more
    than their headers, from ``read``: it fills a room with the bytes of a file, by name, from an offset on.
    It is called from several threads."""
    import numpy as np
    from gguf.utility import LocalTensor

    mapped = LocalTensor.mmap_bytes

    def mmap_bytes(self: Any) -> Any:
        path = Path(self.data_range.filename)
        if path not in hollow:
            return mapped(self)
        found = np.empty(self.data_range.size, np.uint8)
        read(path.name, self.data_range.offset, found.data)
        return found

    LocalTensor.mmap_bytes = mmap_bytes


def hand_over(begin: Callable[[], tuple[str, BinaryIO]], *, ahead: bool) -> None:
    """From now on have the converter write headers as ever, no data, and then the data of
    its tensors, one after the other in the file's order, to a stream.

    ``begin``: called when the file is there; returns the name of the first tensor that is wanted, and the
    stream, which has no buffer of its own. ``ahead``: convert a tensor while the one before it is written:
    for weights that one has to wait for, at the price of the memory of another tensor.
    """
    from gguf.gguf_writer import GGUFWriter, WriterState

    def write_tensors_to_file(self: Any, *, progress: bool = False) -> None:
        self.write_ti_data_to_file()
        (file,), (tensors,) = self.fout, self.tensors
        self.write_padding(file, file.tell())
        sizes = (self.ggml_pad(info.nbytes, self.data_alignment) for info in tensors.values())
        file.truncate(file.tell() + sum(sizes))
        file.flush()
        first, stream = begin()
        with stream:
            taken = map(_take, tensors.values())
            for _ in range(list(tensors).index(first)):
                next(taken)
            for tensor in _one_ahead(taken) if ahead else taken:
                tensor.tofile(stream)
        self.state = WriterState.WEIGHTS

    GGUFWriter.write_tensors_to_file = write_tensors_to_file


def _take(info: Any) -> Any:
    """A tensor out of its place, so that its memory ends with its use."""
    tensor, info.tensor = info.tensor, None
    return tensor


def _one_ahead(tensors: Iterator[Any]) -> Iterator[Any]:
    """The tensors with their values, each while those of the next are on their way."""
    from gguf.lazy import LazyNumpyTensor

    def with_values() -> Any:
        return LazyNumpyTensor.to_eager(next(tensors, None))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(with_values)
        while (tensor := coming.result()) is not None:
            coming = pool.submit(with_values)
            yield tensor


def _is_wordpiece(tokenizer: Any) -> bool:
    return type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__ == "WordPiece"


def _rules(tokenizer: Any) -> Mapping[str, Any]:
    """How a tokenizer splits, as tokenizer.json has it; empty for one that is not of that kind."""
    import json

    pre_tokenizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    if pre_tokenizer is None:
        return {}
    # Its state is its JSON; the whole tokenizer's would be a vocabulary of 100 MB in Python.
    return {"pre_tokenizer": json.loads(pre_tokenizer.__getstate__())}


def _refusal(error: Exception, source_dir: Path) -> Refusal:
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(source_dir)
    ]
    where = ""
    text = str(error)
    if own:
        last = own[-1]
        where = f"{Path(last.filename).relative_to(source_dir)}:{last.lineno}, in {last.name}"
        # A bare assertion says nothing by itself; its source line does.
        text = text or (last.line or "")
    return Refusal(type(error).__name__, text, where)


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    saved = sys.argv
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = saved
