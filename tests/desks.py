"""What takes notices in tests: a web server and a mail relay that behave as a test wants them to."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

Serve = Callable[[socket.socket], None]


class Listener:
    """Listens on a port of 127.0.0.1, as a context manager; `serve` is called with each connection, in a thread."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None = None) -> None:
        self.serve = serve
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._ending = threading.Event()

    def __enter__(self) -> Listener:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ending.set()
        for opened in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def hang(self, _connection: socket.socket) -> None:
        """Say nothing, and stay."""
        self._ending.wait()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), connection:
            if self._tls is None:
                self.serve(connection)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secret:
                self.serve(secret)


@dataclass(frozen=True, slots=True)
class Posted:
    """A request that a web server got."""

    line: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> dict[str, Any]:
        """The JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found


class Web:
    """What a web server got, and what it answers: `answer` is sent as it is, and the connection is closed."""

    def __init__(self, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> None:
        self.answer = answer
        self.posted: list[Posted] = []

    def __call__(self, connection: socket.socket) -> None:
        """Take one request."""
        with connection.makefile("rb") as lines:
            line = lines.readline().decode().strip()
            headers = {}
            while header := lines.readline().decode().strip():
                name, _, value = header.partition(": ")
                headers[name.lower()] = value
            length = int(headers.get("content-length", 0))
            body = lines.read(length)
        if len(body) < length:
            return  # who posts was killed meanwhile
        self.posted.append(Posted(line, headers, body))
        connection.sendall(self.answer)

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return what was posted of an event."""
        return [posted.value for posted in self.posted if posted.value["event"] == event]


class Smtp:
    """A mail relay: what it was told, and the mails that it has taken. `replies` go before its own, by command."""

    def __init__(self, replies: Mapping[str, str] | None = None) -> None:
        self.replies = dict(replies or {})
        self.commands: list[str] = []
        self.mails: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        """Talk to a client."""
        with connection.makefile("rb") as lines:
            self._reply(connection, "", "220 relay.example.com ESMTP")
            while line := lines.readline():
                command = line.decode().strip()
                self.commands.append(command)
                verb = command.partition(" ")[0]
                self._reply(connection, command, "354 go on" if verb == "DATA" else "250 ok")
                if verb == "DATA" and "DATA" not in self.replies:
                    text = b""
                    while (part := lines.readline()) not in (b".\r\n", b""):
                        text += part.removeprefix(b".")
                    if "." not in self.replies:
                        self.mails.append(text.decode("ascii"))
                    self._reply(connection, ".", "250 queued")
                if verb == "QUIT":
                    return

    def _reply(self, connection: socket.socket, command: str, usual: str) -> None:
        reply = next((text for begin, text in self.replies.items() if command.startswith(begin) and begin), usual)
        if command == "" and "" in self.replies:
            reply = self.replies[""]
        if not reply:
            raise EOFError
        connection.sendall(reply.encode() + b"\r\n")
