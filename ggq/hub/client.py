"""The door to the Hub: where it is, what is sent along, how often one knocks, and what a refusal means.

The environment (HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN) is read at the time of the
call; huggingface_hub itself reads most of it when it is imported.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ggq._version import __version__
from ggq.errors import GgqError, HubProblem, UsageProblem
from ggq.hub import answers
from ggq.progress import Listener, Notice
from ggq.system import places

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoKind = Literal["model", "dataset"]
T = TypeVar("T")
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_BACKOFF_S = 30.0
_HEADER_CHARACTERS = 100  # of a stranger's header with a few short numbers


@dataclass(frozen=True)
class Retry:
    """How patient a request is.

    ``attempts``: failures in a row, without a byte of progress, before giving up. The wait doubles from
    ``first_wait_s``, up to 30 s; the Hub may ask for more by Retry-After, up to ``longest_wait_s`` (its rate
    limits are counted over windows of 300 s). ``timeout_s``: silence after which a connection counts as
    lost; None takes huggingface_hub's (HF_HUB_DOWNLOAD_TIMEOUT, 10 s).
    """

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0
    timeout_s: float | None = None

    def wait_s(self, failures: int, error: Exception) -> float | None:
        """Seconds to wait after so many failures in a row, or None to give up."""
        if failures >= self.attempts or not _is_transient(error):
            return None
        asked = _asked_wait_s(error)
        if asked is None:
            return min(self.first_wait_s * 2.0 ** (failures - 1), _LONGEST_BACKOFF_S)
        return asked if asked <= self.longest_wait_s else None

    @property
    def silence_s(self) -> float:
        from huggingface_hub import constants

        return self.timeout_s or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


DEFAULT_RETRY: Retry = Retry()


def cache_dir() -> Path:
    """The Hub cache that every tool shares: HF_HUB_CACHE, or ``hub`` in HF_HOME (~/.cache/huggingface)."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return places.expanded(os.path.expandvars(chosen)).absolute()


def repo_dir(repo_id: str, kind: RepoKind = "model") -> Path:
    """Where the cache keeps a repository: ``models--org--name``, with blobs/, refs/ and snapshots/."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_dir() / repo_folder_name(repo_id=repo_id, repo_type=kind)


def endpoint() -> str:
    """The Hub's address, without a trailing slash."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline(asked: bool) -> bool:
    """Whether the network is forbidden: by ``--offline``, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    setting = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return asked or setting.upper() in {"1", "ON", "YES", "TRUE"}


def token_present() -> bool:
    """Whether a token would be sent: HF_TOKEN, or one stored by ``hf auth login``. Never the token itself."""
    return "authorization" in _client_headers()


def headers() -> dict[str, str]:
    """The headers of every request. Raises HubProblem when the token cannot even be sent."""
    answers.bound()
    found = _client_headers()
    token = found.get("authorization", "").removeprefix("Bearer ")
    if not all("!" <= letter <= "~" for letter in token):
        # The HTTP library would refuse it with a message that quotes it.
        raise HubProblem(
            "The Hub token holds characters that no token has.",
            f"It comes from {_token_source()}.",
            "Copy it again from the Hub's settings, or leave it out where the model is public.",
        )
    return found


def api() -> HfApi:
    """huggingface_hub's client for today's environment."""
    from huggingface_hub import HfApi

    answers.bound()
    return HfApi(endpoint=endpoint(), library_name="ggq", library_version=__version__)


def ask(call: Callable[[], T], retry: Retry, listener: Listener) -> T:
    """Make one request of huggingface_hub's API, again if the Hub stumbles. No connection at all is final."""
    from huggingface_hub.utils import httpx

    failures = 0
    while True:
        try:
            return call()
        except httpx.ConnectError:
            raise
        except httpx.HTTPError as error:
            failures += 1
            pause(retry, failures, error, listener)


def pause(
    retry: Retry, failures: int, error: Exception, listener: Listener, stop: threading.Event | None = None
) -> None:
    """Wait before the next attempt, and say so; re-raise the error when there shall be none."""
    wait = retry.wait_s(failures, error)
    if wait is None:
        raise error
    listener(Notice(f"{reason(error)}; trying again in {wait:.0f} s.", "warning"))
    (stop or threading.Event()).wait(wait)


