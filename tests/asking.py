"""A policy in memory and the smtpds that ask it: a test says what happens, when, and reads what is answered.

Time stands still until a test moves it: `mail.now += 1800`. Requests go through the wire's own reader, as bytes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policyd import transactions
from policyd.accounts import Account, Accounts
from policyd.actions import parse_action
from policyd.desk import Desk
from policyd.durations import parse_duration
from policyd.limits import HOUSE_RULES, MAX_PERIOD, UNTIL_UNLOCKED, Count, Limit, Override, Rules
from policyd.policy import Policy
from policyd.verdict import Verdict
from policyd.wire import Request, RequestReader

ANNA = "anna@example.com"
BERT = "bert@example.com"

EPOCH = 1_795_420_800.0
"""Wall clock at the start of a test: 2026-11-23 08:00 UTC."""

Value = str | bytes | int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was reported."""

    word: str
    fields: Mapping[str, object]


def limit(
    count: Count,
    maximum: int | None,
    per: str = "30m",
    action: str = "REJECT {limit} {count}",
    *,
    name: str = "",
    lock: str = "no",
    observe: bool = False,
) -> Limit:
    """Return a limit as the config would make it; without a name, it is named after what it counts."""
    period = None if per == "message" else parse_duration(per)
    lock_for = None if lock == "no" else UNTIL_UNLOCKED if lock == "until-unlocked" else parse_duration(lock)
    return Limit(name or count, count, per, period, maximum, parse_action(action), lock_for, observe)


def override(accounts: Sequence[str], **maxima: int | None) -> Override:
    """Return an override of the limits of these names; None: unlimited."""
    return Override(tuple(accounts), tuple(maxima.items()))


def request(**attributes: Value) -> bytes:
    """Return a request on the wire."""
    values: dict[str, Value] = {"request": "smtpd_access_policy", **attributes}
    lines = (
        name.encode() + b"=" + (value if isinstance(value, bytes) else str(value).encode()) + b"\n"
        for name, value in values.items()
    )
    return b"".join(lines) + b"\n"


def all_accounts(accounts: Accounts, now: float) -> Iterator[Account]:
    """Yield all accounts that are not forgotten at `now`, locked ones included, by the rules in force."""
    for account in itertools.chain.from_iterable(accounts.portions()):
        if account.lock or account.heard + MAX_PERIOD > now:
            accounts.adopt(account)
            yield account


def seeded(seed: int) -> random.Random:
    """Return chance that takes the same course at every run."""
    return random.Random(seed)  # noqa: S311 -- no secret


class Mail:
    """A policy, its desk, and a clock that a test moves by hand.

    With `data_seen` a DATA request has been seen before the test begins, from a client that is not authenticated.
    """

    def __init__(self, *limits: Limit, rules: Rules | None = None, data_seen: bool = True) -> None:
        self.now = 10_000.0
        self.wall_offset = EPOCH - self.now
        self.events: list[Event] = []
        self.policy = Policy(rules or Rules(limits or HOUSE_RULES), self._report, self.to_wall)
        self.desk = Desk(self.policy, self.to_wall, self.now, list)
        self._instances = (f"5d7e.6b03cb6b.{number:x}.0" for number in itertools.count(1))
        self._recipients = (f"r{number}@remote.example" for number in itertools.count(1))
        if data_seen:
            self.connection(user="").ask(protocol_state="DATA", client_address="", instance="")
            self.events.clear()

    def decide(self, asked: Request, connection: transactions.Connection) -> Verdict:
        """Return the verdict on a request."""
        return self.policy.decide(asked, connection, self.now)

    def leave(self, connection: transactions.Connection) -> None:
        """End a connection."""
        self.policy.leave(connection, self.now)

    def to_wall(self, now: float) -> float:
        """Tell the wall clock's time."""
        return now + self.wall_offset

    def reload(self, *limits: Limit, rules: Rules | None = None) -> None:
        """Put other limits into force, as a reload does."""
        self.policy.accounts.rules = rules or Rules(limits)

    def connection(self, user: Value = ANNA) -> Connection:
        """Connect as an smtpd at which `user` has logged in."""
        return Connection(self, user)

    def send(self, messages: int = 1, recipients: int = 1, user: Value = ANNA) -> str:
        """Send messages over a connection of their own, and return the last answer."""
        connection = self.connection(user)
        answer = ""
        for _ in range(messages):
            connection.rset()
            for _ in range(recipients):
                connection.rcpt()
            answer = connection.data()
        connection.close()
        return answer

    def told(self, word: str) -> list[Mapping[str, object]]:
        """Return the fields of all events of this word."""
        return [event.fields for event in self.events if event.word == word]

    def account(self, user: str = ANNA) -> dict[str, Any]:
        """Return what the desk sees of an account."""
        return self.desk.account(user, self.now)

    def counts(self, user: str = ANNA) -> list[int | None]:
        """Return an account's counts, in the order of the limits."""
        return [shown["count"] for shown in self.account(user)["limits"]]

    def count(self, user: str = ANNA) -> int | None:
        """Return an account's count against the only limit."""
        (count,) = self.counts(user)
        return count

    def tallies(self, user: str = ANNA) -> dict[str, int]:
        """Return an account's tallies that are not 0."""
        names = ("refused", "held", "warned", "observed", "attempts_while_locked")
        account = self.account(user)
        return {name: account[name] for name in names if account[name]}

    def lock(
        self, user: str = ANNA, *, reason: str = "spam", seconds: float = UNTIL_UNLOCKED, hold: bool = False
    ) -> None:
        """Lock an account by hand."""
        self.desk.lock(user, reason, seconds, "desk", self.now, hold=hold)

    def unlock(self, user: str = ANNA) -> None:
        """Free an account."""
        self.desk.unlock([user], "desk", self.now)

    def reset(self, user: str = ANNA) -> None:
        """Forget an account's counts."""
        self.desk.reset(user, "desk", self.now)

    def locked(self, user: str = ANNA) -> bool:
        """Tell whether the desk sees an account locked."""
        return self.account(user)["lock"] is not None

    def new_instance(self) -> str:
        """Return the instance of a new message."""
        return next(self._instances)

    def new_recipient(self) -> str:
        """Return a recipient that nobody has named yet."""
        return next(self._recipients)

    def _report(self, word: str, fields: Mapping[str, object]) -> None:
        self.events.append(Event(word, fields))


