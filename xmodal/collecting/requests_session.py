"""The HTTP session that the clients of X and Mastodon are given."""

from typing import Any

import requests

from shards.errors import UserError
from xmodal.collecting.arrivals import StreamEndedError
from xmodal.collecting.refusals import raise_for_status


class WatchedSession(requests.Session):
    """Keeps what its last answer means if that is an error, since the clients' own errors lack the headers.

    Some requests of the clients may fail without harm, so only the last one counts. `moved`: the address
    that the client has built in, and the one to ask instead.
    """

    def __init__(self, *, token_variable: str, timeout: float, moved: tuple[str, str] | None = None) -> None:
        super().__init__()
        self.refusal: StreamEndedError | UserError | None = None
        self._token_variable, self._timeout, self._moved = token_variable, timeout, moved

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """As requests does it. Raises what a bad answer means, and keeps it as `refusal`."""
        if self._moved and url.startswith(self._moved[0]):
            url = self._moved[1].rstrip("/") + url.removeprefix(self._moved[0])
        self.refusal = None
        kwargs["timeout"] = self._timeout
        answer = super().request(method, url, *args, **kwargs)
        try:
            raise_for_status(
                answer.status_code,
                answer.headers,
                url=url.partition("?")[0],
                token_variable=self._token_variable,
            )
        except (StreamEndedError, UserError) as error:
            self.refusal = error
            answer.close()
            raise
        return answer
