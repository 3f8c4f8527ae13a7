"""What the answers and counts ought to be, worked out as plainly as can be: all that was counted, in lists.

Nothing here is fast, nothing is bounded, nothing is shared with the daemon. A limit's action is one word, and the
answer names the limit and the count that would have been reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from policyd.limits import Count

REMEMBERED = 300.0

Asked = tuple[str, str, "int | None"]
"""A request's state, recipient and recipient_count."""

SLICES = 60
"""A window of bytes is so coarse."""


@dataclass(frozen=True)
class Letter:
    """What else a request tells of its message."""

    client: str = "192.0.2.7"
    sender: str = "anna@example.com"
    size: int = 0
    """As declared, or at END-OF-MESSAGE as it is; 0: it is not told."""

    def value(self, count: Count) -> str:
        """Return the client, "" where none is told; or the sender, of which there always is one."""
        return self.client if count == "clients" else f"<{self.sender}>"


@dataclass(frozen=True)
class Bound:
    """A limit."""

    name: str
    count: Count
    per: float | None
    """Seconds; None: in one message."""
    max: int
    word: str = "REJECT"
    locks_for: float | None = None
    """Seconds for which exceeding it locks the account; None: it does not lock."""
    observe: bool = False

    @property
    def passes(self) -> bool:
        """Whether mail goes its way though it exceeds this limit."""
        return self.observe or self.word == "WARN"


@dataclass(frozen=True)
class Answer:
    """What is answered, and whether it is a lock that says so."""

    text: str
    by_lock: bool = False

    @property
    def passes(self) -> bool:
        """Whether the mail goes its way."""
        return self.text.startswith(("DUNNO", "WARN"))

    @property
    def holds(self) -> bool:
        """Whether the message is held."""
        return self.text.startswith("HOLD")


DUNNO = Answer("DUNNO")


@dataclass(eq=False)
class Message:
    """All that was ever asked with one instance by one account."""

    user: str
    owner: int | None = None
    asked: Asked | None = None
    answer: Answer = DUNNO
    last: float = 0.0
    recipients: int = 0
    counted: bool = False
    complete: bool = False
    """Postfix was let through at DATA, or at END-OF-MESSAGE where it does not ask at DATA."""
    taken_back: int = 0
    held: Answer | None = None
    letter: Letter = Letter()
    """As it was when the message was counted."""


@dataclass(eq=False)
class Entry:
    """One event in one window."""

    time: float
    message: Message
    value: str = ""
    """The client or the sender."""
    events: int = 1
    """Bytes, where they count."""


@dataclass
class Person:
    """An account."""

    windows: dict[str, list[Entry]] = field(default_factory=dict)
    """By the limit's name, oldest first."""
    lock: Answer | None = None
    """What a locked account is answered."""
    locked_until: float = 0.0
    tallies: dict[str, int] = field(default_factory=dict)


