"""What went wrong between this machine and the hub, told apart, each with what to do about it.

No text of the hub's is passed on: it may hold signed addresses.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub import errors as hub

from qvg_cli.errors import MissingModelError, QvgError
from qvg_cli.hub.proxies import check_proxies, proxy_for

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_CONTINUES = "the same command continues where it stopped"


@contextmanager
def hub_errors(repository: str, revision: str) -> Iterator[None]:
    """Errors of the block, which works with `repository` at `revision`, become messages with a remedy."""
    check_proxies()
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(_CONTINUES)
        raise
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        # The hub's library wraps what it met while it looked for a file in its cache.
        is_wrapped = isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception)
        met = error.__cause__ if is_wrapped else error
        raise _told(met, repository, revision) from error


def disk_error(error: OSError, place: str, variable: str) -> QvgError:
    """The message for a `place` that cannot be written; the environment's `variable` names another."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QvgError(f"no space left at {place}", hint=f"free some space, or set {variable}; {_CONTINUES}")
    return QvgError(
        f"cannot write to {place}: {error.strerror or error}",
        hint=f"set {variable} to a folder that you can write to",
    )


def _told(error: BaseException | None, repository: str, revision: str) -> QvgError:
    page = f"https://huggingface.co/{repository}"
    # Subclasses before their bases.
    if isinstance(error, hub.OfflineModeIsEnabled):
        return MissingModelError(
            f"{repository} is not completely downloaded, and offline mode forbids downloading it",
            hint="unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)",
        )
    if isinstance(error, hub.GatedRepoError):
        return MissingModelError(
            f"{repository} is gated: its terms must be accepted first",
            hint=f"accept them at {page}, then {_LOG_IN}",
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        token = "the token has no read access to it" if get_token() else _LOG_IN
        return MissingModelError(
            f"{repository} does not exist, or is private", hint=f"see {page}; if it is private, {token}"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return MissingModelError(
            f"{repository} has no revision {revision}", hint=f"see the list of revisions at {page}/tree/main"
        )
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return MissingModelError(f"a file of {repository} is gone", hint=f"see {page}/tree/{revision}")
    if isinstance(error, hub.DisabledRepoError):
        return MissingModelError(f"{repository} is disabled on Hugging Face", hint=f"see {page}")
    if isinstance(error, hub.HfHubHTTPError):
        return _answered(error.response.status_code, repository)
    if isinstance(error, hub.FileMetadataError | ValueError | httpx2.InvalidURL):
        return QvgError(
            f"{constants.ENDPOINT} does not respond like the Hugging Face Hub",
            hint="check HF_ENDPOINT, and whether a proxy or firewall answers instead",
        )
    if isinstance(error, httpx2.ProxyError):
        named = proxy_for(constants.ENDPOINT) or "HTTPS_PROXY"
        return QvgError(
            "the proxy refused the connection to Hugging Face", hint=f"check {named}, and NO_PROXY"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(error, str(error.filename or constants.HF_HUB_CACHE), "HF_HOME")
    if isinstance(error, httpx2.TransportError):
        proxy = proxy_for(constants.ENDPOINT)
        way = f" through the proxy {proxy}" if proxy else ""
        return QvgError(
            f"no connection to {constants.ENDPOINT}{way}: {error or type(error).__name__}",
            hint=f"check the {'proxy' if proxy else 'network'}, and HF_ENDPOINT if it is set; {_CONTINUES}",
        )
    return QvgError(f"{repository} was not downloaded completely: {type(error).__name__}", hint=_CONTINUES)


def _answered(status: int, repository: str) -> QvgError:
    if status == 401:
        return MissingModelError("Hugging Face rejected the token", hint=f"it may have expired; {_LOG_IN}")
    if status == 403:
        return MissingModelError(
            f"Hugging Face denied access to {repository}", hint=f"use a token with read access: {_LOG_IN}"
        )
    if status == 404:
        return MissingModelError(
            f"{constants.ENDPOINT} has no {repository}", hint="check HF_ENDPOINT if it is set"
        )
    if status == 429:
        return QvgError(
            "Hugging Face asks to wait: too many requests", hint=f"try again in a few minutes; {_CONTINUES}"
        )
    return QvgError(f"Hugging Face failed with status {status}", hint=f"try again later; {_CONTINUES}")
