"""What comes back from the Hub's API, read within bounds: it may be packed, endless, or no JSON at all."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ggq.errors import HubProblem
from ggq.system import untrusted
from ggq.system.untrusted import Unsound

if TYPE_CHECKING:
    from huggingface_hub.utils import httpx

_ERROR_BYTES = 1 << 20
_LONGEST_WAIT_DIGITS = 9


@functools.cache  # it is told once, and would begin a new session each time
def bound() -> None:
    """Have huggingface_hub's session read answers of the API within bounds, in this process from now on."""
    from huggingface_hub import set_client_factory

    set_client_factory(_client)


def not_a_hub(endpoint: str, why: str) -> HubProblem:
    return HubProblem(
        f"{endpoint} did not answer as a Hub does.",
        f"{why}.",
        "Check HF_ENDPOINT, and that no login page of a network stands between.",
    )


def _client() -> httpx.Client:
    from huggingface_hub.utils import httpx
    from huggingface_hub.utils._http import default_client_factory

    try:
        client = default_client_factory()
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        raise HubProblem(
            "No connection to the Hub can be made with the settings of this environment.",
            f"{type(error).__name__}: {str(error)[:200]}.",
            "Correct HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, or SSL_CERT_FILE.",
        ) from error
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _read]}
    return client


def _read(response: httpx.Response) -> None:
    """Read an answer of the API, or an error's page, as far as it may go. What is asked of a file is left to
    be read piece by piece. Raises HubProblem."""
    wait = response.headers.get("retry-after", "")
    if wait and not is_seconds(wait.strip()):
        del response.headers["retry-after"]  # huggingface_hub takes other digits than 0 to 9 for a number
    of_api = "/api/" in response.url.path and response.request.method == "GET"
    if response.is_redirect or not (of_api or response.is_error):
        return
    most = _ERROR_BYTES if response.is_error else untrusted.ANSWER.text_bytes
    content = bytearray()
    for block in response.iter_bytes():  # unpacked
        content += block
        if len(content) > most:
            break
    origin = f"{response.url.scheme}://{response.url.netloc.decode('ascii', 'replace')}"
    if response.is_error:
        del content[most:]
    else:
        try:
            untrusted.parse(bytes(content[: most + 1]), untrusted.ANSWER)
        except Unsound as error:
            response.close()
            why = str(error)
            raise not_a_hub(origin, why[:1].lower() + why[1:] if why.startswith("It ") else why) from error
    response.close()
    response._content = bytes(content)


def is_seconds(text: str) -> bool:
    """Whether a header's text is a number of seconds that can be waited for."""
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_WAIT_DIGITS


def unreachable(error: Exception, endpoint: str, reason: str) -> HubProblem:
    """Words for a connection that did not come about: for its certificate, its proxy, or the network."""
    refused = next((it for it in _causes(error) if isinstance(it, ssl.SSLCertVerificationError)), None)
    if refused is not None or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return HubProblem(
            f"The certificate of {endpoint} is not trusted on this machine.",
            f"{refused.verify_message if refused is not None else reason}. Networks that inspect TLS put one "
            "of their own in its place.",
            "Set SSL_CERT_FILE to a PEM file that holds the certificate of this network's authority"
            + (f" (it is {os.environ['SSL_CERT_FILE']} now)" if os.environ.get("SSL_CERT_FILE") else "")
            + ", then run the same command again. --offline uses what the Hub cache holds.",
        )
    if (proxy := _proxy(endpoint)) is not None:
        variable, address = proxy
        return HubProblem(
            f"The Hub at {endpoint} could not be reached through the proxy {address}.",
            f"{reason}. {variable} names that proxy.",
            f"Correct or unset {variable}, or name the Hub's host in NO_PROXY; then run the same command "
            "again: it resumes. --offline uses what the Hub cache holds.",
        )
    return HubProblem(
        f"The Hub at {endpoint} could not be reached.",
        f"{reason}.",
        "Check the network (and HF_ENDPOINT, HTTPS_PROXY), then run the same command again: it resumes. "
        "--offline uses what the Hub cache holds.",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _proxy(endpoint: str) -> tuple[str, str] | None:
    """The variable that names the proxy for an address, and the proxy's own without name and password."""
    address = urlsplit(endpoint)
    proxies: dict[str, Any] = getproxies()
    if proxy_bypass(address.hostname or ""):
        return None
    for scheme in (address.scheme, "all"):
        if proxies.get(scheme):
            found = urlsplit(proxies[scheme] if "://" in proxies[scheme] else f"http://{proxies[scheme]}")
            name = f"{scheme}_proxy"
            variable = next((it for it in (name, name.upper()) if os.environ.get(it)), name.upper())
            return variable, found.netloc.rpartition("@")[2] or "without a name"
    return None
