"""What a reload says of the config that it has put into force."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policyd.actions import parse_action
from policyd.config import Config, changes, needs_restart, parse_config
from policyd.limits import HOUSE_RULES, UNTIL_UNLOCKED, Limit, Override

RECIPIENTS_RULE, MESSAGES_RULE = HOUSE_RULES
FOO = Limit("foo", "messages", "1h", 3600.0, 5, parse_action("HOLD"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (Config(), Config(), []),
        (
            Config(),
            Config(listen=("tcp:1", "tcp:2"), control="/run/c", database="none"),
            [
                "listen: tcp:10045:interface=127.0.0.1 -> tcp:1, tcp:2",
                "control: the default place -> /run/c",
                "database: the default place -> none",
            ],
        ),
        (
            Config(),
            Config(attributes=("sender", "client_address"), lowercase=False),
            ["account.attributes: sasl_username -> sender, client_address", "account.lowercase: true -> false"],
        ),
        (
            Config(),
            Config(limits=(RECIPIENTS_RULE, replace(MESSAGES_RULE, max=600))),
            ["limits.messages-per-half-hour.max: 500 -> 600"],
        ),
        (
            Config(limits=(FOO,)),
            Config(
                limits=(Limit("foo", "recipients", "1d", 86400.0, 9, parse_action("REJECT no"), UNTIL_UNLOCKED, True),)
            ),
            [
                "limits.foo.count: messages -> recipients",
                "limits.foo.per: 1h -> 1d",
                "limits.foo.max: 5 -> 9",
                "limits.foo.action: HOLD -> REJECT no",
                "limits.foo.lock: no -> until-unlocked",
                "limits.foo.observe: false -> true",
            ],
        ),
        (
            Config(limits=(replace(FOO, lock_for=5400.0),)),
            Config(limits=(replace(FOO, lock_for=UNTIL_UNLOCKED),)),
            ["limits.foo.lock: 1h30m -> until-unlocked"],
        ),
        (Config(limits=()), Config(limits=(FOO,)), ["limits.foo: new"]),
        (Config(limits=(FOO,)), Config(limits=()), ["limits.foo: removed"]),
        (Config(), Config(limits=HOUSE_RULES[::-1]), ["limits: order changed"]),
        (
            Config(),
            Config(limits=(FOO, RECIPIENTS_RULE)),
            ["limits.foo: new", "limits.messages-per-half-hour: removed"],
        ),
        (Config(), Config(overrides=(Override(("a",), (("foo", 5),)),)), ["overrides: changed"]),
        (Config(), Config(max_accounts=5000), ["max_accounts: 1000000 -> 5000"]),
        (Config(), Config(history=0.0), ["history: 7d -> 0"]),
        (Config(), Config(history=1800.0, history_rows=5000), ["history: 7d -> 30m", "history_rows: 1000000 -> 5000"]),
        (Config(), parse_config("observe: true", "policyd.yaml"), ["observe: false -> true"]),
    ],
)
def test_a_reload_tells_each_key_that_changed(old: Config, new: Config, told: list[str]) -> None:
    """Whoever reloads sees whether it was what he meant."""
    assert changes(old, new) == told


@pytest.mark.parametrize(
    ("new", "keys"),
    [
        (Config(), []),
        (Config(observe=True, limits=(), lowercase=False, max_accounts=5000), []),
        (Config(listen=("tcp:1",)), ["listen"]),
        (Config(listen=("tcp:1",), control="/c", database="/d"), ["listen", "control", "database"]),
    ],
)
def test_a_reload_tells_what_needs_a_restart(new: Config, keys: list[str]) -> None:
    """Sockets and files that are open stay open."""
    assert needs_restart(Config(), new) == keys
