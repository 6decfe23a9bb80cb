"""What can go wrong in the child process, in words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggq.checkpoint import transformers_model
from ggq.checkpoint.checkpoint import Checkpoint
from ggq.errors import CheckpointProblem, ConversionProblem, DiskFull, GgqError, NeedsWeights, signal_name
from ggq.llamacpp import endings
from ggq.system import limits

_TEXT_CHARACTERS = 4000  # some messages repeat a whole file
# Kinds of failures that no file of a checkpoint is the reason of.
OF_THE_MACHINE = frozenset({"MemoryError", "OSError", "BrokenPipeError", "NeedsValues", "ImportError"})
_CODE = "Find a checkpoint of this model in safetensors, or one that transformers knows without extra code."
_REPORT = "Report this, with the model's name; GGQ_DEBUG=1 and -v show what the converter printed."


def explain(checkpoint: Checkpoint, report: Mapping[str, Any]) -> GgqError:
    """The child's own report of a failure. Keys: phase, kind (an exception's type), text, and where in the
    converter; of a GgqError its what, text (the why) and next_step."""
    kind, text = str(report["kind"]), transformers_model.without_advice(str(report["text"]))
    if "what" in report:
        return ConversionProblem(str(report["what"]), text, str(report["next_step"]))
    if kind in _REFUSED:
        return _REFUSED[kind](checkpoint, text)
    for pattern, in_words in _PATTERNS:
        if found := re.search(pattern, f"{kind}: {text[:_TEXT_CHARACTERS]}", re.DOTALL):
            return in_words(checkpoint, found)
    where = f" ({report['where']})" if report.get("where") else ""
    if report.get("phase") in ("config", "convert") and re.fullmatch(_OF_SETTINGS, kind):
        return _odd_settings(checkpoint, f"{kind}: {text[:_TEXT_CHARACTERS]}", where)
    return ConversionProblem(
        f"The converter failed on {checkpoint.path}.", f"{kind}: {_short(text)}{where}.", _REPORT
    )


def died(phase: str, returncode: int, tail: Sequence[str]) -> GgqError:
    """The child ended without a report: by a signal, or in Python's own way."""
    last = next((line.strip() for line in reversed(tail) if line.strip()), "it printed nothing")
    doing = _DOING.get(phase, "starting")
    if (limit := limits.why_killed(-returncode)) is not None:
        return ConversionProblem(f"The conversion was killed while it was {doing}.", *limit)
    if returncode == -9:
        return ConversionProblem(
            f"The conversion was killed while it was {doing}.",
            "The kernel ends a process so when memory runs out.",
            "Close other programs, or run it on a machine with more memory.",
        )
    if returncode < 0:
        return ConversionProblem(
            f"The conversion was killed by {signal_name(-returncode)} while it was {doing}.",
            (phase == "llama.cpp" and endings.why(returncode, tail)) or f"Its last line: {_short(last)}",
            _REPORT if phase == "llama.cpp" else "Run `ggq doctor`.",
        )
    if re.match(r"MemoryError|.*(?:annot allocate memory|failed to map segment)", last):
        return _out_of_memory(last)
    return ConversionProblem("The conversion ended before it was done.", _short(last), "Run `ggq doctor`.")


_DOING = {
    "config": "reading the config",
    "convert": "converting",
    "check": "checking the values",
    "reference": "running the checkpoint in transformers",
    "llama.cpp": "running the GGUF in llama.cpp",
}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


# --- refused before it was tried (child.Refused) -----------------------------------------------------------


def _unsupported(checkpoint: Checkpoint, text: str) -> GgqError:
    name = checkpoint.architectures[0]
    near = difflib.get_close_matches(name, json.loads(text), n=1, cutoff=0.5)
    return CheckpointProblem(
        f"llama.cpp does not know the architecture {name[:60]}.",
        f"The converter knows {len(json.loads(text))} architectures"
        + (f"; the nearest is {near[0]}." if near else ", and none of a similar name."),
        "See whether a newer llama.cpp knows it (`ggq setup --llama-cpp`), or choose another model.",
    )


def _no_projector(checkpoint: Checkpoint, _: str) -> GgqError:
    return CheckpointProblem(
        f"{checkpoint.architectures[0][:60]} has no multimodal projector that the converter knows.",
        "--mmproj is for models that see or hear.",
        "Leave --mmproj out.",
    )


def _assumption(checkpoint: Checkpoint, text: str) -> GgqError:
    return CheckpointProblem(
        f"llama.cpp cannot run {checkpoint.path.name} as its config says.",
        text,
        "Use it with transformers; a GGUF of it would compute something else.",
    )


