"""The child process of a conversion: all that needs torch, transformers or llama.cpp's library.

One process for it all, since importing torch and transformers takes longer than converting a small model; and
a process of its own, since a crash or a lack of memory in there is a finding and not the end of ggq. It reads
a job (JSON) from stdin and writes events to stdout, an object per line; its stderr is the converter's log.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from ggq.checkpoint import transformers_model
from ggq.conversion import (
    chat_templates,
    compare_logits,
    compare_regimes,
    compare_tokens,
    compare_vectors,
    config_gaps,
    converter_errors,
    longrope,
    parameter_count,
    sentence_transformers,
    stop_tokens,
    tokenizer_checks,
    tokenizer_file,
    tokenizer_model,
    unigram,
    unsupported,
    verification,
    vocabulary_rows,
    wordpiece,
)
from ggq.conversion import checkpoint_view as view
from ggq.conversion.job import Job
from ggq.conversion.pipes import Feed, Pipe
from ggq.errors import GgqError
from ggq.gguf import file as gguf_file
from ggq.gguf import values as gguf_values
from ggq.llamacpp import converter, converter_stops, converter_unigram
from ggq.llamacpp.inference import LoadedGguf
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Event, Step
from ggq.system import process


class Refused(Exception):
    """Something known to fail, found before it was tried. ``kind``: a key of ``failures``' own words."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def say(event: str, **content: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **content}) + "\n")
    sys.stdout.flush()


def main() -> int:
    job = Job(**json.loads(sys.stdin.read()))
    transformers_model.import_lightly()
    transformers_model.forbid_code()
    converter.prepare(Path(job.source_dir))
    run(job)
    return 0


def run(job: Job) -> None:
    """Do the job. What cannot be done is reported, and ends the process."""
    with _reporting("config", job):
        known, completed, token_rows = _complete(job)
        if job.convert:
            _require_known(job, known)
            say("completed", keys=completed)
    if job.convert:
        with _reporting("convert", job):
            _convert(job, completed, token_rows)
            say("written")
    if job.check:
        with _reporting("check", job):
            _check(job)
    say("done")


@contextlib.contextmanager
def _reporting(phase: str, job: Job) -> Iterator[None]:
    """Name the phase, so that a death in it can be told; an exception ends the process with a report."""
    say("phase", name=phase)
    try:
        yield
    except converter.ConverterFailed as failed:
        _refuse_tokenizer(phase, job, failed.refusal.kind)
        _fail(phase, **asdict(failed.refusal))
    except Refused as refused:
        _fail(phase, kind=refused.kind, text=str(refused), where="")
    except GgqError as problem:
        _fail(
            phase,
            kind=type(problem).__name__,
            text=problem.why,
            what=problem.what,
            next_step=problem.next_step,
        )
    except Exception as error:
        _refuse_tokenizer(phase, job, type(error).__name__)
        _fail(phase, kind=type(error).__name__, text=str(error), where="")


def _refuse_tokenizer(phase: str, job: Job, kind: str) -> None:
    """Ends the process where a failure comes of files of the tokenizer that are not sound."""
    if kind in converter_errors.OF_THE_MACHINE or job.mmproj:
        return
    with contextlib.suppress(Exception):  # the failure at hand is the one to tell
        if fault := tokenizer_checks.find_fault(Path(job.view)):
            _fail(phase, kind=tokenizer_checks.UnsoundTokenizer.__name__, text=fault, where="")


def _fail(phase: str, **report: Any) -> None:
    say("failed", phase=phase, **report)
    raise SystemExit(1)


# --- config ----------------------------------------------------------------------------------------------


