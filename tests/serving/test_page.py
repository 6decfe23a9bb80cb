"""The page at `/` in a real browser: a turn streams, nothing complains, nothing but the server is asked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import Browser, browser
from servers import Serving, serving

from ggq.llamacpp.toolchain import Toolchain
from ggq.serving import page
from ggq.serving.page import PageChoice

pytestmark = pytest.mark.tool
PICTURES = Path(__file__).parents[2] / "docs" / "images"
KEY = "the-right-key"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def server(chat_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    # A song without an end has room for minutes.
    with serving(chat_gguf, "--page", "ggq", "--log-file", log, "-c", "32768") as found:
        yield found


@pytest.fixture
def window(server: Serving) -> Iterator[Browser]:
    with browser(1400, 900) as found:
        found.open(f"{server.url}/")
        until(lambda: found.ask("document.getElementById('name').textContent") == "chat260K-BF16")
        yield found


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + TIMEOUT_S
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def type_in(window: Browser, text: str) -> None:
    window.driver.find_element("id", "text").send_keys(text)


def answers(window: Browser) -> list[str]:
    found = window.ask(
        "[...document.querySelectorAll('article.assistant .body')].map((it) => it.textContent)"
    )
    return [str(it).strip() for it in found]


def done(window: Browser) -> bool:
    return bool(window.ask("document.getElementById('stop').hidden"))


def finished(window: Browser, count: int) -> str:
    """The text of answer number ``count``, when it is there whole."""
    until(lambda: len(answers(window)) == count and answers(window)[-1] and done(window))
    return answers(window)[-1]


def test_a_turn_and_a_second_one_that_remembers_it(window: Browser, server: Serving) -> None:
    window.ask("document.getElementById('temperature').value = '0'")
    window.ask("document.getElementById('seed').value = '1'")
    type_in(window, "My name is Sue.\n")
    assert finished(window, 1) == "Hello Sue."
    type_in(window, "What is my name?\n")
    assert finished(window, 2) == "Your name is Sue."
    notes = window.ask(
        "[...document.querySelectorAll('article.assistant .note')].map((it) => it.textContent)"
    )
    assert all("tokens/s" in it and "first after" in it for it in notes)
    hosts = {urlsplit(it).netloc for it in window.requested() if not it.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(server.url).netloc}, "it asks others than its server"
    assert window.complaints() == []


def test_an_answer_streams_and_escape_stops_it(window: Browser) -> None:
    window.ask("document.getElementById('temperature').value = '0'")
    type_in(window, "Sing a song.\n")
    lengths = [until(lambda least=least: len(answers(window)[-1] if answers(window) else "") > least  # type: ignore[misc]
                     and len(answers(window)[-1])) for least in (10, 60, 200)]  # fmt: skip
    assert lengths == sorted(lengths)
    assert not done(window), "it came at once: the song has no end"
    type_in(window, "\ue00c")  # the key Escape
    until(lambda: done(window))
    assert "stopped" in window.ask("document.querySelector('article.assistant .note').textContent")
    stopped = len(answers(window)[-1])
    time.sleep(0.5)
    assert len(answers(window)[-1]) == stopped
    assert window.complaints() == []


def test_what_a_model_says_is_no_markup(window: Browser) -> None:
    shown = window.ask(
        "(() => { const box = document.createElement('div');"
        " fill(box, '<img src=x onerror=alert(1)>\\n```js\\n<b>code</b>\\n```\\nend');"
        " const count = (it) => box.querySelectorAll(it).length;"
        " return [count('img, b'), count('pre'), box.textContent]; })()"
    )
    assert shown[:2] == [0, 1]
    assert "<img src=x onerror=alert(1)>" in shown[2] and "<b>code</b>" in shown[2]


def test_it_can_be_used_by_the_keyboard_and_read_aloud(window: Browser) -> None:
    buttons = window.named("button")
    assert {"New chat", "Settings", "Send"} <= set(buttons) and all(buttons)
    assert "Message" in window.named("textbox")
    window.driver.find_element("id", "set").send_keys("\n")
    assert window.ask("document.getElementById('set').getAttribute('aria-expanded')") == "true"
    fields = window.named("textbox") + window.named("spinbutton")
    assert all(fields) and {"Temperature", "Top p", "Most tokens", "Seed"} <= set(fields)


def test_a_key_is_asked_for(chat_gguf: Path) -> None:
    with serving(chat_gguf, "--page", "ggq", "--api-key", KEY) as locked, browser() as window:
        window.open(f"{locked.url}/")
        until(lambda: "API key" in window.ask("document.getElementById('status').textContent"))
        field = window.driver.find_element("id", "key")
        field.send_keys(f"{KEY}\n")
        window.driver.find_element("id", "text").click()
        until(lambda: window.ask("document.getElementById('name').textContent") == "chat260K-BF16")
        type_in(window, "Say yes.\n")
        assert finished(window, 1)


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_it_fits_the_window(window: Browser, width: int, scheme: str) -> None:
    window.emulate(scheme=scheme)
    window.resize(width, 800)
    window.ask("document.getElementById('temperature').value = '0'")
    for number, text in enumerate(
        ("My name is Sue.\n", "What is my name?\n", "What is the capital of France?\n")
    ):
        type_in(window, text)
        finished(window, number + 1)
    assert window.ask("document.documentElement.scrollWidth <= window.innerWidth"), (
        "it is wider than the window"
    )
    background = window.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    if os.environ.get("PICTURES"):  # PICTURES=1 takes the pictures in docs/ again
        PICTURES.mkdir(exist_ok=True)
        window.driver.save_screenshot(str(PICTURES / f"chat-page-{width}.png"))


def test_which_page_is_shown(toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.toolchains, "home", lambda: tmp_path)  # type: ignore[attr-defined]
    assert page.folder(PageChoice.OFF, toolchain, with_key=False) is None
    assert page.folder(PageChoice.GGQ, toolchain, with_key=False) == page.OWN
    built = tmp_path / "web-ui"
    built.mkdir()
    assert page.folder(PageChoice.AUTO, toolchain, with_key=False) != built
    (built / "index.html").write_text("<p>llama.cpp's own</p>", encoding="utf-8")
    if toolchain.origin == "built":
        assert page.folder(PageChoice.AUTO, toolchain, with_key=False) == built
    # Its other files would be refused to a browser that has no key yet.
    assert page.folder(PageChoice.AUTO, toolchain, with_key=True) != built
    assert (page.OWN / "index.html").is_file()


def test_of_several_models_one_is_chosen(chat_gguf: Path, tmp_path: Path) -> None:
    other = shutil.copy(chat_gguf, tmp_path / "other.gguf")
    with serving(chat_gguf, other, "--page", "ggq") as both, browser() as window:
        window.open(f"{both.url}/")
        until(lambda: not window.ask("document.getElementById('model').hidden"))
        window.driver.find_element("id", "model").send_keys("other")
        assert window.ask("document.getElementById('model').value") == "other"
        window.ask("document.getElementById('temperature').value = '0'")
        type_in(window, "My name is Tom.\n")
        assert finished(window, 1) == "Hello Tom."
        told = window.ask("fetch('v1/models').then((it) => it.json())")
        loaded = [it["id"] for it in told["data"] if it["status"]["value"] == "loaded"]
        assert loaded == ["other"], "it asked another one"
        assert window.complaints() == []
