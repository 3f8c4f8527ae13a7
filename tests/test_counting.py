"""Counting: whatever is asked, in whatever order, the answers and counts are those of lists that forget nothing.

Smtpds send messages, give up, break off, resend and go on; clocks step, limits are reloaded, people lock and free.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.limits import Count, Limit
from tests.asking import Connection, Mail, limit, seeded
from tests.oracle import Asked, Bound, Letter, Oracle

USERS = ("anna", "bert", "cleo")
HOOKS = (
    ("RCPT",),
    ("DATA",),
    ("END-OF-MESSAGE",),
    ("RCPT", "DATA"),
    ("RCPT", "END-OF-MESSAGE"),
    ("DATA", "END-OF-MESSAGE"),
    ("RCPT", "DATA", "END-OF-MESSAGE"),
)
PERIODS = (100.0, 40.0, 7.0)
COUNTS: tuple[Count, ...] = get_args(Count)
NUMBERED = COUNTS[:2]
TIMES: dict[Count, int] = {"recipients": 3, "bytes": 100}
"""How many times larger than others a maximum is."""

CLIENTS = ("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "")
SENDERS = ("anna@example.com", "bert@example.com", "cleo@example.com", "")
SIZES = (0, 0, 1, 50, 99, 100, 250)
STEPS = (0.0, 0.125, 1.0, 2.5, 6.875, 7.0, 33.0, 40.0, 99.875, 100.0, 299.875, 300.0)


def drawn_bounds(chance: random.Random, counts: tuple[Count, ...]) -> list[Bound]:
    """Return one to four limits."""
    bounds = []
    for number in range(chance.randint(1, 4)):
        count = chance.choice(counts)
        per = chance.choice((*PERIODS, None)) if count == "recipients" else chance.choice(PERIODS)
        word = chance.choice(("REJECT", "REJECT", "REJECT", "HOLD", "WARN"))
        observe = not chance.randrange(8)
        may_lock = word != "WARN" and not observe
        bounds.append(
            Bound(
                f"{count}-{number}",
                count,
                per,
                chance.randint(1, 5) * TIMES.get(count, 1),
                word,
                chance.choice((None, None, 50.0, float("inf"))) if may_lock else None,
                observe,
            )
        )
    return bounds


def as_limit(bound: Bound) -> Limit:
    """Return a limit for the policy."""
    per = "message" if bound.per is None else f"{bound.per:.0f}s"
    lock = "no"
    if bound.locks_for is not None:
        lock = "until-unlocked" if bound.locks_for == float("inf") else f"{bound.locks_for:.0f}s"
    action = f"{bound.word} {{limit}} {{count}}"
    return limit(bound.count, bound.max, per, action, name=bound.name, lock=lock, observe=bound.observe)


@dataclass(eq=False)
class Smtpd:
    """One process of Postfix, its connection, and where it is in its message."""

    user: str
    instance: str
    connection: Connection | None = None
    number: int = 0
    """The connection's, for the oracle."""
    let_through: int = 0
    letter: Letter = field(default_factory=Letter)
    size: int = 0
    """What the message turns out to have."""
    sent: bool = False
    """The message has been let through; now it may be asked about at END-OF-MESSAGE."""
    last: Asked | None = None
    at: float = 0.0
    """When it asked last."""
    forgotten: list[tuple[Connection, int]] = field(default_factory=list)
    """Connections that broke, of whose end the policy has not heard yet."""


@dataclass(frozen=True)
class Sent:
    """A message that was let through, when and whose."""

    time: float
    instance: str
    user: str
    recipients: int


