from collections.abc import Iterator

import pytest
import stream_servers


@pytest.fixture(params=list(stream_servers.SERVICES))
def source(request) -> str:
    return request.param


@pytest.fixture
def service(source) -> Iterator:
    """The server of `source`."""
    running = stream_servers.SERVICES[source]()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def tokens(monkeypatch) -> None:
    for name, value in stream_servers.TOKENS.items():
        monkeypatch.setenv(name, value)
