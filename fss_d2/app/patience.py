"""Time limits for requests that a client begins and does not finish."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["PacedBody", "TooSlowError", "impatient"]

# A request's head must come within this time, seconds; its body may take so much more for each byte.
_PATIENCE = 20.0
_LEAST_RATE = 20_000  # bytes per second

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]


class TooSlowError(Exception):
    """The body of a request did not come in time."""


class PacedBody:
    """ASGI ``receive`` of a request whose body must come at `_LEAST_RATE`, after `_PATIENCE` seconds.

    Only the time in which the client is awaited counts. A body that is late, or that ends before it is whole,
    raises ``error``.
    """

    def __init__(self, receive: Receive, error: Callable[[str], Exception] = TooSlowError) -> None:
        self._receive, self._error = receive, error
        self._waited = 0.0  # seconds
        self._whole = False
        self.received = 0  # bytes
        self.late = False

    async def __call__(self) -> Message:
        """The next message."""
        if self._whole:  # what follows is the end of the connection, whenever it comes
            return await self._receive()
        clock = asyncio.get_running_loop().time
        start, left = clock(), _PATIENCE + self.received / _LEAST_RATE - self._waited
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            self.late = True
            raise self._error("the request was not finished in time") from None
        self._waited += clock() - start
        if message["type"] == "http.disconnect":
            raise self._error("the request was not finished")
        self.received += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message


def impatient(protocol: type[Any]) -> type[Any]:
    """A protocol of uvicorn that closes connections on which no request's head is complete in time."""

    class Impatient(protocol):  # type: ignore[misc]
        """The protocol with a timer, which runs while a head is incomplete."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._stop() if self._answering() else self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _start(self) -> None:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._end)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self) -> None:
            self._timer = None
            if not self._answering():
                self.transport.abort()

    return Impatient
