"""The policy: what a request costs, charging it, and what to say.

What is said once is said again when Postfix repeats the request. Nothing here waits: a request goes in and its verdict
comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policyd import charges
from policyd.accounts import Account, Accounts
from policyd.actions import Effect
from policyd.allowing import Allowing
from policyd.answering import Answering
from policyd.charges import Check
from policyd.envelope import Envelope, size_of
from policyd.history import History, Seen
from policyd.limits import Rules
from policyd.locks import Locks, Report
from policyd.nearing import Nearing
from policyd.tally import END_OF_MESSAGE, OTHER_STATES, STATES, Tally
from policyd.transactions import MEMORY, Connection, Transaction, Transactions
from policyd.verdict import PASS, Verdict
from policyd.wire import Request

NO_DATA_SEEN = "no DATA requests seen: messages are counted at RCPT"
NO_SIZE_SEEN = "no END-OF-MESSAGE requests seen: bytes are counted as clients declare them, if they do"

Judge = Callable[[Request, Transaction, float], Verdict]

_END_OF_MESSAGE = END_OF_MESSAGE.encode()
_OTHER_STATE = (OTHER_STATES, None)
_BEFORE_RCPT = frozenset(("CONNECT", "EHLO", "HELO", "MAIL"))


class Policy:
    """Decides on requests.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch.
    """

    def __init__(self, rules: Rules, report: Report, to_wall: Callable[[float], float]) -> None:
        self.accounts = Accounts(rules)
        self.locks = Locks(self.accounts, report, to_wall)
        self.allowing = Allowing(self.accounts, report, to_wall)
        self.transactions = Transactions()
        self.history = History()
        self.tally = Tally()
        self.nearing = Nearing(report)
        self.charge: Callable[[Transaction, int, int, float], bool] = charges.charge
        """Counts an event that exceeds nothing. Where counts are shared, what is put in the place of this and of the
        next three asks for those of all servers."""
        self.check: Callable[[Transaction, int, int, float], Check] = charges.check
        self.settle: Callable[[Transaction, int, float], Check] = charges.settle
        self.look_at: Callable[[Account, int, float], None] = self.nearing.look_at
        self.given_back: Callable[[Transaction], None] = lambda _transaction: None
        """Is told of a message that was given back when its connection went on to another one, or broke."""
        self._answering = Answering(self.locks, report)
        self._report = report
        judges = {"RCPT": self._rcpt, "DATA": self._data, "END-OF-MESSAGE": self._end_of_message}
        self._states: Mapping[bytes, tuple[str, Judge | None]] = {
            state.encode(): (state, judges.get(state)) for state in STATES
        }

    def decide(self, request: Request, connection: Connection, now: float) -> Verdict:
        """Return the verdict on a request of `connection`; the caller sends its reply."""
        state_name, _, _, _, instance, login = request.values
        state, judge = self._states.get(state_name, _OTHER_STATE)
        tally, transaction = self.tally, connection.transaction
        tally.requests[state] += 1
        if judge is not None and state not in tally.hooks:
            self._saw_first(state)
        if (
            judge is not None
            and transaction is not None
            and instance == transaction.instance
            and login == connection.login
            and self.accounts.rules is connection.rules
            and transaction.connection is connection
            and transaction.answer is PASS
        ):
            answer = self._once(judge, request, transaction, now)  # the message goes on as it has begun
        else:
            answer = self._decide_anew(state, judge, request, connection, now)
        if answer is not PASS:
            tally.others[answer.word] += 1
        return answer

    def _decide_anew(
        self, state: str, judge: Judge | None, request: Request, connection: Connection, now: float
    ) -> Verdict:
        """Return the verdict on a request that may begin another message, or belong to none."""
        rules, (_, _, _, _, instance, login) = self.accounts.rules, request.values
        if login and rules.login_decides:
            name = rules.account_known_by("sasl_username", login)
        else:
            name = rules.account_of(request.get)
        transaction = connection.transaction
        if transaction is not None and instance and transaction.is_other(instance, name):
            self.leave(connection, now)
        if not name:
            self.tally.unnamed += 1
            return PASS
        if judge is None:
            return self._before_rcpt(request, self._account(name, request, now), now) if state in _BEFORE_RCPT else PASS
        connection.login, connection.rules = login, rules if login and rules.login_decides else None
        return self._once(judge, request, self._transaction(name, request, connection, now), now)

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
            self.given_back(transaction)

    def judge_again(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        """Return the verdict on a request that `decide` has broken off for, by an exception, while it was judged."""
        _, judge = self._states[request.values[0]]
        assert judge is not None, "it was judged"  # noqa: S101 -- for the type checker
        if transaction.returned:
            self._charge_again(transaction, now)
        answer = self._once(judge, request, transaction, now)
        if answer is not PASS:
            self.tally.others[answer.word] += 1
        return answer

    def problems(self) -> list[str]:
        """Return what a person should know of the way the requests come in."""
        tally = self.tally
        problems = [NO_DATA_SEEN] if tally.requests["RCPT"] and not tally.data_seen else []
        if self.accounts.rules.count_bytes and tally.requests["DATA"] and "END-OF-MESSAGE" not in tally.hooks:
            problems.append(NO_SIZE_SEEN)
        return problems

    def queue_ordered(self, fields: Mapping[str, object]) -> None:
        """Tell what a person has had done to an account's messages in Postfix's queue."""
        self._report("queue", fields)

    def _saw_first(self, state: str) -> None:
        """Note one of the HOOKS that was never seen, and tell when it changes what messages are counted at."""
        tally = self.tally
        tally.hooks.add(state)
        if tally.data_seen:
            return
        if state == "RCPT":
            self._report("no-data-seen", {"meaning": NO_DATA_SEEN})
        else:
            tally.data_seen = True
            self._report("data-seen", {"meaning": "messages are counted at DATA from now on"})

    def _account(self, name: str, request: Request, now: float) -> Account:
        account = self.accounts.get(name, now)
        if account.lock is not None:
            self.locks.expire_one(account, now)
        account.seen = True
        if client := request.values[1]:
            account.note_client(client, now)
        return account

    def _transaction(self, name: str, request: Request, connection: Connection, now: float) -> Transaction:
        """Return the transaction that a request belongs to, one of its own if it has no instance."""
        transaction, instance = connection.transaction, request.values[4]
        if transaction is not None and transaction.connection is connection and instance:
            if transaction.answer.effect is Effect.REFUSED:
                transaction.asked = None  # on the connection that was told no, it is the SMTP client who repeats
            return transaction
        account = self._account(name, request, now)
        if not instance:
            return Transaction(b"", account)
        transaction = self.transactions.begin(instance, account, connection, now)
        if transaction.returned:
            self._charge_again(transaction, now)
        return transaction

    def _charge_again(self, transaction: Transaction, now: float) -> None:
        """Count again what was given back when a connection broke: on another one, the message lives on.

        Where there is no more room for it, DATA will find the difference, and exceed the limits like any other.
        """
        recipients, found = transaction.returned, None
        if self._locked(transaction.account) is None:
            found = self.check(transaction, 0, recipients, now)
        transaction.returned = 0
        if found is not None and found.stop is None:
            charges.count(transaction, 0, recipients, now, found.passing)
            self.accounts.note_change(transaction.account)

    def _once(self, judge: Judge, request: Request, transaction: Transaction, now: float) -> Verdict:
        """Judge a request, or say again what was said when it is the last one come again.

        A hash of it will do, so that it need not be kept for that.
        """
        asked = hash(request.values)
        if transaction.asked == asked and now - transaction.last < MEMORY:
            transaction.last = now
            return transaction.answer
        transaction.last, accounts = now, self.accounts
        account = transaction.account = accounts.heard(transaction.account, now)
        if account.rules is not accounts.rules:
            accounts.adopt(account)
        if account.lock is not None:
            self.locks.expire_one(account, now)
        answer = transaction.answer = judge(request, transaction, now)
        transaction.asked = asked
        if not account.changed:
            accounts.note_change(account)
        return answer

    def _before_rcpt(self, request: Request, account: Account, now: float) -> Verdict:
        self.accounts.note_change(account)
        answer = self._locked(account) or PASS
        if answer is not PASS and self.history.kept and request.protocol_state == b"MAIL":
            self.history.note(Seen(now, now, account.name, request.lines, 0, answer))
        return self._answering.tell(answer, account, request)

    def _rcpt(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        account = transaction.account
        if account.lock is not None and (locked := self._locked(account)):
            answer = locked
        else:
            data_seen = self.tally.data_seen
            message = 0 if data_seen or transaction.message_counted else 1
            if message and account.maxima.looked_at:
                transaction.envelope = Envelope(request, account.maxima.looked_at)
            if self.charge(transaction, message, 1, now):
                if not data_seen and self.history.kept:
                    self.history.decided(transaction, request, PASS, now)
                return PASS
            answer = self._charge_over(request, transaction, message, 1, now)
        if answer.effect is Effect.HELD:
            transaction.held = transaction.held or answer
            if self.tally.data_seen and transaction.instance:
                return PASS  # it is said at DATA, where the queue id of the message that it holds is known
        if self.history.kept:
            self.history.decided(transaction, request, answer, now)
        return self._answering.tell(answer, account, request)

    def _data(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        answer = self._judge_data(request, transaction, now)
        transaction.data_asked = answer is PASS or answer.effect is not Effect.REFUSED
        if self.history.kept:
            ends = END_OF_MESSAGE not in self.tally.hooks  # else it is told of again, with its size
            if answer is PASS and transaction.seen is None and ends and transaction.instance:
                self.history.passed(transaction, request, now)
            else:
                self.history.decided(transaction, request, answer, now)
        if answer is PASS:
            return answer
        if answer.effect is not Effect.PASSED:
            transaction.give_back()
        if answer.effect is Effect.HELD:
            transaction.held = answer
        return self._answering.tell(answer, transaction.account, request)

    def _judge_data(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        if transaction.account.lock is not None:
            locked = self._locked(transaction.account)
            if locked and not (transaction.held and locked.effect is Effect.HELD):
                return locked
        if transaction.held:
            return transaction.held
        recipients = request.recipient_count
        if recipients is None:
            recipients = transaction.recipients or 1
        if transaction.recipients > recipients:
            transaction.keep_recipients(recipients)
        message = 0 if transaction.message_counted else 1
        if message and (looked_at := transaction.account.maxima.looked_at):
            transaction.envelope = Envelope(request, looked_at)
        recipients -= transaction.recipients
        answer = PASS
        if not self.charge(transaction, message, recipients, now):
            answer = self._charge_over(request, transaction, message, recipients, now)
        if answer is PASS and not message and transaction.envelope is not None:
            return self._settle(request, transaction, now)
        return answer

    def _end_of_message(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        if not transaction.data_asked:
            return self._data(request, transaction, now)
        if transaction.answer.effect is Effect.REFUSED and not transaction.message_counted:
            return transaction.answer  # it was refused at its end, and is asked about once more
        locked = self._locked(transaction.account)
        goes_on = locked is None or (transaction.held is not None and locked.effect is Effect.HELD)
        answer = locked if locked and not goes_on else PASS
        if goes_on and transaction.envelope is not None:
            answer = self._settle(request, transaction, now)
            transaction.held = answer if answer.effect is Effect.HELD else transaction.held
        if self.history.kept:
            self.history.decided(transaction, request, answer, now)
        if answer is PASS:
            return PASS
        if answer.effect is not Effect.PASSED:
            transaction.give_back()
        return self._answering.tell(answer, transaction.account, request)

    def _settle(self, request: Request, transaction: Transaction, now: float) -> Verdict:
        """Count the true size of a message that was counted before it was known, or return what that exceeds."""
        if not transaction.message_counted:
            return PASS
        account, found = transaction.account, self.settle(transaction, size_of(request), now)
        answer = self._answering.said(found, request, account, now)
        if found.stop is None and account.rules.warn_at is not None:
            self.look_at(account, account.rules.warn_at, now)
        return answer

    def _locked(self, account: Account) -> Verdict | None:
        """Return the answer of the account's lock if that is in force; while all is observed, only a person's is."""
        lock = account.lock
        if lock is None or (lock.limit is not None and self.accounts.rules.observe):
            return None
        return lock.verdict

    def _charge_over(
        self, request: Request, transaction: Transaction, messages: int, recipients: int, now: float
    ) -> Verdict:
        """Count an event that exceeds something if that lets it pass, or return what the limit that stops it says.

        An event may also be here because it brings a count near to a maximum.
        """
        found = self.check(transaction, messages, recipients, now)
        answer = self._answering.said(found, request, transaction.account, now)
        if found.stop is None:
            charges.count(transaction, messages, recipients, now, found.passing)
            account = transaction.account
            if account.rules.warn_at is not None:
                self.look_at(account, account.rules.warn_at, now)
        return answer