def _complete(job: Job) -> tuple[dict[str, Any], dict[str, Any], vocabulary_rows.Rows]:
    """The config as AutoConfig has it, or as it is for models that transformers does not know; the keys
    that the view's config.json was given; and the rows that the tokens have."""
    from transformers import AutoConfig

    folder = Path(job.view)
    token_rows = _look_at_tokens(folder, job.embedding_rows) if not job.mmproj else vocabulary_rows.Rows(None)
    if tokenizer_model.complete(folder, token_rows.check):
        say("remark", text="The tokenizer has no tokenizer.model; one was made of its tokenizer.json.")
    elif not job.mmproj and tokenizer_model.is_read_beside(folder):
        token_rows.check(tokenizer_checks.open_tokenizer(folder))
    if wordpiece.complete(folder):
        say("remark", text="The tokenizer has no tokenizer.json; one was made of its vocab.txt.")
    process.give_back_memory()  # a tokenizer.json of 10 MB is 70 MB of objects
    sentence_transformers.settle(folder)
    raw: dict[str, Any] = json.loads((folder / view.CONFIG).read_text(encoding="utf-8"))
    surplus = config_gaps.surplus_keys(raw)
    if surplus:
        raw = {key: value for key, value in raw.items() if key not in surplus}
        view.change(folder, functools.partial(_settle, completed={}, surplus=surplus))
        say("remark", text=f"config.json has {', '.join(surplus)}, which {job.architecture} does not use.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        known = config.to_dict()
    except Exception:
        # The converter reads config.json as it is then, and so does ggq.
        known = dict(raw)
    completed = config_gaps.missing_keys(raw, known)
    part, known_part = raw.get("text_config"), known.get("text_config")
    if isinstance(part, dict) and isinstance(known_part, dict):
        inner = config_gaps.missing_keys(part, known_part)
        if inner:
            completed["text_config"] = inner
    # The converter asks AutoConfig for most architectures, and reads the file for some.
    view.change(folder, functools.partial(_settle, completed=completed))
    return known, completed, token_rows


def _look_at_tokens(folder: Path, embedding_rows: int | None) -> vocabulary_rows.Rows:
    tokenizer_checks.require_declared(folder)
    beyond = vocabulary_rows.leave_out(folder, embedding_rows) if embedding_rows is not None else {}
    if beyond and embedding_rows is not None:
        say("remark", text=vocabulary_rows.words(beyond, embedding_rows), warning=True)
    found = vocabulary_rows.Rows(embedding_rows, frozenset(beyond.values()))
    found.check_other(folder)
    return found


def _require_known(job: Job, known: Mapping[str, Any]) -> None:
    """Raises Refused for what the converter or llama.cpp cannot do."""
    names = converter.architectures(mmproj=job.mmproj)
    if names and job.architecture not in names:
        others = converter.architectures(mmproj=False)
        raise Refused(
            "NoProjector" if job.mmproj and job.architecture in others else "Unsupported", json.dumps(names)
        )
    broken = unsupported.broken(known)
    if broken and not job.mmproj:
        raise Refused("Assumption", broken)
    unknown = unsupported.unknown_activation(known)
    if unknown:
        raise Refused("Activation", unknown)


# --- convert ---------------------------------------------------------------------------------------------


def _convert(job: Job, completed: Mapping[str, Any], token_rows: vocabulary_rows.Rows) -> None:
    folder = Path(job.view)
    override = folder.parent / "metadata.json"
    override.write_text(json.dumps(_metadata(job)), encoding="utf-8")
    if job.hollow:
        converter.leave_holes(without_values=job.without_values)
    elif job.pipe_folder:
        pipes = Path(job.pipe_folder)
        converter.hand_over(lambda: _begin(Pipe(pipes)), ahead=bool(job.fed))
        if job.fed:
            converter.read_elsewhere([folder / file for file in job.fed], _asking(Feed(pipes)))
    adds_bos = None
    chat_templates.settle(folder)
    if (folder / tokenizer_checks.FILE).is_file():
        converter.take_tokenizers_from(folder, functools.partial(_own_tokenizer, token_rows))
        adds_bos = tokenizer_file.begins_with_a_token(folder)
    converter_stops.say_of_tokens(functools.partial(stop_tokens.find, folder), adds_bos)
    converter.add_text(verification.KEY, job.verdict)
    if not job.mmproj:
        converter.look_at_rows(vocabulary_rows.require_equal)
    converter_unigram.give(unigram.read)
    converter.run(
        Path(job.source_dir),
        folder,
        job.name,
        Path(job.gguf),
        job.outtype,
        ["--metadata", str(override), *(["--mmproj"] if job.mmproj else []), *job.arguments],
        functools.partial(_settle, completed=completed),
        _known_pre_tokenizer,
    )


def _own_tokenizer(token_rows: vocabulary_rows.Rows, folder: Path) -> Any:
    made = tokenizer_file.for_converter(folder)
    token_rows.check(made.backend_tokenizer)
    return made


def _settle(config: dict[str, Any], *, completed: Mapping[str, Any], surplus: Sequence[str] = ()) -> None:
    """Make a config what the converter reads rightly."""
    for key in surplus:
        config.pop(key, None)
    view.merge(config, completed)
    config_gaps.translate(config)


def _begin(pipe: Pipe) -> tuple[str, BinaryIO]:
    say("header")
    return pipe.wait()


def _asking(feed: Feed) -> Callable[[str, int, memoryview], None]:
    """Weights by the parent's hand."""
    source, turn = feed.from_parent(), threading.Lock()

    def read(file: str, offset: int, room: memoryview) -> None:
        with turn:
            say("want", file=file, offset=offset, bytes=len(room))
            source.fill(room)

    return read


def _known_pre_tokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    name = config_gaps.pre_tokenizer(tokenizer)
    if name is not None:
        say("remark", text=f"The tokenizer's vocabulary is new to llama.cpp; it splits as {name} does.")
    return name


def _metadata(job: Job) -> dict[str, Any]:
    """What goes into the converter's override file."""
    from huggingface_hub.constants import HUGGINGFACE_CO_URL_HOME as HUB

    metadata = dict(job.metadata)
    if job.repo_id:
        owner, _, name = job.repo_id.rpartition("/")
        page = HUB + job.repo_id
        metadata["general.base_models"] = [
            {"name": name, "organization": owner, "repo_url": page, "url": f"{page}/tree/{job.commit}"}
        ]
    name = str(metadata.get("general.name", job.name))
    if re.search("phi-?3", name, re.IGNORECASE):
        # llama.cpp knows Phi-3's tokenizer by the model's name, and does not load a file of that name without
        # these tokens (llama-vocab.cpp, "set attributes by model/tokenizer/architecture name").
        tokenizer, _ = tokenizer_file.of_transformers(Path(job.view))
        if tokenizer is None or not {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(tokenizer.get_vocab()):
            metadata["general.name"] = re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)
    return metadata


# --- check -----------------------------------------------------------------------------------------------


def _check(job: Job) -> None:
    made = gguf_file.read(Path(job.gguf))
    scan = gguf_values.scan_values(made, full=job.full, listener=_relay)
    say("values", not_finite=scan.not_finite, unread=scan.unread)
    if job.bin_weights:
        say("weights", elements=parameter_count.bin_elements(Path(job.view)))
    if scan.not_finite or job.mmproj:
        return
    tokenizer, _ = tokenizer_file.of_transformers(Path(job.view))
    right_side = compare_logits.Reference()
    if job.logits:
        say("phase", name="reference")
        reference = compare_vectors.reference_of(made) if made.is_encoder else compare_logits.reference
        right_side = reference(Path(job.view), job.architecture, tokenizer, _unexpected)
        process.give_back_memory()  # the model, of circles of modules: its file is unmapped
    say("phase", name="llama.cpp")
    toolchain = Toolchain("named", Path(job.lib_dir), Path(job.lib_dir), Path(job.source_dir), None)
    # Without its weights llama.cpp still checks that each tensor is there and has the shape that it expects.
    original = right_side.original_context
    weights = right_side.expected is not None
    exact = len(right_side.tokens) > compare_logits.FEW_POSITIONS
    within = longrope.overrides(made.path, original, beyond=False)
    with LoadedGguf(toolchain, made.path, job.threads, weights=weights, overrides=within) as loaded:
        folder = Path(job.view)
        own = tokenizer_file.sentencepiece(folder) if job.has_tokenizer_model else None
        right, no_reference = tokenizer_file.load(folder)
        say("tokenizer", **compare_tokens.compare(right, no_reference, own, loaded))
        if made.is_encoder:
            say("vectors", **compare_vectors.compare(folder, right_side, made, loaded))
            return
        if right is not None and loaded.has_tokenizer:
            say("stops", **stop_tokens.compare(folder, right.id_of, loaded))
        plain, with_tools = loaded.chat_template(), loaded.chat_template(chat_templates.TOOL_USE)
        say("template", **chat_templates.compare(folder, plain, with_tools, Path(job.lib_dir)))
        if weights:
            computed = loaded.logits(right_side.tokens, exact_cache=exact)
            say("logits", **compare_logits.compare(right_side.expected, computed))
        elif right_side.why_not:
            say("logits", why_not=right_side.why_not)
        if right_side.beyond is not None and original is None:
            say("beyond", **compare_regimes.beyond(right_side, loaded, exact_cache=exact))
    if weights:
        others = compare_regimes.others(right_side, computed, made, toolchain, job.threads, exact_cache=exact)
        for regime, seen in others:
            say(regime, **seen)


def _unexpected(names: list[str]) -> None:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    say("remark", text=f"transformers has no use for {', '.join(name[:80] for name in names[:3])}{more}.")


def _relay(event: Event) -> None:
    if isinstance(event, Step):
        say("step", done=event.done, total=event.total)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # All is said, and taking torch and transformers down in good order takes a second.
    os._exit(status)
