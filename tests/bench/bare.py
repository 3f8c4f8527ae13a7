"""A Twisted protocol that understands nothing: it writes DUNNO for each empty line, as the documentation would have it.

What a policy service costs at least when it is written in Twisted in the usual way; policyd is measured against it.
`python -m tests.bench.bare SOCKET [SOCKET ...]`; a SOCKET is a path (unix) or a port on 127.0.0.1.
"""

import sys

from twisted.internet import reactor
from twisted.internet.protocol import Protocol, ServerFactory

BACKLOG = 1024


class Bare(Protocol):
    """Answers each empty line."""

    def dataReceived(self, data: bytes) -> None:
        """Count empty lines; a request cut between two packets is not looked after."""
        for _ in range(data.count(b"\n\n")):
            self.transport.write(b"action=DUNNO\n\n")  # type: ignore[union-attr]  # connected


if __name__ == "__main__":
    factory = ServerFactory()
    factory.protocol = Bare
    for where in sys.argv[1:]:
        if "/" in where:
            reactor.listenUNIX(where, factory, BACKLOG)  # type: ignore[attr-defined]  # on all that has unix sockets
        else:
            reactor.listenTCP(int(where), factory, BACKLOG, interface="127.0.0.1")
    print("ready", flush=True)
    reactor.run()