def _activation(checkpoint: Checkpoint, text: str) -> GgqError:
    return CheckpointProblem(
        f"{checkpoint.path / 'config.json'} names an activation that does not exist.",
        text,
        "Correct it: the config.json of the model's source has the right name.",
    )


def _needs_values(checkpoint: Checkpoint, _: str) -> GgqError:
    return NeedsWeights(
        f"{checkpoint.architectures[0][:60]} can only be planned after download.",
        f"The converter reads values of its weights before it knows what {checkpoint.path.name} becomes, and "
        "only their headers are here.",
        "Run `ggq download` with the model's name first; then the same command again.",
    )


def _unsound_tokenizer(checkpoint: Checkpoint, text: str) -> GgqError:
    return CheckpointProblem(
        f"The tokenizer of {checkpoint.path} cannot be used.",
        f"{text}.",
        "Get the tokenizer's files again from the model's source (`ggq download` checks them).",
    )


def _unequal_rows(checkpoint: Checkpoint, text: str) -> GgqError:
    return CheckpointProblem(
        f"The tokenizer of {checkpoint.path} does not fit the model's weights.",
        f"{text}."
        if checkpoint.vocabulary_size is None
        else f"{text}; config.json says vocab_size {checkpoint.vocabulary_size:,}.",
        "Resize the model's embedding to the tokenizer, or take the tokenizer that belongs to it.",
    )


_REFUSED: Mapping[str, Callable[[Checkpoint, str], GgqError]] = {
    "Unsupported": _unsupported,
    "NoProjector": _no_projector,
    "Assumption": _assumption,
    "Activation": _activation,
    "NeedsValues": _needs_values,
    "UnsoundTokenizer": _unsound_tokenizer,
    "UnequalRows": _unequal_rows,
}


# --- the converter's own exceptions ------------------------------------------------------------------------


def _pre_tokenizer(checkpoint: Checkpoint, _: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"The tokenizer of {checkpoint.path} is not one that llama.cpp knows.",
        "A byte-level BPE tokenizer is known by what it makes of a test text or by its splitting rules "
        f"(pre-tokenizer); {checkpoint.tokenizer_class or 'this one'} is known by neither.",
        "Check that the tokenizer's files belong to this model, or look for a newer llama.cpp that knows it.",
    )


def _tokenizer_model(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"{checkpoint.path} lacks {found[1]}.",
        "The converter reads this architecture's tokenizer from that file alone; transformers 5 saves "
        "tokenizer.json instead.",
        f"Copy {found[1]} from the repository of the model that it was made from.",
    )


def _token_ids(checkpoint: Checkpoint, _: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"The tokenizer of {checkpoint.path} has tokens that the model has no row for.",
        f"config.json says vocab_size {checkpoint.vocabulary_size}; the tokenizer's highest id is beyond it.",
        "Resize the model's embedding to the tokenizer, or take the tokenizer that belongs to it.",
    )


def _code_in_pickle(checkpoint: Checkpoint, _: re.Match[str]) -> GgqError:
    names = ", ".join(file.name for file in checkpoint.weight_files[:2])
    return CheckpointProblem(
        f"The weights of {checkpoint.path} hold more than weights.",
        f"{names}: a pickle that would run code when it is loaded. It was not run.",
        _CODE,
    )


def _unreadable_pickle(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"The weights of {checkpoint.path} cannot be read.",
        f"{checkpoint.weight_files[0].name}: {_short(found[1])}.",
        "Download the model again, in safetensors if it has them.",
    )


def _old_pickle(checkpoint: Checkpoint, _: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"The weights of {checkpoint.path} are in the format of PyTorch before 1.6.",
        f"{checkpoint.weight_files[0].name}: the converter reads safetensors and the form of today.",
        "Look for the model in safetensors, or load it with transformers and save it again.",
    )


def _missing_key(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"{checkpoint.path} lacks something that the converter needs for {checkpoint.architectures[0]}.",
        f"It asks for {found[1]}: a key of config.json, or a token of the tokenizer.",
        "Compare config.json and the tokenizer with those of the original model, and add what is missing.",
    )


def _quantization(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"{checkpoint.path} is quantized in a way that the converter does not read.",
        f"{_short(found[1])}.",
        "Convert the model that it was made from: its model card names it as base_model.",
    )


