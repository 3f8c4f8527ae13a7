"""What is answered: the words of a verdict on what was found, and who is told of it."""

from __future__ import annotations

from policyd.accounts import Account
from policyd.actions import Effect
from policyd.charges import Check, Exceeded
from policyd.locks import Locks, Report
from policyd.verdict import PASS, Verdict, verdict
from policyd.wire import QUEUE_ID, Request

_TOLD_AS = {Effect.REFUSED: "refused", Effect.HELD: "held", Effect.PASSED: "warned"}


class Answering:
    """Makes verdicts of what was found, tallies and reports them, and locks where a limit says so."""

    def __init__(self, locks: Locks, report: Report) -> None:
        self._locks = locks
        self._report = report

    def said(self, found: Check, request: Request, account: Account, now: float) -> Verdict:
        """Return what is said of what was found; what is only observed is reported, and what locks does."""
        stop, passing = found
        answer = PASS
        for exceeded in passing:
            if exceeded.limit.observe:
                account.observed += 1
                self._report("observed", _fields(self._verdict(exceeded, account, now), account, request))
            elif answer is PASS:
                answer = self._verdict(exceeded, account, now)
        if stop is None:
            return answer
        answer = self._verdict(stop, account, now)
        if stop.limit.lock_for is not None:
            self._locks.by_limit(account, stop, answer, now)
        return answer

    def _verdict(self, exceeded: Exceeded, account: Account, now: float) -> Verdict:
        limit = exceeded.limit
        action = limit.action.render(
            {
                "account": account.name,
                "limit": limit.name,
                "max": limit.shown_max,
                "per": limit.per,
                "count": limit.shown(exceeded.reached),
                "until": self._locks.until(exceeded, now),
            }
        )
        return verdict(action, limit.action.effect, limit=limit.name, count=exceeded.reached, maximum=limit.max)

    def tell(self, answer: Verdict, account: Account, request: Request) -> Verdict:
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
    fields["state"] = request.protocol_state.decode(errors="backslashreplace")
    for name, value in (("client", request.client_address), ("queue_id", request.get(QUEUE_ID))):
        if value:
            fields[name] = value.decode(errors="backslashreplace")
    return fields
