"""Quality, measured with the real tool on real models."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from shared import Store

import ggq
from ggq.errors import GgufProblem, UsageProblem
from ggq.llamacpp import perplexity, text_tokens
from ggq.llamacpp.logits_file import logits_bytes
from ggq.llamacpp.perplexity import Evaluation
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import excerpts, model_file, quality
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualityResult
from ggq.measurement.settings import QualitySettings
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.records.journal import Journal
from ggq.session import Session
from ggq.system import files
from ggq.system.texts import Text

pytestmark = pytest.mark.tool

PRESETS = ("Q2_K", "Q4_K_M", "Q8_0")


def text_of(path: Path) -> Text:
    return Text(path.name, path, files.sha256_file(path), path.stat().st_size)


@pytest.fixture(scope="module")
def family(base_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, ...]:
    """The example's base and three of its presets."""
    made = ggq.quantize(base_gguf, PRESETS, tmp_path_factory.mktemp("quants"), Settings(threads=2))
    return model_file.distinct(map(model_file.of, [base_gguf, *(file.paths[0] for file in made.files)]))


@pytest.fixture(scope="module")
def heldout(example: Path) -> Text:
    return text_of(example / "heldout.txt")


def measure(
    family: tuple[Subject, ...], text: Text, toolchain: Toolchain, work: Path, **settings: object
) -> QualityResult:
    chosen = QualitySettings(**{"context": 128, "threads": 2, **settings})
    return quality.measure(family[0], family[1:], text, chosen, session=Session(toolchain), work=work)


def test_models_are_named_by_their_presets(family: tuple[Subject, ...]) -> None:
    assert [model.name for model in family] == ["BF16", *PRESETS]


def test_the_order_is_settled_long_before_the_text_ends(
    family: tuple[Subject, ...], heldout: Text, toolchain: Toolchain, tmp_path: Path
) -> None:
    found = measure(family, heldout, toolchain, tmp_path)
    assert found.stopped == "settled"
    assert [found.ranking[0].better, *(pair.worse for pair in found.ranking)] == ["Q8_0", "Q4_K_M", "Q2_K"]
    assert found.chunks * found.context < found.text_tokens / 4
    assert found.scored_tokens == found.chunks * 63
    assert not list(tmp_path.glob("logits*"))


def test_fixed_work_gives_the_tools_own_figures(
    family: tuple[Subject, ...], heldout: Text, toolchain: Toolchain, tmp_path: Path
) -> None:
    """Cut into rounds and put together again, to what one run by hand over the same chunks prints."""
    found = measure(family, heldout, toolchain, tmp_path, chunks=20)
    assert (found.chunks, len(found.rounds), found.stopped) == (20, 8, "as asked")
    how = Evaluation(context=128, threads=2)
    whole = perplexity.save_logits(toolchain, family[0].path, heldout.path, tmp_path / "w", how, chunks=20)
    by_hand = perplexity.divergence(toolchain, family[2].path, whole, how)
    ours = found.models[1].divergence
    assert ours.perplexity.value == pytest.approx(by_hand.perplexity.value, rel=1e-5)
    assert found.base_perplexity.value == pytest.approx(by_hand.base_perplexity.value, rel=1e-5)
    assert ours.mean_kld.value == pytest.approx(by_hand.mean_kld.value, abs=2e-6)
    assert ours.ln_ppl_ratio.value == pytest.approx(by_hand.ln_ppl_ratio.value, abs=2e-6)
    assert ours.same_top.value == pytest.approx(by_hand.same_top.value, abs=2e-5)
    assert ours.rms_dp.value == pytest.approx(by_hand.rms_dp.value, abs=2e-5)
    assert ours.max_kld == by_hand.max_kld
    # The spread between rounds and the tool's own error are two estimates of one thing.
    for mine, theirs in ((ours.mean_kld, by_hand.mean_kld), (ours.same_top, by_hand.same_top)):
        assert mine.standard_error and theirs.standard_error
        assert 0.3 < mine.standard_error / theirs.standard_error < 4


def test_every_figure_has_its_error(
    family: tuple[Subject, ...], heldout: Text, toolchain: Toolchain, tmp_path: Path
) -> None:
    found = measure(family, heldout, toolchain, tmp_path, chunks=16)
    for model in (it.divergence for it in found.models):
        for figure in (
            model.perplexity, model.ln_ppl_ratio, model.mean_kld, model.median_kld, model.p99_kld,
            model.same_top, model.rms_dp,
        ):  # fmt: skip
            assert figure.standard_error and math.isfinite(figure.standard_error)
        assert model.median_kld.value < model.mean_kld.value < model.p99_kld.value < model.max_kld


