"""The limits that are in force while the store is away, where each server is to let through its share alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from policyd.limits import Limit, Limits, Rules


class CutRules(Rules):
    """Rules whose maxima of windows are divided by the number of nodes, rounded up; those of one message stay."""

    def __init__(self, usual: Rules, nodes: int) -> None:
        vars(self).update(vars(usual))  # all that they know is worked out already, and large where there are many
        self._nodes = nodes
        self._cut: dict[int, tuple[Limits, Limits]] = {}
        """By the id of the usual limits: those, and what becomes of them."""

    def limits_for(self, account: str) -> Limits:
        """Return the limits of an account."""
        usual = super().limits_for(account)
        known = self._cut.get(id(usual))
        if known is None:
            cut = Limits(self._share(limit) for limit in usual).warned_at(usual.warn_at)
            known = self._cut[id(usual)] = usual, cut
        return known[1]

    def _share(self, limit: Limit) -> Limit:
        if limit.max is None or limit.period is None:
            return limit
        return replace(limit, max=-(-limit.max // self._nodes))


class AwayRules:
    """Which rules are in force: the usual ones, or while the store is away the node's share of them.

    `put` puts rules in force; `nodes` returns how many nodes there are by what was known last.
    """

    def __init__(self, usual: Rules, put: Callable[[Rules], None], nodes: Callable[[], int], *, share: bool) -> None:
        self._usual = usual
        self._put = put
        self._nodes = nodes
        self._share = share
        self._away = False

    def away(self) -> None:
        """Go by the rules for when the store is away."""
        self._away = True
        self.reload(self._usual)

    def here(self) -> None:
        """Go by the usual rules."""
        self._away = False
        self.reload(self._usual)

    def reload(self, usual: Rules) -> None:
        """Go by other rules from now on."""
        self._usual = usual
        nodes = max(1, self._nodes()) if self._away and self._share else 1
        self._put(usual if nodes == 1 else CutRules(usual, nodes))
