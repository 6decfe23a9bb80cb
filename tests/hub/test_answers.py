"""Answers that no Hub gives: packed, endless, deep, of other kinds; and connections that fail."""

from __future__ import annotations

import gzip
import json
import resource
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ggq import hub
from ggq.errors import HubProblem
from ggq.hub.client import Retry

QUICK = Retry(attempts=2, first_wait_s=0.01, timeout_s=5)
SHA = "0" * 40
FILE: dict[str, Any] = {"rfilename": "config.json", "size": 3, "blobId": SHA}
MODEL: dict[str, Any] = {"id": "org/m", "sha": SHA, "siblings": [FILE], "cardData": {}}


@contextmanager
def server(body: bytes, status: int = 200, **headers: str) -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        try:
            yield made
        finally:
            made.shutdown()


def refusal(monkeypatch: pytest.MonkeyPatch, body: bytes, status: int = 200, **headers: str) -> HubProblem:
    with server(body, status, **headers) as made:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{made.server_port}")
        with pytest.raises(HubProblem) as raised:
            hub.inspect("org/m", retry=QUICK)
    assert raised.value.why and raised.value.next_step
    return raised.value


def changed(**keys: Any) -> bytes:
    return json.dumps({**MODEL, **keys}).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 200_000, "nested"),
        (b"[1, 2]", "did not answer"),
        (b"null", "did not answer"),
        (b'"text"', "did not answer"),
        (b"", "empty"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe{}", "UTF-16"),
        (b"[" + b"{}," * 2_000_000 + b"{}]", "memory"),
        (changed(siblings=[{**FILE, "rfilename": None}]), "without a name"),
        (changed(siblings=[{**FILE, "rfilename": 5}]), "without a name"),
        (changed(siblings=[{**FILE, "rfilename": "a\x1b[2J"}]), "dangerous name"),
        (changed(siblings=[{**FILE, "size": -1}]), "no size"),
        (changed(siblings=[{**FILE, "size": 1 << 70}]), "no size"),
        (changed(siblings=[{**FILE, "size": "3"}]), "no size"),
        (changed(siblings=[{**FILE, "blobId": 5}]), "no size"),
        (changed(siblings=[5]), "did not answer"),
        (changed(siblings={"a": 1}), "did not answer"),
        (changed(sha=5), "commit"),
        (changed(sha=None), "commit"),
        (changed(lastModified="not a date"), "did not answer"),
    ],
)
def test_odd_answers(monkeypatch: pytest.MonkeyPatch, body: bytes, words: str) -> None:
    assert words in str(refusal(monkeypatch, body))


@pytest.mark.parametrize("card", [{"base_model": 5}, {"base_model": [5, None]}, {"license": {"a": 1}}, {}])
def test_odd_cards_are_passed_over(monkeypatch: pytest.MonkeyPatch, card: Any) -> None:
    with server(changed(cardData=card)) as made:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{made.server_port}")
        found = hub.inspect("org/m", retry=QUICK)
    assert found.base_models == () and found.license is None and len(found.files) == 1


@pytest.mark.slow
def test_a_packed_answer_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(b'{"a": "' + b"x" * (400 << 20) + b'"}', 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for status in (200, 404):
        refusal(monkeypatch, packed, status, content_encoding="gzip")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 250_000  # kB; unpacked it has 400 MiB


@pytest.mark.parametrize("wait", ["²", "9" * 400, "-1", "1e9", "٣", ""])
@pytest.mark.parametrize("header", ["retry_after", "ratelimit"])
def test_odd_waits(monkeypatch: pytest.MonkeyPatch, wait: str, header: str) -> None:
    value = wait if header == "retry_after" else f'"api";r=0;t={wait}'
    value = value.encode("utf-8").decode("latin-1")
    problem = refusal(monkeypatch, b"{}", 429, **{header: value})
    assert "429" in problem.what


def test_a_certificate_of_a_stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    with server(changed()) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        endpoint = f"https://localhost:{made.server_port}"

        def inspect(**environment: str) -> str:
            script = "import sys; from ggq.cli.main import main; sys.argv[1:] = ['inspect', 'org/m']; main()"
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
            return done.stdout + done.stderr

        refused = inspect(HF_ENDPOINT=endpoint, HF_TOKEN="")
        assert "certificate" in refused and "SSL_CERT_FILE" in refused and "Check the network" not in refused
        assert SHA in inspect(SSL_CERT_FILE=str(certificate))


def self_signed(folder: Path) -> Path:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=localhost"
        " -addext subjectAltName=DNS:localhost"
    )
    try:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    return folder / "cert.pem"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_dead_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    from huggingface_hub.utils import close_session

    monkeypatch.setenv(variable, "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    close_session()
    try:
        with pytest.raises(HubProblem) as raised:
            hub.inspect("org/m", retry=QUICK)
    finally:
        close_session()
    text = str(raised.value)
    assert variable in text and "127.0.0.1:1" in text and "secret" not in text


def test_a_proxy_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    close_session()
    try:
        with pytest.raises(HubProblem, match="HTTPS_PROXY"):
            hub.inspect("org/m", retry=QUICK)
    finally:
        close_session()
