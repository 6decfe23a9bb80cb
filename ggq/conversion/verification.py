"""What a conversion was checked for, and the verdict on what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ggq.conversion import compare_vectors, scaled_context, sliding_window, stop_tokens
from ggq.conversion.compare_packed import Unpacked
from ggq.conversion.parameter_count import Account
from ggq.errors import ConversionProblem

# The least cosine between transformers' logits and the GGUF's, averaged over the prompt's positions.
# llama.cpp rounds what it multiplies to the weights' own type, which costs 1e-5 to 1e-4 in 16 bits; a wrong
# rotary base, scale or norm costs 1e-2 and more (docs/supported-models.md). Q8_0 rounds to 8 bits.
LEAST_COSINE: Mapping[str, float] = {"f32": 0.999, "f16": 0.999, "bf16": 0.999, "q8_0": 0.99}


# The key of a GGUF that says whether it was compared. Its text has one length, whatever it says: so the file
# can be given its verdict in place, and its size is known in advance.
KEY = "ggq.verification"
COMPARED = "compared with transformers"
_KEY_WIDTH = 112


@dataclass(frozen=True)
class Verification:
    """What was checked. Counts are of parameters (elements of tensors).

    ``level``: off, sampled or full (``full``: every value was looked at for NaN and infinity, not 64 rows of
    each tensor); ``tokenizer_strings``: how many texts were tokenized alike, of ``tokenizer_compared`` (None:
    a record of an earlier ggq), by ``tokenizer_reference``; ``stop_tokens``: at which the checkpoint ends a
    turn, and ``stop_tokens_lost``: those at which llama.cpp does not;
    ``template_conversations``: how many that the chat template renders alike, of ``template_compared``;
    ``logits_cosine``: mean over
    ``positions``, with the ``lowest_cosine`` and the share of positions whose best token agrees;
    ``beyond_cosine``: at positions beyond the ``original_context``, of a model whose context is scaled, and
    ``rotations``: of how many queries and keys the rotation there was measured and is the checkpoint's;
    ``window_cosine``: at positions behind the ``window``, or behind a shorter one in the place of it on both
    sides, and ``window_lost``: llama.cpp has no window for this architecture. A check that could not be made
    says why in ``tokenizer_why_not`` and ``why_not``. Of an encoder the vectors are compared in the place of
    logits: ``vectors_cosine`` and ``lowest_cosine`` of the
    ``positions``' own, ``pooled_cosine`` of the text's, pooled by ``pooling`` (empty: the checkpoint says
    none). ``unpacked_compared`` of ``unpacked_tensors`` packed ones were compared by their values where there
    are no logits. ``unread_tensors``: of a type whose values could not be looked at.
    """

    level: str
    tensor_count: int
    gguf_parameters: int
    checkpoint_parameters: int | None = None
    parameter_notes: tuple[str, ...] = ()
    tokenizer_strings: int = 0
    tokenizer_compared: int | None = None
    tokenizer_reference: str = ""
    tokenizer_why_not: str = ""
    stop_tokens: tuple[int, ...] = ()
    stop_tokens_lost: tuple[int, ...] = ()
    template_conversations: int = 0
    template_compared: int = 0
    positions: int = 0
    logits_cosine: float | None = None
    lowest_cosine: float | None = None
    top1_agreement: float | None = None
    original_context: int | None = None
    beyond_cosine: float | None = None
    rotations: int = 0
    window: int | None = None
    window_cosine: float | None = None
    window_lost: bool = False
    vectors_cosine: float | None = None
    pooling: str = ""
    pooled_cosine: float | None = None
    unpacked_tensors: int = 0
    unpacked_compared: int = 0
    unread_tensors: int = 0
    why_not: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """For the GGUF's own metadata."""
        if self.logits_cosine is None and self.vectors_cosine is None:
            return not_compared(self.why_not)
        return padded(COMPARED)


