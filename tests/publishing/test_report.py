"""The report in a real browser: nothing is fetched, nothing complains, tables sort, charts have points."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, browser
from click.testing import CliRunner
from measured import ENVIRONMENT, Timed, memory, quality, record, speed, subject

import ggq
from ggq.cli.main import cli
from ggq.errors import OutputProblem, UsageProblem
from ggq.measurement.model_file import Subject
from ggq.records.environment import EnvironmentGpu

PRESETS = {"Q8_0": 8_500_000, "Q5_K_M": 5_700_000, "Q4_K_M": 4_900_000, "Q4_0": 5_000_000, "Q2_K": 3_000_000}
# Q4_0 is larger than Q4_K_M and farther from the 16-bit file: off the front.
KLDS = {"Q8_0": 0.0004, "Q5_K_M": 0.004, "Q4_K_M": 0.01, "Q4_0": 0.02, "Q2_K": 0.13}
SPEEDS = {"Q8_0": 10.0, "Q5_K_M": 14.0, "Q4_K_M": 17.0, "Q4_0": 17.5, "Q2_K": 20.0}
DEPTHS = (0, 512, 2048)
OTHER_MACHINE = replace(ENVIRONMENT, cpu="Another CPU", gpus=(EnvironmentGpu("CUDA0", "A GPU", 80 << 30),))


def of_model(name: str, preset: str, size: int) -> Subject:
    path = Path(f"{name}-{preset}.gguf")
    return replace(subject(preset, size, name), path=path, file_name=path.name)


def measure(folder: Path, name: str = "Tiny", *, on_gpu: bool = False) -> Path:
    """A folder with the record of a model, measured in every way."""
    folder.mkdir()
    models = [of_model(name, "BF16", 16_000_000), *(of_model(name, *item) for item in PRESETS.items())]
    layers = (0, 8, 16) if on_gpu else (0,)
    speeds = {
        preset: speed(preset, [
            Timed(test, 64, [[rate * (1 + 0.01 * n) for n in range(3)]] * 2, depth_tokens=depth,
                  n_gpu_layers=count)
            for test, rate in (("prompt", 9 * base), ("generation", base))
            for depth in DEPTHS
            for count in (layers if depth == 0 else layers[-1:])
        ])
        for preset, base in SPEEDS.items()
    }  # fmt: skip
    memories = {it: memory(it, {512: size + 10**8, 2048: size + 2 * 10**8}) for it, size in PRESETS.items()}
    record(
        folder / "ggq-bench.json",
        models=models,
        qualities=quality({preset: [kld * 0.9, kld, kld * 1.1] for preset, kld in KLDS.items()}),
        speeds=speeds,
        memories=memories,
        environment=OTHER_MACHINE if on_gpu else ENVIRONMENT,
    )
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one folder, and one of two machines and two models."""
    root = tmp_path_factory.mktemp("reports")
    folders = [
        measure(root / "one"),
        measure(root / "gpu", on_gpu=True),
        measure(root / "other", "Other<b>&'\"model"),
    ]
    ggq.report(folders[0], output=root / "one.html")
    ggq.report(folders, output=root / "all.html")
    return {"one": root / "one.html", "all": root / "all.html"}


@pytest.fixture(scope="module")
def window(pages: dict[str, Path]) -> Browser:  # type: ignore[misc]
    with browser() as opened:
        yield opened


def shown_points(window: Browser, chart: str) -> int:
    count = window.ask(
        f"[...document.querySelectorAll('#{chart} svg.chart')]"
        ".filter(it => it.getBoundingClientRect().width > 0)"
        ".map(it => it.querySelectorAll('.point').length).reduce((a, b) => a + b, 0)"
    )
    return int(count)


# --- in the browser --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "all"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_fetched_and_nothing_complains(
    window: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    window.resize(width)
    window.open(pages[name])
    asked = [url for url in window.requested() if not url.startswith(("file:", "data:", "chrome:"))]
    assert asked == []
    assert pages[name].as_uri() in window.requested(), "the log of requests is blind"
    assert window.complaints() == []
    assert window.ask("document.documentElement.scrollWidth") <= width, "the page is wider than its window"