class Play:
    """A policy and an oracle that are asked the same, and a log of what went out."""

    def __init__(
        self,
        chance: random.Random,
        counts: tuple[Count, ...] = NUMBERED,
        hooks: tuple[tuple[str, ...], ...] = HOOKS,
        mail: Callable[..., Mail] = Mail,
    ) -> None:
        self.chance = chance
        self.hooks = chance.choice(hooks)
        self.data_seen = bool(chance.randrange(4))
        self.bounds = drawn_bounds(chance, counts)
        self.mail = mail(*map(as_limit, self.bounds), data_seen=self.data_seen)
        self.oracle = Oracle(self.bounds, data_seen=self.data_seen)
        self.oracle.now = self.mail.now
        self.users = USERS[: chance.randint(1, len(USERS))]
        self.connections = 0
        self.smtpds = [self.smtpd() for _ in range(chance.randint(1, 4))]
        self.log: list[Sent] = []
        self.read = 0

    def go_on(self) -> None:
        """Let one thing happen, and compare."""
        chance = self.chance
        smtpd = chance.choice(self.smtpds)
        happens = chance.choices(
            (self.talk, self.repeat, self.break_off, self.give_up, self.wait, self.reload, self.order),
            (60, 6, 5, 4, 14, 1, 1),
        )[0]
        happens(smtpd)
        for user in chance.sample(self.users, chance.randint(0, len(self.users))):
            assert self.mail.counts(user) == self.oracle.counts(user)
            assert self.mail.tallies(user) == self.oracle.person(user).tallies

    def talk(self, smtpd: Smtpd) -> None:
        """Let a message go on in its usual way."""
        chance = self.chance
        if not smtpd.sent and chance.random() < 0.7:
            asked = ("RCPT", self.mail.new_recipient(), 0)
            if "RCPT" not in self.hooks or not self.ask(smtpd, asked).startswith("REJECT"):
                smtpd.let_through += 1
        elif not smtpd.sent:
            count = max(smtpd.let_through + chance.choice((0, 0, 0, 0, -1, -2, 1, 3)), 1)
            if "DATA" not in self.hooks:
                smtpd.sent = True
            else:
                self.ask(smtpd, ("DATA", "", count if chance.randrange(10) else None))
        else:
            if "END-OF-MESSAGE" in self.hooks:
                same = smtpd.last[2] if smtpd.last and smtpd.last[0] == "DATA" else max(smtpd.let_through, 1)
                self.ask(smtpd, ("END-OF-MESSAGE", "", same))
            self.next_message(smtpd)

    def repeat(self, smtpd: Smtpd) -> None:
        """Ask the very same again: on this connection, or on a new one while the old one is not yet closed."""
        if smtpd.last:
            if smtpd.connection and self.chance.randrange(2):
                smtpd.forgotten.append((smtpd.connection, smtpd.number))
                smtpd.connection = None
            self.ask(smtpd, smtpd.last)

    def break_off(self, smtpd: Smtpd) -> None:
        """Close a connection, and all before it; the message may go on."""
        if smtpd.connection:
            smtpd.forgotten.append((smtpd.connection, smtpd.number))
            smtpd.connection = None
        for connection, number in smtpd.forgotten:
            connection.close()
            self.oracle.leave(number)
        smtpd.forgotten.clear()

    def give_up(self, smtpd: Smtpd) -> None:
        """End a message without DATA: RSET, or QUIT."""
        self.next_message(smtpd)
        if self.chance.randrange(2):
            self.break_off(smtpd)

    def wait(self, _: Smtpd) -> None:
        """Let time go by."""
        self.mail.now += self.chance.choice(STEPS)
        self.oracle.now = self.mail.now

    def reload(self, _: Smtpd) -> None:
        """Raise or lower a limit."""
        name = self.chance.choice(self.bounds).name
        self.oracle.reload(name, self.chance.randint(1, 12))
        self.bounds = self.oracle.bounds
        self.mail.reload(*map(as_limit, self.bounds))

    def order(self, _: Smtpd) -> None:
        """Lock, free or reset an account by hand."""
        user = self.chance.choice(self.users)
        what = self.chance.choice(("lock", "hold", "unlock", "unlock", "reset"))
        seconds = self.chance.choice((20.0, 300.0, float("inf")))
        if what == "lock":
            self.mail.lock(user, seconds=seconds)
            self.oracle.lock(user, f"REJECT 5.7.1 Account {user} is locked: spam", seconds)
        elif what == "hold":
            self.mail.lock(user, seconds=seconds, hold=True)
            self.oracle.lock(user, f"HOLD Account {user} is locked: spam", seconds)
        elif what == "unlock":
            self.mail.unlock(user)
            self.oracle.unlock(user)
        else:
            self.mail.reset(user)
            self.oracle.reset(user)

    def ask(self, smtpd: Smtpd, asked: Asked) -> str:
        """Ask both, and compare their answers."""
        again = asked == smtpd.last
        late, was_sent = self.mail.now >= smtpd.at + 300.0, smtpd.sent
        remembered = smtpd.connection or smtpd.forgotten or not late
        anew = late or smtpd.connection
        if smtpd.connection is None:
            self.connections += 1
            smtpd.connection, smtpd.number = self.mail.connection(smtpd.user), self.connections
        state, recipient, count = asked
        letter = replace(smtpd.letter, size=smtpd.size) if state == "END-OF-MESSAGE" else smtpd.letter
        answer = smtpd.connection.ask(
            instance=smtpd.instance,
            protocol_state=state,
            recipient=recipient,
            recipient_count=count,
            client_address=letter.client,
            sender=letter.sender,
            size=letter.size,
        )
        assert answer == self.oracle.ask(smtpd.number, smtpd.user, smtpd.instance, asked, letter)
        smtpd.last, smtpd.at = asked, self.mail.now
        smtpd.sent = smtpd.sent or (state != "RCPT" and not answer.startswith("REJECT"))
        self.hear()
        if not again or not remembered or (anew and not was_sent):
            judged = state == "DATA" or "DATA" not in self.hooks or not remembered
            self.check(smtpd, state, answer, judged=judged)
        return answer

    def hear(self) -> None:
        """Forget the log of accounts whose windows start anew."""
        for event in self.mail.events[self.read :]:
            if event.word in ("unlock", "reset"):
                self.log = [sent for sent in self.log if sent.user != event.fields["account"]]
        self.read = len(self.mail.events)

    def check(self, smtpd: Smtpd, state: str, answer: str, *, judged: bool) -> None:
        """Log the messages that go out: never more than a limit allows, and none refused before that."""
        if state == "RCPT" or not self.data_seen:
            return
        word, name, *_ = f"{answer} -".split(" ")
        passed = word in ("DUNNO", "WARN")
        recipients = smtpd.last[2] if smtpd.last and smtpd.last[2] is not None else 1
        if passed and judged:
            self.log.append(Sent(self.mail.now, smtpd.instance, smtpd.user, recipients))
        elif not passed and not judged:
            self.log = [sent for sent in self.log if (sent.instance, sent.user) != (smtpd.instance, smtpd.user)]
        for bound in self.bounds:
            if bound.count not in NUMBERED:
                continue
            if bound.per is None or bound.passes or (bound.count == "recipients" and "RCPT" in self.hooks):
                continue
            inside = [
                sent.recipients if bound.count == "recipients" else 1
                for sent in self.log
                if sent.user == smtpd.user and self.mail.now - bound.per < sent.time <= self.mail.now
            ]
            if passed and judged:
                assert sum(inside) <= bound.max, "never more than the maximum in a window"
            if name == bound.name and self.fresh(bound, smtpd.user):
                more = recipients if bound.count == "recipients" else 1
                assert sum(inside) + more > bound.max, "nothing is refused before that"

    def fresh(self, bound: Bound, user: str) -> bool:
        """Tell whether a limit's answer was the limit's own, and not that of a lock that it left behind."""
        return bound.locks_for is None and not self.mail.locked(user) and bound.word == "REJECT"

    def next_message(self, smtpd: Smtpd) -> None:
        """Go on to another message, perhaps somebody else's; nobody is asked yet."""
        smtpd.user = self.chance.choice(self.users)
        smtpd.instance = self.mail.new_instance()
        smtpd.letter = self.letter()
        smtpd.size = self.chance.choice(SIZES[1:])
        smtpd.let_through = 0
        smtpd.sent = False
        smtpd.last = None
        if smtpd.connection:
            smtpd.connection.user = smtpd.user

    def smtpd(self) -> Smtpd:
        """Start a process that is not connected yet."""
        return Smtpd(self.chance.choice(self.users), self.mail.new_instance(), letter=self.letter())

    def letter(self) -> Letter:
        """Return what a message has."""
        return Letter(self.chance.choice(CLIENTS), self.chance.choice(SENDERS), self.chance.choice(SIZES))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_answers_and_counts_are_those_of_lists(chance: random.Random, length: int) -> None:
    """Every answer, count and tally is the one that lists of all events give, at every moment."""
    play = Play(chance)
    for _ in range(length):
        play.go_on()