def test_a_broken_measurement_goes_on_where_it_stopped(
    family: tuple[Subject, ...],
    heldout: Text,
    toolchain: Toolchain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = QualitySettings(chunks=8, context=128, threads=2)
    real, runs = perplexity.divergence, itertools.count()

    def breaks(*args: object, **options: object) -> perplexity.Divergence:
        if next(runs) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    def again() -> QualityResult:
        return quality.measure(
            family[0], family[1:], heldout, settings, session=Session(toolchain), work=tmp_path,
            journal=Journal(tmp_path / "journal.jsonl"),
        )  # fmt: skip

    monkeypatch.setattr(perplexity, "divergence", breaks)
    with pytest.raises(KeyboardInterrupt):
        again()
    # As a kill in the middle of a line would leave it.
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"key": "cut sh')
    runs = itertools.count(5)
    whole = again()
    # 4 rounds of 3 models, of which 4 evaluations were known.
    assert next(runs) == 5 + 4 * 3 - 4
    monkeypatch.setattr(perplexity, "divergence", lambda *args, **options: pytest.fail("measured again"))
    monkeypatch.setattr(perplexity, "save_logits", lambda *args, **options: pytest.fail("measured again"))
    assert again().models == whole.models


def test_little_disk_makes_pieces_of_the_text(
    family: tuple[Subject, ...], heldout: Text, toolchain: Toolchain, tmp_path: Path
) -> None:
    heard: list[Event] = []
    limit = logits_bytes(2048, 128, 5)
    settings = QualitySettings(chunks=12, context=128, threads=2, max_base_bytes=limit)
    found = quality.measure(
        family[0],
        family[1:],
        heldout,
        settings,
        session=Session(toolchain, listener=heard.append),
        work=tmp_path,
    )
    assert found.base_bytes <= limit
    assert (found.chunks, len(found.rounds)) == (12, 3)
    warnings = [event.text for event in heard if isinstance(event, Notice) and event.level == "warning"]
    assert "--max-base-bytes" in warnings[0]


def test_a_single_model_is_measured_until_its_divergence_is_known_well(
    family: tuple[Subject, ...], heldout: Text, toolchain: Toolchain, tmp_path: Path
) -> None:
    found = measure(family[:2], heldout, toolchain, tmp_path)
    assert len(found.rounds) >= 8 and found.ranking == ()
    if found.stopped == "settled":
        kld = found.models[0].divergence.mean_kld
        assert 2.5 * (kld.standard_error or 0) < 0.1 * kld.value


def test_pieces_cover_the_text_without_repeating_it(
    family: tuple[Subject, ...], heldout: Text, toolchain: Toolchain, tmp_path: Path
) -> None:
    tokens = len(text_tokens.token_ids(toolchain, family[0].path, heldout.path))
    base = excerpts.Base(
        toolchain, family[0].path, 2048, heldout.path, tokens, Evaluation(128, threads=2), tmp_path
    )
    drawn = excerpts.at_random(base, 10**6, 10**9, seed=3).excerpts
    starts = sorted(excerpt.first_byte or 0 for excerpt in drawn)
    assert len(set(starts)) == len(starts) == tokens // 128 // 2
    assert starts[-1] > 0.9 * heldout.file_bytes
    again = excerpts.at_random(base, 10**6, 10**9, seed=3).excerpts
    assert drawn == again != excerpts.at_random(base, 10**6, 10**9, seed=4).excerpts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context": 4096}, "more than"),
        ({"max_base_bytes": 1000}, "more disk"),
        ({"chunks": 1}, "too few"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    family: tuple[Subject, ...],
    heldout: Text,
    toolchain: Toolchain,
    tmp_path: Path,
    settings: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(UsageProblem, match=words):
        measure(family, heldout, toolchain, tmp_path, **settings)


def test_too_little_text_is_refused(
    family: tuple[Subject, ...], toolchain: Toolchain, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("def nothing(): pass\n" * 10)
    with pytest.raises(UsageProblem, match="too short"):
        measure(family, text_of(short), toolchain, tmp_path)


def test_models_of_two_families_are_not_compared(
    family: tuple[Subject, ...],
    heldout: Text,
    stories: Path,
    store: Store,
    toolchain: Toolchain,
    tmp_path: Path,
) -> None:
    other = (model_file.of(store.converted(toolchain, stories, "f32", by_hand=True)),)
    with pytest.raises(GgufProblem, match="was not made from"):
        measure((family[0], *other), heldout, toolchain, tmp_path)


def test_every_k_quant_of_a_real_model(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    """From Q2_K to Q8_0 the divergence falls with the bits; the last one mostly agrees with the base."""
    made = ggq.convert_and_quantize(
        str(example), ["k-quants"], tmp_path / "out", Settings(keep_base=True, threads=2, verify="off")
    )
    assert made.base is not None
    base, *models = model_file.distinct(
        map(model_file.of, [made.base, *(file.paths[0] for file in made.files)])
    )
    settings = QualitySettings(chunks=8, threads=2)
    found = quality.measure(
        base, models, text_of(example / "heldout.txt"), settings, session=Session(toolchain), work=tmp_path
    )
    by_bits = sorted(zip(models, found.models, strict=True), key=lambda pair: pair[0].bits_per_weight)
    klds = [model.divergence.mean_kld for _, model in by_bits]
    for fewer, more in itertools.pairwise(klds):
        assert more.value < fewer.value + math.hypot(fewer.standard_error or 0, more.standard_error or 0)
    assert klds[0].value > 20 * klds[-1].value
    assert by_bits[-1][1].divergence.same_top.value > 0.95