def reason(error: Exception) -> str:
    """What went wrong, in half a line."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return f"The Hub answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    text = str(error).strip().splitlines()
    return f"The connection failed ({text[0] if text else type(error).__name__})"


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None = None, kind: RepoKind = "model") -> Iterator[None]:
    """Turn what huggingface_hub raises into words. Raises HubProblem, UsageProblem."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _explain(error, repo_id, revision, kind) from error
    except (AttributeError, KeyError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if "huggingface_hub" not in Path(frames[-1].filename).parts:
            raise
        raise HubProblem(
            f"{endpoint()} answers otherwise than the Hub does.",
            f"huggingface_hub stumbled: {type(error).__name__}: {str(error)[:200]}.",
            "Look at HF_ENDPOINT and HTTPS_PROXY, or run the same command again later.",
        ) from error
    except OfflineModeIsEnabled as error:
        raise HubProblem(
            f"{repo_id} was not looked up: HF_HUB_OFFLINE forbids the network.",
            "",
            "Unset HF_HUB_OFFLINE, or add --offline to use what the Hub cache holds.",
        ) from error
    except HFValidationError as error:
        raise UsageProblem(f"{repo_id!r} cannot be a repository.", str(error), "Write org/name.") from error


def _explain(error: Exception, repo_id: str, revision: str | None, kind: RepoKind) -> GgqError:
    from huggingface_hub import errors

    page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return _gated(repo_id, page)
    if isinstance(error, errors.RepositoryNotFoundError):
        return _not_found(repo_id, kind)
    if isinstance(error, errors.RevisionNotFoundError):
        return HubProblem(
            f"{repo_id} has no revision {revision or 'main'!r}.",
            _known_revisions(repo_id, kind),
            f"Choose one of its branches, tags or commits: {page}/commits",
        )
    if isinstance(error, errors.DisabledRepoError):
        return HubProblem(f"The Hub has disabled {repo_id}.", "", "Choose another repository.")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, repo_id, page)
    return answers.unreachable(error, endpoint(), reason(error))


def _gated(repo_id: str, page: str) -> GgqError:
    if token_present():
        return HubProblem(
            f"{repo_id} is gated, and this token has no access to it.",
            f"The token comes from {_token_source()}.",
            f"Ask for access at {page} (with a fine-grained token, allow it to read gated repositories), "
            "then run the same command again.",
        )
    return HubProblem(
        f"{repo_id} is gated: its owner gives it only to people who are known.",
        "No token was sent.",
        f"Accept the conditions at {page}, then set HF_TOKEN or run `hf auth login`.",
    )


def _not_found(repo_id: str, kind: RepoKind) -> GgqError:
    if kind == "model" and (other := _other_kind(repo_id)):
        return HubProblem(
            f"{repo_id} is a {other}, not a model.",
            "",
            "Name a model repository, for example Qwen/Qwen3-0.6B.",
        )
    if token_present():
        return HubProblem(
            f"There is no {kind} {repo_id} on the Hub, or this token may not see it.",
            f"The token comes from {_token_source()}.",
            f"Check the spelling at {endpoint()}/{kind}s.",
        )
    return HubProblem(
        f"There is no {kind} {repo_id} on the Hub, or it is private.",
        "No token was sent.",
        f"Check the spelling at {endpoint()}/{kind}s; for a private one set HF_TOKEN or run `hf auth login`.",
    )


def _refused(error: Exception, repo_id: str, page: str) -> GgqError:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    said = "".join(filter(str.isprintable, getattr(error, "server_message", None) or ""))[:200].strip(" .")
    if status == 401:
        return HubProblem(
            "The Hub does not accept this token.",
            f"It comes from {_token_source()}.",
            "Renew it (`hf auth login`), or leave it out where the model is public.",
        )
    if status == 429:
        asked = _asked_wait_s(error)
        return HubProblem(
            "The Hub asks for fewer requests (429 Too Many Requests).",
            f"It wants a pause of {asked:.0f} s." if asked else "It kept on asking.",
            "Run the same command again later: it resumes. A token (HF_TOKEN) raises the limit.",
        )
    if status in _TRANSIENT_STATUS:
        return HubProblem(
            f"The Hub is in trouble: {repo_id} could not be read.",
            f"{reason(error)}, again and again.",
            "Run the same command again later: it resumes.",
        )
    return HubProblem(
        f"The Hub refused a request for {repo_id}.",
        f"{reason(error)}{': ' + said if said else ''}.",
        f"See {page}",
    )


def _known_revisions(repo_id: str, kind: RepoKind) -> str:
    """The branches and tags, for an error message; nothing if they cannot be had."""
    from huggingface_hub.utils import httpx

    try:
        refs = api().list_repo_refs(repo_id, repo_type=kind)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""
    names = [ref.name for ref in [*refs.branches, *refs.tags]]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"Its branches and tags: {shown}." if names else ""


def _other_kind(repo_id: str) -> str | None:
    from huggingface_hub.utils import httpx

    for kind in ("dataset", "space"):
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            api().repo_info(repo_id, repo_type=kind, timeout=DEFAULT_RETRY.silence_s)
            return kind
    return None


def _client_headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="ggq", library_version=__version__)


def _token_source() -> str:
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token stored by `hf auth login`"


def _is_transient(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    return isinstance(error, (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError))


def _asked_wait_s(error: Exception) -> float | None:
    """The pause that the Hub asks for: Retry-After, or ``t=`` of its RateLimit header (IETF draft 9)."""
    from huggingface_hub.utils import parse_ratelimit_headers

    response = getattr(error, "response", None)
    if response is None:
        return None
    after = response.headers.get("Retry-After", "").strip()
    if answers.is_seconds(after):
        return float(after)
    limit = parse_ratelimit_headers({"ratelimit": response.headers.get("RateLimit", "")[:_HEADER_CHARACTERS]})
    return float(limit.reset_in_seconds) if limit and not limit.remaining else None