class Connection:
    """A connection from smtpd, and the message that it is at."""

    def __init__(self, mail: Mail, user: Value) -> None:
        self.user = user
        self.instance = mail.new_instance()
        self.accepted = 0
        """The message's recipients that were let through, as Postfix counts them."""
        self.last = b""
        """The last request."""
        self._mail = mail
        self._reader = RequestReader()
        self._connection = transactions.Connection("test")

    def ask(self, **attributes: Value | None) -> str:
        """Send a request with these attributes (None: without), and return the action that is answered."""
        common: dict[str, Value | None] = {
            "client_address": "192.0.2.7",
            "instance": self.instance,
            "sasl_username": self.user,
            "recipient_count": 0,
        }
        asked = {**common, **attributes}
        return self.say(request(**{name: value for name, value in asked.items() if value is not None}))

    def say(self, lines: bytes) -> str:
        """Send a request as it is, and return the action that is answered."""
        self.last = lines
        self._reader.receive(lines)
        asked = self._reader.next_request()
        assert asked is not None
        answer = self._mail.decide(asked, self._connection)
        assert answer.reply == f"action={answer.action}\n\n".encode()
        return answer.action

    def mail(self) -> str:
        """Ask at MAIL, where Postfix has no instance yet."""
        return self.ask(protocol_state="MAIL", instance="")

    def rcpt(self, recipient: str = "") -> str:
        """Ask about a recipient, by default one that was never named before."""
        answer = self.ask(protocol_state="RCPT", recipient=recipient or self._mail.new_recipient())
        self.accepted += answer.split(" ")[0] in ("DUNNO", "WARN", "HOLD")
        return answer

    def rcpts(self, number: int) -> list[str]:
        """Ask about several recipients."""
        return [self.rcpt() for _ in range(number)]

    def data(self, recipients: int | None = None) -> str:
        """Ask at DATA; Postfix says how many recipients it has accepted, by default all that were let through."""
        return self._whole("DATA", recipients)

    def eom(self, recipients: int | None = None) -> str:
        """Ask at END-OF-MESSAGE."""
        return self._whole("END-OF-MESSAGE", recipients)

    def rset(self) -> None:
        """Go on to another message: nobody is told until its first request."""
        self.instance = self._mail.new_instance()
        self.accepted = 0

    def again(self) -> str:
        """Send the last request once more."""
        return self.say(self.last)

    def resend(self, user: Value | None = None) -> Connection:
        """Return a new connection that is at the same message; `again` on it sends the last request once more."""
        connection = Connection(self._mail, self.user if user is None else user)
        connection.instance, connection.accepted, connection.last = self.instance, self.accepted, self.last
        return connection

    def close(self) -> None:
        """End the connection."""
        self._mail.leave(self._connection)

    def _whole(self, state: str, recipients: int | None) -> str:
        number = self.accepted if recipients is None else recipients
        return self.ask(protocol_state=state, recipient_count=number, queue_id="4Xyz")
