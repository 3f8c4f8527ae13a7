"""The policy: what a request costs, charging it, and what to say.

What is said once is said again when Postfix repeats the request. Nothing here waits: a request goes in and its verdict
comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policyd import charges
from policyd.accounts import Account, Accounts
from policyd.actions import Effect
from policyd.charges import Exceeded
from policyd.limits import Rules
from policyd.locks import Locks, Report
from policyd.tally import HOOKS, OTHER_STATES, STATES, Tally
from policyd.transactions import MEMORY, Connection, Transaction, Transactions
from policyd.verdict import PASS, Verdict, verdict
from policyd.wire import CLIENT_ADDRESS, INSTANCE, PROTOCOL_STATE, QUEUE_ID, RECIPIENT, RECIPIENT_COUNT, Request

NO_DATA_SEEN = "no DATA requests seen: messages are counted at RCPT"

Judge = Callable[[Request, Transaction, float], Verdict]

_STATE_NAMES = {state.encode(): state for state in STATES}
_BEFORE_RCPT = frozenset((b"CONNECT", b"EHLO", b"HELO", b"MAIL"))
_TOLD_AS = {Effect.REFUSED: "refused", Effect.HELD: "held", Effect.PASSED: "warned"}


class Policy:
    """Decides on requests.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch.
    """

    def __init__(self, rules: Rules, report: Report, to_wall: Callable[[float], float]) -> None:
        self.accounts = Accounts(rules)
        self.locks = Locks(self.accounts, report, to_wall)
        self.transactions = Transactions()
        self.tally = Tally()
        self._report = report
        self._judges: Mapping[bytes, Judge] = {
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"END-OF-MESSAGE": self._end_of_message,
        }

    def decide(self, request: Request, connection: Connection, now: float) -> Verdict:
        """Return the verdict on a request of `connection`; the caller sends its reply."""
        state = request.get(PROTOCOL_STATE)
        self._saw(_STATE_NAMES.get(state, OTHER_STATES))
        name = self.accounts.rules.account_of(request.get)
        instance = request.get(INSTANCE)
        transaction = connection.transaction
        if instance and transaction and (instance, name) != (transaction.instance, transaction.account.name):
            self.leave(connection, now)
            transaction = None
        answer = PASS
        if name:
            if judge := self._judges.get(state):
                if not instance:
                    transaction = Transaction(b"", self._account(name, request, now))
                elif transaction is None or transaction.connection is not connection:
                    transaction = self._begin(instance, name, connection, request, now)
                elif transaction.answer.effect is Effect.REFUSED:
                    transaction.asked = None  # on the connection that was told no, it is the SMTP client who repeats
                answer = self._once(judge, state, request, transaction, now)
            elif state in _BEFORE_RCPT:
                answer = self._before_rcpt(request, self._account(name, request, now))
        self.tally.answers[answer.word] += 1
        return answer

    def leave(self, connection: Connection, now: float) -> None:
        """End the connection's transaction: its next one begins, or the connection is gone.

        A message that was never asked about at DATA is not sent, and is given back; unless no DATA request has ever
        been seen, when nothing can be known of that.
        """
        transaction = self.transactions.leave(connection, now)
        if transaction and not transaction.data_asked and self.tally.data_seen:
            transaction.returned = transaction.recipients
            transaction.give_back()
            self.accounts.note_change(transaction.account)

    def problems(self) -> list[str]:
        """Return what a person should know of the way the requests come in."""
        return [NO_DATA_SEEN] if self.tally.requests["RCPT"] and not self.tally.data_seen else []

    def _saw(self, state: str) -> None:
        """Tally a request, and tell when it changes what messages are counted at."""
        tally = self.tally
        tally.requests[state] += 1
        if state in tally.hooks or state not in HOOKS:
            return
        tally.hooks.add(state)
        if tally.data_seen:
            return
        if state == "RCPT":
            self._report("no-data-seen", {"meaning": NO_DATA_SEEN})
        else:
            tally.data_seen = True
            self._report("data-seen", {"meaning": "messages are counted at DATA from now on"})

    def _account(self, name: str, request: Request, now: float) -> Account:
        account = self.locks.account(name, now)
        account.seen = True
        if client := request.get(CLIENT_ADDRESS):
            account.note_client(client, now)
        return account

    def _begin(self, instance: bytes, name: str, connection: Connection, request: Request, now: float) -> Transaction:
        account = self._account(name, request, now)
        transaction = self.transactions.begin(instance, account, connection, now)
        if transaction.returned:
            self._charge_again(transaction, now)
        return transaction

    def _charge_again(self, transaction: Transaction, now: float) -> None:
        """Count again what was given back when a connection broke: on another one, the message lives on.

        Where there is no more room for it, DATA will find the difference, and exceed the limits like any other.
        """
        recipients, transaction.returned = transaction.returned, 0
        if self._locked(transaction.account) is None:
            found = charges.check(transaction, 0, recipients, now)
            if found.stop is None:
                charges.count(transaction, 0, recipients, now, found.passing)
                self.accounts.note_change(transaction.account)

    def _once(self, judge: Judge, state: bytes, request: Request, transaction: Transaction, now: float) -> Verdict:
        """Judge a request, or say again what was said when it is the last one come again.

        Of the recipient its hash will do, so that no recipient is kept.
        """
        asked = (state, hash(request.get(RECIPIENT)), request.get(RECIPIENT_COUNT))
        again = transaction.asked == asked and now - transaction.last < MEMORY
        transaction.last = now
        if not again:
            account = transaction.account = self.accounts.heard(transaction.account, now)
            account.adopt(self.accounts.rules)
            self.locks.expire_one(account, now)
            transaction.answer = judge(request, transaction, now)
            transaction.asked = asked
            self.accounts.note_change(account)
        return transaction.answer

    def _before_rcpt(self, request: Request, account: Account) -> Verdict:
        self.accounts.note_change(account)
        return self._tell(self._locked(account) or PASS, account, request)

    def _rcpt(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        account = transaction.account
        if locked := self._locked(account):
            answer = locked
        else:
            message = not self.tally.data_seen and not transaction.message_counted
            answer = self._charge(request, transaction, int(message), 1, now)
        if answer.effect is Effect.HELD:
            transaction.held = transaction.held or answer
            if self.tally.data_seen and transaction.instance:
                return PASS  # it is said at DATA, where the queue id of the message that it holds is known
        return self._tell(answer, account, request)

    def _data(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        answer = self._judge_data(request, transaction, now)
        transaction.data_asked = answer.effect is not Effect.REFUSED
        if answer.effect is not Effect.PASSED:
            transaction.give_back()
        if answer.effect is Effect.HELD:
            transaction.held = answer
        return self._tell(answer, transaction.account, request)

    def _judge_data(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        locked = self._locked(transaction.account)
        if locked and not (transaction.held and locked.effect is Effect.HELD):
            return locked
        if transaction.held:
            return transaction.held
        recipients = request.recipient_count
        if recipients is None:
            recipients = transaction.recipients or 1
        transaction.keep_recipients(recipients)
        message = not transaction.message_counted
        return self._charge(request, transaction, int(message), recipients - transaction.recipients, now)

    def _end_of_message(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        if not transaction.data_asked:
            return self._data(request, transaction, now)
        locked = self._locked(transaction.account)
        if locked is None or (transaction.held and locked.effect is Effect.HELD):
            return PASS
        transaction.give_back()
        return self._tell(locked, transaction.account, request)

    def _locked(self, account: Account) -> Verdict | None:
        """Return the answer of the account's lock if that is in force; while all is observed, only a person's is."""
        lock = account.lock
        if lock is None or (lock.limit is not None and self.accounts.rules.observe):
            return None
        return lock.verdict

    def _charge(
        self, request: Request, transaction: Transaction, messages: int, recipients: int, now: float
    ) -> Verdict:
        """Count an event and let it pass, or count nothing and return the verdict of the limit that stops it."""
        stop, passing = charges.check(transaction, messages, recipients, now)
        account = transaction.account
        answer = PASS
        for exceeded in passing:
            if exceeded.limit.observe:
                account.observed += 1
                self._report("observed", _fields(self._verdict(exceeded, account, now), account, request))
            elif answer is PASS:
                answer = self._verdict(exceeded, account, now)
        if stop is None:
            charges.count(transaction, messages, recipients, now, passing)
            return answer
        answer = self._verdict(stop, account, now)
        if stop.limit.lock_for is not None:
            self.locks.by_limit(account, stop, answer, now)
        return answer

    def _verdict(self, exceeded: Exceeded, account: Account, now: float) -> Verdict:
        limit = exceeded.limit
        action = limit.action.render(
            {
                "account": account.name,
                "limit": limit.name,
                "max": limit.max,
                "per": limit.per,
                "count": exceeded.reached,
                "until": self.locks.until(exceeded, now),
            }
        )
        return verdict(action, limit.action.effect, limit=limit.name, count=exceeded.reached, maximum=limit.max)

    def _tell(self, answer: Verdict, account: Account, request: Request) -> Verdict:
        """Tally and report an answer that is more than a pass."""
        if answer is PASS:
            return answer
        told_as = _TOLD_AS[answer.effect]
        tally = "attempts_while_locked" if answer.by_lock else told_as
        setattr(account, tally, getattr(account, tally) + 1)
        self._report(told_as, _fields(answer, account, request))
        return answer


def _fields(answer: Verdict, account: Account, request: Request) -> dict[str, object]:
    fields: dict[str, object] = {"account": account.name, "action": answer.word}
    if answer.by_lock:
        fields["locked"] = "yes"
    else:
        fields.update(limit=answer.limit, count=answer.count, max=answer.max)
    fields["state"] = request.get(PROTOCOL_STATE).decode(errors="backslashreplace")
    for name, wanted in (("client", CLIENT_ADDRESS), ("queue_id", QUEUE_ID)):
        if value := request.get(wanted):
            fields[name] = value.decode(errors="backslashreplace")
    return fields