def _unsupported_by_converter(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    """What llama.cpp's converter says that it does not do, whatever it is."""
    return CheckpointProblem(
        f"llama.cpp's converter does not support {checkpoint.path.name} as its files are.",
        f"{_short(found[1]).rstrip('.!')}.",
        "See whether a newer llama.cpp does (`ggq setup --llama-cpp`), or choose another model.",
    )


def _unknown_tensor(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"{checkpoint.path} has a tensor that {checkpoint.architectures[0]} does not have in llama.cpp.",
        f"{found[1]}.",
        "Check that the weights belong to the config: an adapter or an extra head must be merged or removed.",
    )


def _missing_shard(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"Weights of {checkpoint.path} are missing.",
        f"{_short(found[1])}.",
        "Download the model again (`ggq download`), or copy the missing files into the folder.",
    )


def _module(checkpoint: Checkpoint, found: re.Match[str]) -> GgqError:
    name = found[1].replace("_", "-")
    return ConversionProblem(
        f"Converting {checkpoint.architectures[0]} needs a Python package that is not installed.",
        f"{found[1]} is missing.",
        f"Run `pip install {name}`.",
    )


def _too_deep(checkpoint: Checkpoint, _: re.Match[str]) -> GgqError:
    return CheckpointProblem(
        f"A file of {checkpoint.path} is nested too deeply to be read.",
        "It is one of tokenizer.json, tokenizer_config.json and the chat template.",
        "Get these files again from the model's source (`ggq download` checks them).",
    )


# What settings of a wrong kind end in.
_OF_SETTINGS = (
    r"TypeError|ValueError|AttributeError|IndexError|AssertionError|ZeroDivisionError|OverflowError"
    r"|Unicode\w+Error|JSONDecodeError|StrictDataclass\w*Error|ValidationError|UnboundLocalError"
    r"|error"  # struct's, of a value that does not fit its place in the GGUF
)


def _odd_settings(checkpoint: Checkpoint, text: str, where: str) -> GgqError:
    named = re.search(r"[`'\"]([a-z][a-z0-9_]{2,60})[`'\"]", text)
    about = f"It is about {named[1]} in config.json: " if named and named[1] in checkpoint.config else ""
    return CheckpointProblem(
        f"The converter cannot use what config.json or the tokenizer of {checkpoint.path} says.",
        f"{about}{_short(text)}{where}.",
        "Compare config.json and the tokenizer's files with those of the model's source. Where they are the "
        "same, report this with the model's name (GGQ_DEBUG=1 and -v show what the converter printed).",
    )


def _memory(_: Checkpoint, found: re.Match[str]) -> GgqError:
    return _out_of_memory(found[0])


def _out_of_memory(said: str) -> GgqError:
    return ConversionProblem(
        "Memory ran out during the conversion.",
        f"{_short(said)}.",
        "Close other programs, or run it on a machine with more memory.",
    )


def _disk(_: Checkpoint, __: re.Match[str]) -> GgqError:
    return DiskFull(
        "The disk became full during the conversion.",
        "What was written is removed again.",
        "Free some space, raise a limit of file sizes (`ulimit -f`), or choose another folder"
        " with -o/--output or --outdir.",
    )


_PATTERNS: Sequence[tuple[str, Callable[[Checkpoint, re.Match[str]], GgqError]]] = (
    (r"mmap can only be used with files saved with", _old_pickle),
    (
        r"No space left on device|\[Errno 28\]|wrote \d+ bytes, expected|requested and \d+ written"
        r"|Disk quota exceeded",
        _disk,
    ),
    (r"^MemoryError.*|not enough memory|Cannot allocate memory", _memory),
    (r"pre-tokenizer was not recognized", _pre_tokenizer),
    (
        r"^UnpicklingError: .*Unsupported (?:global|operand|class)|^UnpicklingError: .*WeightsUnpickler",
        _code_in_pickle,
    ),
    (
        r"^(?:UnpicklingError|EOFError|RuntimeError): (.*(?:PytorchStreamReader|pickle|invalid load key).*)",
        _unreadable_pickle,
    ),
    (
        r"^(?:FileNotFoundError|ValueError): .*?(?<![\w.-])"
        r"([\w.-]{0,100}tokenizer[\w.-]{0,100}|[\w.-]{1,100}\.model)$",
        _tokenizer_model,
    ),
    (r"assert max\(tokenizer", _token_ids),
    (r"^NotImplementedError: (.*[Qq]uant.*)", _quantization),
    (r"^NotImplementedError: (.+)", _unsupported_by_converter),
    (r"Can not map tensor '([^']+)'", _unknown_tensor),
    (r"(Missing or incomplete model files: \[[^\]]*\]|Missing tensors: .*)", _missing_shard),
    (r"^(?:ModuleNotFoundError|ImportError): No module named '([\w]+)", _module),
    (r"^KeyError: (.+)", _missing_key),
    (r"^RecursionError", _too_deep),
)
