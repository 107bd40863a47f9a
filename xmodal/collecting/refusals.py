"""What a service's answer that is no stream means: come back later, or mend the settings."""

from collections.abc import Mapping

from shards.errors import UserError
from xmodal.collecting.arrivals import StreamEndedError
from xmodal.collecting.reconnect import refusal_wait

_PASSING_STATUS = frozenset({408, 420, 425, 429})


def raise_for_status(status: int, headers: Mapping[str, str], *, url: str, token_variable: str | None) -> None:
    """Return for a good answer; raise StreamEndedError for one that may pass, else UserError. `url` holds no secret."""
    if status < 400:
        return
    if status in _PASSING_STATUS or status >= 500:
        raise StreamEndedError(f"{url} answered {status}", refusal_wait(status, headers))
    if status in (401, 403) and token_variable:
        what = "the token is missing or not valid" if status == 401 else "the token may not read this stream"
        raise UserError(f"{url}: answered {status}: {what}", f"export {token_variable} with a token that may read it")
    raise UserError(f"{url}: answered {status}", "check the endpoint and the other settings of the source")


def missing_extra(package: str) -> UserError:
    """What to tell a user who lacks the client of a service."""
    return UserError(f"collect: {package} is not installed", "pip install 'xmodal[collect]'")