def not_compared(why: str) -> str:
    """The verdict on a GGUF that was not compared. Only the first part of the reason stands in it: what
    follows a colon (bytes that are free, an error's words) differs from run to run, and files must not."""
    reason = "".join(letter if " " <= letter <= "~" else "?" for letter in why.partition(":")[0])
    return padded(f"not compared: {reason}" if reason else "not compared")


def padded(verdict: str) -> str:
    return verdict[:_KEY_WIDTH].ljust(_KEY_WIDTH)


@dataclass(frozen=True)
class Findings:
    """What the child process saw. ``account`` is None when parameters cannot be counted (packed weights)."""

    tensor_count: int
    gguf_parameters: int
    account: Account | None
    not_finite: tuple[str, ...]
    tokenizer: Mapping[str, Any]
    logits: Mapping[str, Any]
    beyond: Mapping[str, Any] = field(default_factory=dict)
    window: Mapping[str, Any] = field(default_factory=dict)
    stops: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    vectors: Mapping[str, Any] = field(default_factory=dict)
    unpacked: Unpacked = field(default_factory=Unpacked)
    unread: tuple[str, ...] = ()


def verdict(level: str, outtype: str, found: Findings) -> Verification:
    """Raises ConversionProblem when the GGUF is not the checkpoint; else says what was checked."""
    _require_finite(found)
    _require_same_values(found.unpacked)
    _require_same_tokens(found.tokenizer)
    _require_same_logits(outtype, found.logits)
    sliding_window.require_same(found.window)
    scaled_context.require_same(found.beyond)
    _require_same_logits(
        outtype, scaled_context.verdict_of_logits(found.beyond), " beyond its original context"
    )
    compare_vectors.require_same(found.vectors, outtype, LEAST_COSINE[outtype])
    # Of an encoder there are vectors, never logits.
    computed = found.vectors or found.logits
    cosine = computed.get("cosine")
    why_not = computed.get("why_not") or found.logits.get("why_not", "")
    computed_word = "vectors" if found.vectors else "logits"
    warnings: list[str] = [*found.vectors.get("lost", ())]
    if found.account is not None and found.account.unexplained:
        text = (
            f"the checkpoint has {found.account.checkpoint:,} parameters, the GGUF {found.account.gguf:,}, "
            f"and {abs(found.account.unexplained):,} of the difference are not explained"
        )
        if cosine is None:
            raise ConversionProblem(
                "The GGUF does not hold what the checkpoint holds.",
                f"{_sentence(text)} The {computed_word} could not speak for it either: {why_not}.",
                "Report this, with the model's name; --verify off keeps the file as it is.",
            )
        warnings.append(f"{text}; the {computed_word} agree all the same")
    if found.unread:
        warnings.append(
            f"the values of {len(found.unread)} tensors were not looked at, of a type that gguf-py cannot"
            f" dequantize: {', '.join(found.unread[:3])}{', …' if found.unread[3:] else ''}"
        )
    warnings += [remark.rstrip(".") for remark in found.remarks]
    warnings += found.tokenizer.get("remarks", ())
    if found.tokenizer.get("specials"):
        warnings.append(
            "the tokens that are put before and after a text differ: "
            f"{found.tokenizer['reference']} has {_ends(found.tokenizer['specials']['expected'])}, the GGUF "
            f"{_ends(found.tokenizer['specials']['gguf'])}"
        )
    warnings += scaled_context.remarks(found.beyond)
    warnings += sliding_window.remarks(found.window, LEAST_COSINE[outtype])
    warnings += found.template.get("remarks", ())
    if found.template.get("why_not"):
        warnings.append(f"the chat template was not compared: {found.template['why_not']}")
    warnings += stop_tokens.remarks(found.stops)
    account = found.account
    return Verification(
        level=level,
        tensor_count=found.tensor_count,
        gguf_parameters=found.gguf_parameters,
        checkpoint_parameters=account.checkpoint if account else None,
        parameter_notes=account.notes if account else (),
        tokenizer_strings=found.tokenizer.get("agree", 0),
        tokenizer_compared=found.tokenizer.get("strings"),
        tokenizer_reference=found.tokenizer.get("reference", ""),
        tokenizer_why_not=found.tokenizer.get("why_not", ""),
        stop_tokens=tuple(found.stops.get("ids", ())),
        stop_tokens_lost=tuple(one["id"] for one in found.stops.get("lost", ())),
        template_conversations=found.template.get("agree", 0),
        template_compared=found.template.get("tried", 0),
        positions=computed.get("positions", 0),
        logits_cosine=found.logits.get("cosine"),
        lowest_cosine=computed.get("lowest_cosine"),
        top1_agreement=found.logits.get("top1_agreement"),
        original_context=found.beyond.get("original"),
        beyond_cosine=found.beyond.get("cosine"),
        rotations=found.beyond.get("turned", 0),
        window=found.window.get("window"),
        window_cosine=found.window.get("cosine"),
        window_lost=found.window.get("lost", False),
        vectors_cosine=found.vectors.get("cosine"),
        pooling=found.vectors.get("pooling", ""),
        pooled_cosine=found.vectors.get("pooled_cosine"),
        unpacked_tensors=found.unpacked.tensors,
        unpacked_compared=found.unpacked.compared,
        unread_tensors=len(found.unread),
        why_not=why_not,
        warnings=tuple(warnings),
    )