def test_charts_have_a_point_for_each_measurement(window: Browser, pages: dict[str, Path]) -> None:
    for width in (400, 1400):
        window.resize(width)
        window.open(pages["one"])
        assert shown_points(window, "quality-0") == len(KLDS)
        assert shown_points(window, "generation-context-0") == len(SPEEDS) * len(DEPTHS)
        assert shown_points(window, "prompt-context-0") == len(SPEEDS) * len(DEPTHS)
        assert shown_points(window, "memory-0") == len(PRESETS) * 2
    hollow = window.ask(
        "[...document.querySelectorAll('#quality-0 .wide .hollow title')].map(it => it.textContent)"
    )
    assert [text.split(":")[0] for text in hollow] == ["Q4_0"]
    assert window.ask("document.querySelector('[id^=generation-layers]')") is None, "no GPU was measured"


def test_points_stand_where_their_values_are(window: Browser, pages: dict[str, Path]) -> None:
    window.resize(1400)
    window.open(pages["one"])
    spots = window.ask(
        "[...document.querySelectorAll('#quality-0 .wide .point')].map(it => {"
        " const box = it.getBoundingClientRect(); const name = it.querySelector('title').textContent;"
        " return [name.split(':')[0], box.x, box.y + box.height / 2]; })"
    )
    left_to_right = [name for name, *_ in sorted(spots, key=lambda spot: spot[1])]
    assert left_to_right == sorted(PRESETS, key=lambda name: PRESETS[name])
    top_down = [name for name, *_ in sorted(spots, key=lambda spot: spot[2])]
    assert top_down == sorted(KLDS, key=lambda name: -KLDS[name])


def column(window: Browser, index: int) -> list[str]:
    cells = window.ask(
        f"[...document.querySelectorAll('#all tbody tr')].map(it => it.cells[{index}].textContent)"
    )
    return [str(cell) for cell in cells]


