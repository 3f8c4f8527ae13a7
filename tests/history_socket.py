"""A history of messages as the daemon tells it, for a control socket with prepared answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any


def iso(seconds: float) -> str:
    """Return a time as the daemon tells it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


class History:
    """Messages, the oldest first, and the answers to `GET /history`."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.most = 100_000
        """So many messages are told at once, whatever is asked for."""

    @property
    def answers(self) -> dict[str, tuple[int, Any]]:
        """What a control socket answers that has this history."""
        return {"/history": (200, self._answer), "/queue-order": (200, {})}

    def add(self, account: str, queue_id: str, began: float, at: float, *, client: str, sender: str) -> None:
        """Tell of one message more."""
        self.messages.append(
            {
                "account": account,
                "began": iso(began),
                "at": iso(at),
                "queue_id": queue_id,
                "client": client,
                "sender": sender,
                "recipients": 1,
                "size": 0,
                "verdict": "passed",
                "action": "DUNNO",
                "limit": None,
                "locked": False,
            }
        )

    def forget(self, queue_id: str) -> None:
        """Tell no more of the messages with this queue id."""
        self.messages = [message for message in self.messages if message["queue_id"] != queue_id]

    def _answer(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        found = self.messages[::-1]
        if "queue_id" in query:
            assert len(query["queue_id"]) <= 100, "more queue ids than the daemon takes"
            wanted = set(query["queue_id"])
            found = [message for message in found if message["queue_id"] in wanted]
        else:
            (account,) = query["account"]
            found = [message for message in found if message["account"] == account]
        if "verdict" in query:
            found = [message for message in found if message["verdict"] == query["verdict"][0]]
        if "since" in query:
            latest = datetime.now(timezone.utc).timestamp() - int(query["since"][0])
            found = [message for message in found if datetime.fromisoformat(message["at"]).timestamp() >= latest]
        n = min(int(query.get("n", ["1000"])[0]), self.most)
        return {"messages": found[:n], "more": len(found) > n}
