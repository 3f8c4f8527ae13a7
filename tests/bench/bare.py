"""A Twisted protocol that understands nothing: it writes DUNNO for each empty line, as the documentation would have it.

What a policy service costs at least when it is written in Twisted in the usual way; policyd is measured against it.
"""

import sys

from twisted.internet import reactor
from twisted.internet.protocol import Protocol, ServerFactory


class Bare(Protocol):
    """Answers each empty line."""

    def dataReceived(self, data: bytes) -> None:
        """Count empty lines; a request cut between two packets is not looked after."""
        for _ in range(data.count(b"\n\n")):
            self.transport.write(b"action=DUNNO\n\n")  # type: ignore[union-attr]  # connected


if __name__ == "__main__":
    factory = ServerFactory()
    factory.protocol = Bare
    reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
    print("ready", flush=True)
    reactor.run()
