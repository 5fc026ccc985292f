"""Sockets on this machine's own addresses that nobody may connect to."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

ADDRESSES = ("127.0.0.1", "127.0.0.2", "::1")


class Canary:
    """Listens on one port of every loopback address in `ADDRESSES` (without ::1 where there is no IPv6)."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self.port: int = sockets[0].getsockname()[1]

    def visits(self) -> list[str]:
        """The addresses that were connected to since the last call, one entry for each connection, ascending."""
        seen = []
        for listener in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection, _ = listener.accept()
                    connection.close()
                    seen.append(listener.getsockname()[0])
        return sorted(seen)


@contextlib.contextmanager
def listening() -> Iterator[Canary]:
    """A canary during the block."""
    with contextlib.ExitStack() as stack:
        port, sockets = 0, []
        for address in ADDRESSES:
            if ":" in address and not socket.has_ipv6:
                continue
            listener = socket.create_server(
                (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=128
            )
            stack.enter_context(listener)
            listener.setblocking(False)
            port = listener.getsockname()[1]
            sockets.append(listener)
        yield Canary(sockets)