def _require_finite(found: Findings) -> None:
    if found.not_finite:
        names = ", ".join(found.not_finite[:3])
        more = f" and {len(found.not_finite) - 3} more" if len(found.not_finite) > 3 else ""
        raise ConversionProblem(
            f"{len(found.not_finite)} tensors hold values that are not numbers (NaN or infinity).",
            f"{names}{more}. The checkpoint has them, or they do not fit the chosen type.",
            "Download the checkpoint again; if it was made for bf16, do not convert it with --outtype f16.",
        )
    if found.logits.get("not_finite"):
        raise ConversionProblem(
            "The model computes values that are not numbers.",
            f"On a short prompt {found.logits['not_finite']} logits hold NaN or infinity.",
            "Try another --outtype (bf16 or f32 instead of f16).",
        )


def _require_same_values(unpacked: Unpacked) -> None:
    if unpacked.wrong:
        more = f" and {len(unpacked.wrong) - 3} more" if unpacked.wrong[3:] else ""
        raise ConversionProblem(
            "The GGUF's weights are not the checkpoint's.",
            f"{', '.join(unpacked.wrong[:3])}{more}: unpacked by ggq, they have other values.",
            "Report it, with the model's name; --verify off keeps the file as it is.",
        )


def _require_same_tokens(tokenizer: Mapping[str, Any]) -> None:
    wrong = tokenizer.get("mismatches") or ()
    if wrong:
        first = wrong[0]
        raise ConversionProblem(
            "The GGUF's tokenizer is not the checkpoint's.",
            f"{len(wrong)} of {tokenizer['strings']} texts differ; {first['text'][:40]!r} is "
            f"{_short(first['expected'])} by {tokenizer['reference']} and {_short(first['gguf'])} in the "
            "GGUF.",
            "Check that the tokenizer's files are those of this model; --verify off keeps the file as it is.",
        )


def _require_same_logits(outtype: str, logits: Mapping[str, Any], how: str = "") -> None:
    cosine = logits.get("cosine")
    if cosine is not None and cosine < LEAST_COSINE[outtype]:
        raise ConversionProblem(
            "The GGUF does not compute what the checkpoint computes.",
            f"Over {logits['positions']} positions{how} the cosine between its logits and transformers' is "
            f"{cosine:.4f} (at least {LEAST_COSINE[outtype]} is asked of {outtype}), the lowest "
            f"{logits['lowest_cosine']:.4f}; the best token agrees at {logits['top1_agreement']:.0%}.",
            "llama.cpp does not do this model as its config says. Report it, with the model's name.",
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ends(ids: list[list[int]]) -> str:
    return " and ".join(str(part[:4]) if part else "none" for part in ids)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