@pytest.mark.parametrize("seed", range(40))
def test_answers_and_counts_are_those_of_lists_for_long(seed: int) -> None:
    """The same over thousands of events, with the same smtpds, accounts and limits."""
    play = Play(seeded(seed))
    for _ in range(3000):
        play.go_on()


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from((COUNTS, COUNTS[2:], ("bytes",))), st.integers(1, 60))
def test_clients_senders_and_bytes_are_those_of_lists(
    chance: random.Random, counts: tuple[Count, ...], length: int
) -> None:
    """The same where messages are looked at: for the client, the sender, the size as declared and as it is."""
    play = Play(chance, counts)
    for _ in range(length):
        play.go_on()


@pytest.mark.parametrize("counts", [COUNTS, COUNTS[2:], ("bytes",), ("bytes", "messages")])
@pytest.mark.parametrize("seed", range(8))
def test_clients_senders_and_bytes_are_those_of_lists_for_long(seed: int, counts: tuple[Count, ...]) -> None:
    """The same over thousands of events, mostly where END-OF-MESSAGE is asked, too."""
    play = Play(seeded(seed), counts, HOOKS if not seed else HOOKS[2:3] + HOOKS[4:])
    for _ in range(2000):
        play.go_on()


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from((60.0, 1800.0, 86_400.0, 604_800.0)),
    st.integers(1001, 6000),
)
def test_coarse_windows_never_let_too_many_through_and_hardly_refuse_too_early(
    seed: int, period: float, maximum: int
) -> None:
    """Of large maxima never more pass in W, and nothing is refused while fewer than the maximum lie in W*61/60."""
    chance = seeded(seed)
    mail = Mail(limit("recipients", maximum, f"{period:.0f}s"))
    connection = mail.connection()
    accepted: list[tuple[float, int]] = []
    for _ in range(400):
        mail.now += period * chance.choice((0.0, 0.0, 0.001, 1 / 128, 1 / 60, 1 / 32, 0.25, 59 / 64, 1.0))
        number = chance.choice((1, 2, 10, maximum // 7, maximum // 2, maximum))
        inside, stretched = (
            sum(events for time, events in accepted if mail.now - time < length)
            for length in (period, period * 61 / 60 + 1e-6)
        )
        connection.rset()
        if connection.data(number) == "DUNNO":
            accepted.append((mail.now, number))
            assert inside + number <= maximum
            inside, stretched = inside + number, stretched + number
        else:
            assert stretched + number > maximum
        count = mail.count()
        assert count is not None
        assert inside <= count <= stretched


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from((60.0, 1800.0, 86_400.0)),
    st.sampled_from((5, 100, 1000, 5000, 10**9, 2**50)),
)
def test_never_more_bytes_pass_than_the_maximum_and_hardly_any_are_refused_too_early(
    seed: int, period: float, maximum: int
) -> None:
    """Of bytes never more pass in W, declared or true, and none are refused while they would fit into W*61/60."""
    chance = seeded(seed)
    mail = Mail(limit("bytes", maximum, f"{period:.0f}s"))
    connection = mail.connection()
    accepted: list[tuple[float, int]] = []
    for _ in range(300):
        mail.now += period * chance.choice((0.0, 0.0, 0.001, 1 / 128, 1 / 60, 1 / 32, 0.25, 59 / 64, 1.0))
        declared, size = (chance.choice((0, 1, maximum // 7, maximum // 2, maximum)) for _ in range(2))
        size = size or 1
        connection.rset()
        answers = [connection.ask(protocol_state="DATA", size=declared, recipient_count=1)]
        if answers == ["DUNNO"]:
            answers.append(connection.ask(protocol_state="END-OF-MESSAGE", size=size, recipient_count=1))
        inside, stretched = (
            sum(bytes_ for time, bytes_ in accepted if mail.now - time < length)
            for length in (period, period * 61 / 60 + 1e-6)
        )
        if answers[-1] == "DUNNO":
            accepted.append((mail.now, size))
            assert inside + size <= maximum
        else:
            assert stretched + (size if len(answers) == 2 else declared) > maximum
        (account,) = [found for portion in mail.policy.accounts.portions() for found in portion]
        (window,) = account.windows
        assert window is not None
        assert len(window.runs()[0]) <= 62 + 1