class Oracle:
    """Remembers everything, and works each answer out anew."""

    def __init__(self, bounds: list[Bound], *, data_seen: bool) -> None:
        self.bounds = bounds
        self.data_seen = data_seen
        self.now = 0.0
        self.people: dict[str, Person] = {}
        self.messages: dict[tuple[str, str], Message] = {}
        self.at: dict[int, Message] = {}
        """The message that each connection is at."""

    def ask(self, connection: int, user: str, instance: str, asked: Asked, letter: Letter = Letter()) -> str:
        """Return the answer to a request: its state, its recipient, its recipient_count, and what else it tells."""
        if asked[0] != "RCPT":
            self.data_seen = True
        known = self.messages.get((user, instance))
        if self.at.get(connection) is not known:
            self.leave(connection)
        if known and known.owner is None and self.now - known.last >= REMEMBERED:
            known = None
        message = self.messages[user, instance] = known or Message(user)
        elsewhere = message.owner != connection
        message.owner = connection
        self.at[connection] = message
        if message.taken_back:
            again, message.taken_back = message.taken_back, 0
            if not self.lock_of(user) and not self.stopped(message, 0, again):
                self.write(message, 0, again)
        stands = elsewhere or message.answer.passes or message.answer.holds
        again = asked == message.asked and self.now - message.last < REMEMBERED and stands
        message.last = self.now
        if not again:
            message.answer = self.judge(message, asked, letter)
            message.asked = asked
        return message.answer.text

    def leave(self, connection: int) -> None:
        """Let a connection part from its message: what will not be sent is given back."""
        message = self.at.pop(connection, None)
        if message and message.owner == connection:
            message.owner = None
            if self.data_seen and not message.complete:
                message.taken_back = message.recipients
                self.give_back(message)

    def lock(self, user: str, answer: str, seconds: float) -> None:
        """Lock an account: from now on it is answered this."""
        self.lock_of(user)
        person = self.person(user)
        person.lock = Answer(answer, by_lock=True)
        person.locked_until = self.now + seconds
        person.tallies.pop("attempts_while_locked", None)

    def unlock(self, user: str) -> None:
        """Free an account: its windows start anew."""
        if self.lock_of(user):
            self.person(user).lock = None
            self.person(user).windows.clear()

    def lock_of(self, user: str) -> Answer | None:
        """Return what an account is answered while it is locked, and free it when that time is over."""
        person = self.person(user)
        if person.lock and self.now >= person.locked_until:
            person.lock = None
            person.windows.clear()
        return person.lock

    def reset(self, user: str) -> None:
        """Forget an account's counts."""
        self.person(user).windows.clear()

    def reload(self, name: str, maximum: int) -> None:
        """Give a limit another maximum."""
        self.bounds = [replace(bound, max=maximum) if bound.name == name else bound for bound in self.bounds]

    def person(self, user: str) -> Person:
        """Return an account."""
        return self.people.setdefault(user, Person())

    def count(self, user: str, bound: Bound) -> int | None:
        """Return how many events lie in a limit's window."""
        if bound.per is None:
            return None
        inside = self.inside(user, bound)
        if bound.count in ("clients", "senders"):
            return len({entry.value for entry in inside})
        return sum(entry.events for entry in inside)

    def inside(self, user: str, bound: Bound) -> list[Entry]:
        """Return the events that lie in a limit's window."""
        inside = []
        for entry in reversed(self.window(user, bound.name)):
            if self.now >= entry.time + (bound.per or 0.0):
                break
            inside.append(entry)
        return inside

    def counts(self, user: str) -> list[int | None]:
        """Return an account's counts."""
        self.lock_of(user)
        return [self.count(user, bound) for bound in self.bounds]

    def window(self, user: str, name: str) -> list[Entry]:
        """Return all events that were ever counted against a limit and not given back."""
        return self.person(user).windows.setdefault(name, [])

    def judge(self, message: Message, asked: Asked, letter: Letter) -> Answer:
        """Return the answer to a request that was not asked before."""
        state, _, number = asked
        if not message.counted:
            message.letter = letter
        if state == "RCPT":
            return self.rcpt(message)
        if state == "END-OF-MESSAGE" and message.complete:
            answer = self.after_data(message)
        else:
            answer = self.whole(message, number)
        if state == "END-OF-MESSAGE" and answer is DUNNO and message.counted:
            answer = self.settle(message, letter.size)
        return answer

    def settle(self, message: Message, size: int) -> Answer:
        """Put a message's true size in place of the declared one, if that is not too much."""
        declared = message.letter.size
        if not size or size == declared:
            return DUNNO
        more = []
        warned: list[tuple[Bound, Answer]] = []
        for bound in self.bounds:
            if bound.count != "bytes":
                continue
            before = sum(entry.events for entry in self.window(message.user, bound.name) if entry.message is message)
            reached = (self.count(message.user, bound) or 0) + size - before
            if reached <= bound.max or size <= before:
                more.append((bound, size - before))
                continue
            answer = Answer(f"{bound.word} {bound.name} {reached}")
            if not bound.passes:
                return self.stop_at_the_end(message, bound, answer, warned)
            if before or not declared:
                warned.append((bound, answer))
        for bound, number in more:
            self.put(message, bound, number)
        message.letter = replace(message.letter, size=size)
        return self.tell(message, self.warn(message, warned))

    def stop_at_the_end(
        self, message: Message, bound: Bound, answer: Answer, warned: list[tuple[Bound, Answer]]
    ) -> Answer:
        """Give a message back whose true size is too much."""
        self.warn(message, warned)
        if bound.locks_for is not None:
            self.lock(message.user, answer.text, bound.locks_for)
        self.give_back(message)
        if answer.holds:
            message.held = answer
        return self.tell(message, answer)

    def warn(self, message: Message, warned: list[tuple[Bound, Answer]]) -> Answer:
        """Tally what is only observed, and return the first answer of the others."""
        for bound, _ in warned:
            if bound.observe:
                self.tally(message.user, "observed")
        return next((answer for bound, answer in warned if not bound.observe), DUNNO)

    def put(self, message: Message, bound: Bound, number: int) -> None:
        """Write down bytes, or take back the latest of a message."""
        window = self.window(message.user, bound.name)
        if number > 0 and bound.per:
            length = bound.per / SLICES
            time = max(self.now, math.ceil(self.now / length) * length)
            window.append(Entry(time, message, events=number))
            window.sort(key=lambda entry: entry.time)
        for entry in [entry for entry in reversed(window) if entry.message is message and number < 0]:
            taken = min(entry.events, -number)
            entry.events -= taken
            number += taken

    def rcpt(self, message: Message) -> Answer:
        """Judge one recipient; and, where DATA is not asked, the message."""
        lock = self.lock_of(message.user)
        answer = lock or self.charge(message, 0 if self.data_seen or message.counted else 1, 1)
        if answer.holds:
            message.held = message.held or answer
            if self.data_seen:
                return DUNNO
        return self.tell(message, answer)

    def whole(self, message: Message, number: int | None) -> Answer:
        """Judge a message, whose recipients Postfix tells now."""
        lock = self.lock_of(message.user)
        if lock and not (message.held and lock.holds):
            answer = lock
        elif message.held:
            answer = message.held
        else:
            true = number if number is not None else message.recipients or 1
            self.keep(message, true)
            answer = self.charge(message, 0 if message.counted else 1, true - message.recipients)
        message.complete = answer.passes or answer.holds
        if not answer.passes:
            self.give_back(message)
        if answer.holds:
            message.held = answer
        return self.tell(message, answer)

    def after_data(self, message: Message) -> Answer:
        """Judge a message once more, for its account may have been locked meanwhile."""
        lock = self.lock_of(message.user)
        if not lock or (message.held and lock.holds):
            return DUNNO
        self.give_back(message)
        return self.tell(message, lock)

    def charge(self, message: Message, messages: int, recipients: int) -> Answer:
        """Count against all limits, or say which one is exceeded."""
        stop = self.stopped(message, messages, recipients)
        passing = self.passing(message, messages, recipients, stop)
        for bound in passing:
            if bound.observe:
                self.tally(message.user, "observed")
        if stop:
            answer = self.told(message, stop, messages, recipients)
            if stop.locks_for is not None:
                self.lock(message.user, answer.text, stop.locks_for)
            return answer
        warned = [bound for bound in passing if not bound.observe]
        answer = self.told(message, warned[0], messages, recipients) if warned else DUNNO
        self.write(message, messages, recipients)
        return answer

    def would_reach(self, message: Message, bound: Bound, messages: int, recipients: int) -> int:
        """Return the count that more messages and recipients would make."""
        more = self.more(message, bound, messages, recipients)
        if not more:
            return 0
        count = self.count(message.user, bound)
        return more + (message.recipients if count is None else count)

    def more(self, message: Message, bound: Bound, messages: int, recipients: int) -> int:
        """Return by how much the count of a limit would grow."""
        if bound.count == "recipients":
            return recipients
        if bound.count == "messages" or not messages:
            return messages
        if bound.count == "bytes":
            return message.letter.size
        value = message.letter.value(bound.count)
        return int(bool(value) and value not in {entry.value for entry in self.inside(message.user, bound)})

    def stopped(self, message: Message, messages: int, recipients: int) -> Bound | None:
        """Return the first limit that keeps messages and recipients back."""
        for bound in self.bounds:
            if not bound.passes and self.would_reach(message, bound, messages, recipients) > bound.max:
                return bound
        return None

    def passing(self, message: Message, messages: int, recipients: int, stop: Bound | None) -> list[Bound]:
        """Return the limits before `stop` that are exceeded and let the mail pass."""
        before = self.bounds[: self.bounds.index(stop)] if stop else self.bounds
        return [
            bound
            for bound in before
            if bound.passes and self.would_reach(message, bound, messages, recipients) > bound.max
        ]

    def write(self, message: Message, messages: int, recipients: int) -> None:
        """Write messages and recipients down in all windows that they do not exceed."""
        passing = self.passing(message, messages, recipients, None)
        for bound in self.bounds:
            if bound.per is None or bound in passing:
                continue
            if bound.count in ("recipients", "messages"):
                more = self.more(message, bound, messages, recipients)
                self.window(message.user, bound.name).extend(Entry(self.now, message) for _ in range(more))
            elif messages and bound.count == "bytes":
                self.put(message, bound, message.letter.size)
            elif messages and (value := message.letter.value(bound.count)):
                self.window(message.user, bound.name).append(Entry(self.now, message, value))
        message.recipients += recipients
        message.counted = message.counted or messages > 0

    def keep(self, message: Message, number: int) -> None:
        """Give back a message's oldest recipients, but for the latest `number`."""
        self.strike("recipients", message, number)
        message.recipients = min(message.recipients, number)

    def give_back(self, message: Message) -> None:
        """Give back all that a message was counted for."""
        self.keep(message, 0)
        for count in ("messages", "clients", "senders", "bytes"):
            self.strike(count, message, 0)
        message.counted = False

    def strike(self, count: str, message: Message, number: int) -> None:
        """Strike a message's oldest entries out of all windows of a kind, but for the latest `number`."""
        for bound in self.bounds:
            if bound.count == count:
                window = self.window(message.user, bound.name)
                own = [entry for entry in window if entry.message is message]
                for entry in own[: max(0, len(own) - number)]:
                    window.remove(entry)

    def told(self, message: Message, bound: Bound, messages: int, recipients: int) -> Answer:
        """Return a limit's answer."""
        return Answer(f"{bound.word} {bound.name} {self.would_reach(message, bound, messages, recipients)}")

    def tell(self, message: Message, answer: Answer) -> Answer:
        """Tally an answer that is more than a pass."""
        if answer is not DUNNO:
            words = {"REJECT": "refused", "HOLD": "held", "WARN": "warned"}
            word = answer.text.split(" ")[0]
            self.tally(message.user, "attempts_while_locked" if answer.by_lock else words[word])
        return answer

    def tally(self, user: str, name: str) -> None:
        """Add one to a tally."""
        tallies = self.person(user).tallies
        tallies[name] = tallies.get(name, 0) + 1