def test_the_table_sorts_by_keyboard(window: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    window.resize(1400)
    window.open(pages["one"])
    names = window.ask("[...document.querySelectorAll('#all thead button')].map(it => it.textContent)")
    kld = names.index("KLD")
    button = window.driver.find_elements("css selector", "#all thead button")[kld]
    for _ in range(60):  # by the tabulator alone, as who has no mouse gets there
        if window.driver.switch_to.active_element == button:
            break
        window.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert window.driver.switch_to.active_element == button
    button.send_keys(Keys.ENTER)
    presets = column(window, 0)
    # The 16-bit file has no KLD: what is not known stays at the end, whichever way.
    assert presets == [*sorted(KLDS, key=lambda name: KLDS[name]), "BF16"]
    assert window.ask(f"document.querySelectorAll('#all th')[{kld}].ariaSort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert column(window, 0) == [*sorted(KLDS, key=lambda name: -KLDS[name]), "BF16"]
    assert "KLD, descending" in window.ask("document.getElementById('sorted').textContent")


def test_a_screen_reader_gets_names_and_figures(window: Browser, pages: dict[str, Path]) -> None:
    window.resize(1400)
    window.open(pages["one"])
    images = window.named("image")
    assert len(images) >= 4
    assert all(images), "a chart without a name"
    assert all(window.named("button"))
    assert {"Which file to take", "Charts", "All files", "How to run them", "Measured on"} <= set(
        window.named("heading")
    )
    figures = window.ask("document.querySelectorAll('#quality-0 details tbody tr').length")
    assert figures == len(KLDS)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast of two ``rgb(…)``."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(window: Browser, pages: dict[str, Path], scheme: str) -> None:
    window.emulate(scheme=scheme)
    window.open(pages["all"])
    paper = window.ask("getComputedStyle(document.body).backgroundColor")
    assert (contrast(paper, "rgb(255, 255, 255)") < 1.5) == (scheme == "light")
    for selector in ("body", ".note", "dt", "code", "#all button"):
        ink = window.ask(f"getComputedStyle(document.querySelector('{selector}')).color")
        assert contrast(ink, paper) >= 4.5, selector
    for number in range(8):
        line = window.ask(
            f"(() => {{ const it = document.body.appendChild(document.createElement('p'));"
            f" it.style.color = 'var(--c{number})'; return getComputedStyle(it).color; }})()"
        )
        assert contrast(line, paper) >= 3, f"a line of colour {number}"
    # The button turns it round.
    window.driver.find_element("id", "theme").click()
    turned = window.ask("getComputedStyle(document.body).backgroundColor")
    assert (contrast(turned, "rgb(255, 255, 255)") < 1.5) == (scheme == "dark")
    window.emulate()


def test_on_paper_it_is_light_and_whole(window: Browser, pages: dict[str, Path]) -> None:
    window.emulate(media="print", scheme="dark")
    window.open(pages["one"])
    assert window.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert window.ask("getComputedStyle(document.getElementById('theme')).display") == "none"
    window.emulate()
    assert window.printed().startswith(b"%PDF")


def test_models_and_machines_stand_side_by_side(window: Browser, pages: dict[str, Path]) -> None:
    window.resize(1400)
    window.open(pages["all"])
    assert len(column(window, 0)) == 3 * (1 + len(PRESETS))
    places = window.ask(
        "['generation-context-0', 'generation-context-1'].map(it => {"
        " const box = document.getElementById(it).getBoundingClientRect(); return [box.x, box.y]; })"
    )
    assert places[0][1] == places[1][1]
    assert places[0][0] < places[1][0]
    assert shown_points(window, "generation-layers-1") == len(SPEEDS) * 3
    assert window.ask("document.querySelectorAll('article.choice').length") == 3
    # A name is a text, whatever it holds.
    assert window.ask("document.querySelectorAll('b').length") == window.ask(
        "document.querySelectorAll('article.choice li b').length"
    )
    assert "Other<b>&'\"model" in window.ask("document.querySelector('h1').textContent")


# --- the file --------------------------------------------------------------------------------------------


def test_its_data_can_be_read_by_a_program(pages: dict[str, Path]) -> None:
    page = pages["all"].read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="ggq-report">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["schema_version"] == 1
    assert len(data["files"]) == 3 * (1 + len(PRESETS))
    kld = next(it["mean_kld"]["value"] for it in data["files"] if it["name"] == "Q4_K_M")
    assert kld == pytest.approx(KLDS["Q4_K_M"])
    assert os.fspath(pages["all"].parent) not in page, "a path of this machine"


def test_the_choice_weighs_speed_and_loss(tmp_path: Path) -> None:
    made = ggq.report(measure(tmp_path / "one"), output=tmp_path / "page.html")
    (choice,) = made.choices
    # log2(t/s) - 10 KLD, by hand: Q8_0 3.32, Q5_K_M 3.77, Q4_K_M 3.99, Q4_0 3.93, Q2_K 3.02.
    assert choice.chosen.preset == "Q4_K_M"
    assert [it.preset for it, _ in choice.others] == ["Q4_0", "Q5_K_M", "Q8_0", "Q2_K"]
    assert "17.17" in " ".join(choice.reasons)
    assert "Q5_K_M would have KLD 0.004" in " ".join(choice.reasons)


def test_a_hundred_files_stay_below_the_limit(tmp_path: Path) -> None:
    names = [f"Q4_K_M-{number}" for number in range(100)]
    folder = tmp_path / "many"
    folder.mkdir()
    record(
        folder / "ggq-bench.json",
        models=[subject("BF16"), *(subject(name, 5_000_000 + n) for n, name in enumerate(names))],
        qualities=quality({name: [0.01, 0.011] for name in names}),
        speeds={
            name: speed(name, [Timed("generation", 8, [[9.0] * 3], depth_tokens=depth) for depth in (0, 9)])
            for name in names
        },
    )  # fmt: skip
    made = ggq.report(folder, output=tmp_path / "page.html")
    assert made.page_bytes < 1_500_000


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    folder, page = measure(tmp_path / "one"), tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(OutputProblem, match="not a report"):
        ggq.report(folder, output=page)
    assert page.read_text() == "mine"
    ggq.report(folder, output=page, force=True)
    ggq.report(folder, output=page)  # its own it makes anew


def test_without_measurements_it_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem) as caught:
        ggq.report(tmp_path, output=tmp_path / "page.html")
    assert "ggq bench" in caught.value.next_step
    assert not (tmp_path / "page.html").exists()


def test_the_command_says_the_choice_and_where_the_page_is(tmp_path: Path) -> None:
    folder, page = measure(tmp_path / "one"), tmp_path / "page.html"
    shown = CliRunner().invoke(cli, ["report", str(folder), "-o", str(page)])
    assert shown.exit_code == 0
    assert "Tiny: Q4_K_M" in shown.stdout
    assert str(page) in shown.stdout
    told = CliRunner().invoke(cli, ["report", str(folder), "-o", str(page), "--json"])
    assert json.loads(told.stdout)["choices"][0]["preset"] == "Q4_K_M"
