"""Deciding with the store that several servers share: it has a say before anything is counted.

The policy judges as ever, until it wants to count something. Then it is broken off, the store is asked where the
message's transaction may stand, and the request is judged again with what the store said in place of what this node's
own windows would say. Those are counted up all the same: when the store is away, the policy goes by them alone, at
once, and what it counts then is told when the store is back (`catching_up`).

A request that counts nothing is not asked about. Calls of one transaction are made one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from policyd import charges
from policyd.accounts import Account
from policyd.catching_up import CatchingUp, Store
from policyd.charges import Check, Exceeded
from policyd.limits import Limits
from policyd.locks import Report
from policyd.policy import Policy
from policyd.shared_calls import Outcome, Over, Target
from policyd.shares import NOTHING, Share, stand
from policyd.transactions import Connection, Transaction
from policyd.verdict import Verdict
from policyd.wire import Request

Later = Callable[[Verdict], None]
"""Takes a verdict that was not there at once."""

Mirror = Callable[[Account, "str | None", float], None]
"""Takes in the lock of an account that the store has told, None where it has none any more."""

TRIES = 4
"""Calls that a request is asked about with: one step of its judge after another; or the rules change meanwhile."""


class _Ask(Exception):  # noqa: N818 -- it is no error
    """A judge wants to count something: the store has to be asked."""

    def __init__(self, transaction: Transaction, target: Target, more: int) -> None:
        super().__init__()
        self.transaction, self.target = transaction, target
        self.more = more
        """Recipients by which the transaction grows."""


class _Said(NamedTuple):
    """What the store has said, and of what."""

    outcome: Outcome
    transaction: Transaction
    target: Target
    limits: Limits


class _Question:
    """A request that waits for the store."""

    __slots__ = ("connection", "gone", "later", "request", "transaction", "tries", "verdict")

    def __init__(self, request: Request, connection: Connection, transaction: Transaction) -> None:
        self.request, self.connection, self.transaction = request, connection, transaction
        self.later: Later | None = None
        """None: `decide` has not returned yet."""
        self.verdict: Verdict | None = None
        self.tries = 0
        self.gone = False
        """Whether its connection is gone: nobody wants to know any more."""


class Sharing:
    """Decides on requests, with the store having a say.

    `mirror` is told of the lock that the store names; `run` tells this daemon's run from others; `bug` returns the
    verdict where an exception of ours is being handled. `Policy.leave` goes through here too.
    """

    def __init__(
        self, policy: Policy, store: Store, mirror: Mirror, report: Report, run: bytes, bug: Callable[[], Verdict]
    ) -> None:
        self.catching_up = CatchingUp(policy.accounts, store, report, bug)
        self.catching_up.call_ended = self._call_ended
        self._policy = policy
        self._store = store
        self._mirror = mirror
        self._bug = bug
        self._run = run
        self._unnamed = 0
        self._said: _Said | None = None
        """What the store has said to the request that is being judged."""
        self._local = False
        """Whether the request that is being judged is judged by this node's own windows."""
        self._touched: Transaction | None = None
        self._asking: dict[Connection, _Question] = {}
        policy.charge, policy.check, policy.settle = self._charge, self._check, self._settle
        policy.look_at = self._look_at
        policy.given_back = self._given_back

    def decide(self, request: Request, connection: Connection, now: float, later: Later) -> Verdict | None:
        """Return the verdict on a request; None: it is not known yet, and `later` will be told of it.

        The request must stay as it is until then, and nothing else be asked for this connection.
        """
        self._local, self._touched = not self._store.here(), None
        try:
            verdict = self._policy.decide(request, connection, now)
        except _Ask as asked:
            question = _Question(request, connection, asked.transaction)
            self._asking[connection] = question
            share = self._share(asked.transaction)
            if share.busy:
                share.waiting = [*(share.waiting or ()), question]
            else:
                self._ask(question, asked, now)
            question.later = later
            return question.verdict
        touched, transaction = self._touched, connection.transaction
        if touched is not None and touched is not transaction:
            self._sync(touched, now)
        if transaction is not None and (transaction is touched or transaction.share is not None):
            self._sync(transaction, now)
        return verdict

    def leave(self, connection: Connection, now: float) -> None:
        """End the connection's transaction, also where it waits for the store; see Policy.leave."""
        question = self._asking.pop(connection, None)
        if question is not None:
            question.gone = True
        self._policy.leave(connection, now)

    @property
    def asking(self) -> int:
        """The number of requests that wait for the store."""
        return len(self._asking)

    # --- asking

    def _ask(self, question: _Question, asked: _Ask, now: float) -> None:
        """Ask the store whether a transaction may stand where the judge wants it."""
        question.tries += 1
        if not self._store.here() or question.tries > TRIES:
            self._by_own_windows(question, now)
            return
        share = self._share(asked.transaction)
        share.busy = True
        try:
            self._call(question, asked, share, now)
        except Exception:  # the request has to be answered all the same
            self._bug()
            share.busy = share.sure = False
            self._by_own_windows(question, now)

    def _call(self, question: _Question, asked: _Ask, share: Share, now: float) -> None:
        transaction, store, account = asked.transaction, self._store, asked.transaction.account
        self.catching_up.before(account, now)
        share.refresh(now, self.catching_up.generation, stand(transaction))
        self.catching_up.waiting.remove(share)
        target, limits = share.relative(asked.target), account.limits
        share.when = now
        sent = limits if asked.more and share.base == NOTHING else limits.of_windows
        command, lock = store.calls.settle(account.name, sent, share.name, target), account.lock

        def answered(reply: object) -> None:
            outcome = self.catching_up.read(reply)
            if outcome is None:
                failed(None)
                return
            if outcome.lock is None and outcome.stop is None:
                share.told, share.sure = target, True
            elif target.messages < share.told.messages or target.recipients < share.told.recipients:
                share.sure = False  # what is too much is given back all the same
            share.called, share.busy = now, False
            if outcome.lock is not None or (lock is not None and account.lock is lock):
                try:
                    self._mirror(account, outcome.lock, store.clock())
                except Exception:  # the request has to be answered all the same
                    self._bug()
            self._go_on(question, _Said(outcome, transaction, asked.target, limits), store.clock())

        def failed(failure: Any) -> None:
            self.catching_up.look_at(failure)
            share.busy = share.sure = False
            self._by_own_windows(question, store.clock())

        store.call(command).addCallbacks(answered, failed)

    def _go_on(self, question: _Question, said: _Said | None, now: float) -> None:
        """Judge a request again, with what the store has said by now."""
        if question.gone:
            self._end(question.transaction, now)
            return
        self._said, self._local = said, False
        try:
            verdict = self._policy.judge_again(question.request, question.transaction, now)
        except _Ask as asked:
            self._said = None
            self._ask(question, asked, now)
            return
        except Exception:
            verdict = self._bug()
        finally:
            self._said = None
        self._done(question, verdict, now)

    def _by_own_windows(self, question: _Question, now: float) -> None:
        """Judge a request without the store."""
        if question.gone:
            self._end(question.transaction, now, wait=True)
            return
        self._local = True
        try:
            verdict = self._policy.judge_again(question.request, question.transaction, now)
        except Exception:
            verdict = self._bug()
        self._done(question, verdict, now, wait=True)

    def _done(self, question: _Question, verdict: Verdict, now: float, *, wait: bool = False) -> None:
        """Tell the verdict on a request, and go on with what has waited for it."""
        if self._asking.get(question.connection) is question:
            del self._asking[question.connection]
        self._end(question.transaction, now, wait=wait)
        question.verdict = verdict
        if question.later is not None and not question.gone:
            question.later(verdict)

    def _end(self, transaction: Transaction, now: float, *, wait: bool = False) -> None:
        """Go on with a transaction whose call has come to its end."""
        try:
            self._sync(transaction, now, wait=wait)
            self._call_ended(self._share(transaction))
        except Exception:  # the request has to be answered all the same
            self._bug()

    def _call_ended(self, share: Share) -> None:
        """Go on with what has waited for a call that has come to its end."""
        now = self._store.clock()
        while share.waiting and not share.busy:
            question = share.waiting.pop(0)
            if self._store.here():
                self._go_on(question, None, now)
            else:
                self._by_own_windows(question, now)
        if not share.busy and not share.settled and not share.noted:
            self.catching_up.tell(share, now)

    def _share(self, transaction: Transaction) -> Share:
        share: Share | None = transaction.share
        if share is None:
            name = transaction.instance
            if not name:  # a name all the same, so that what is asked twice counts once
                self._unnamed += 1
                name = b"%b-%d" % (self._run, self._unnamed)
            share = transaction.share = Share(transaction.account.name, name, self.catching_up.generation)
        return share

    def _sync(self, transaction: Transaction, now: float, *, wait: bool = False) -> None:
        """Have the store told where a transaction stands now, if it does not know; `wait`: not at once."""
        share, stands = self._share(transaction), stand(transaction)
        if share.wanted != stands:
            share.wanted, share.when = stands, now
        if share.busy or share.settled:
            return
        if wait or not self._store.here():
            self.catching_up.waiting.add(share)
        else:
            self.catching_up.tell(share, now)

    def _given_back(self, transaction: Transaction) -> None:
        if transaction.share is not None:
            self._sync(transaction, self._store.clock())

    # --- what the policy calls in place of charges

    def _heard(self, transaction: Transaction, target: Target, more: int) -> Outcome | None:
        """Return what the store has said of this; None: this node's own windows are to be asked."""
        self._touched = transaction
        if self._local:
            return None
        said = self._said
        if (
            said is None
            or said.transaction is not transaction
            or said.target != target
            or said.limits is not transaction.account.limits
        ):
            if not transaction.returned:
                transaction.asked = None  # it will be judged again, and is no repeated request for that
            raise _Ask(transaction, target, more)
        return said.outcome if said.outcome.lock is None else None

    def _charge(self, transaction: Transaction, messages: int, recipients: int, now: float) -> bool:
        maxima = transaction.account.maxima
        if not messages and not (recipients and maxima.recipients):
            return charges.charge(transaction, messages, recipients, now)
        outcome = self._heard(transaction, stand(transaction, messages, recipients), recipients)
        if outcome is None:
            return charges.charge(transaction, messages, recipients, now)
        if outcome.stop is not None or outcome.passing or outcome.near:
            return False
        charges.count(transaction, messages, recipients, now)
        return True

    def _check(self, transaction: Transaction, messages: int, recipients: int, now: float) -> Check:
        account = transaction.account
        if not messages and not (recipients and account.maxima.recipients):
            return charges.check(transaction, messages, recipients, now)
        outcome = self._heard(transaction, stand(transaction, messages, recipients), recipients)
        if outcome is None:
            return charges.check(transaction, messages, recipients, now)
        return _found(outcome, account)

    def _settle(self, transaction: Transaction, size: int, now: float) -> Check:
        envelope = transaction.envelope
        if envelope is None or not size or size == envelope.size:
            return charges.FREE
        outcome = self._heard(transaction, stand(transaction, size=size), 0)
        if outcome is None:
            return charges.settle(transaction, size, now)
        return charges.settled(transaction, size, now, _found(outcome, transaction.account))

    def _look_at(self, account: Account, percent: int, now: float) -> None:
        said = self._said
        if said is None or said.outcome.lock is not None:
            self._policy.nearing.look_at(account, percent, now)
            return
        for place, count in said.outcome.near:
            self._policy.nearing.came_near(account, account.limits[place], count, now)


def _found(outcome: Outcome, account: Account) -> Check:
    stop = outcome.stop
    return Check(
        None if stop is None else _exceeded(stop, account), tuple(_exceeded(over, account) for over in outcome.passing)
    )


def _exceeded(over: Over, account: Account) -> Exceeded:
    return Exceeded(account.limits[over.place], over.reached, over.resets_in)
