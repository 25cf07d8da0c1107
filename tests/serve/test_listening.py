"""The socket that the server's connections come from."""

from __future__ import annotations

import socket

import pytest

from earn.cli.serve import _listening
from earn.errors import EarnError


def test_a_connections_parts_are_sent_at_once() -> None:
    """Else the body of an answer waits until the client has confirmed its headers."""
    with _listening("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_taken_is_refused() -> None:
    with _listening("127.0.0.1", 0) as listening, pytest.raises(EarnError, match="--port"):
        _listening("127.0.0.1", listening.getsockname()[1])
