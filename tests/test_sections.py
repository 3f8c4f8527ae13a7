"""What is wrong with a section of the config file, and the words in which its owner is told: one row a mistake."""

from __future__ import annotations

import pytest

from policyd.config import ConfigError, parse_config
from tests.configs import GOOD, LONG, RECIPIENTS, Rows, expected, limit, override, problems

ACCESS = (
    "want an access(5) action (REJECT, DEFER, DEFER_IF_PERMIT, HANGUP, HOLD, DISCARD, REDIRECT, DUNNO, OK, WARN, INFO, "
    "PREPEND, BCC, FILTER, DEFER_IF_REJECT, or a 4xx or 5xx code with a text)"
)
PER = "want message, or a duration from 1s to 31d such as 45s, 30m, 1h30m or 7d"
LOCK = "want until-unlocked, a duration from 1s to 3660d such as 24h, or no"
GLOBS = 'want a list of account names or shell globs such as ["*@lists.example.com"]'
ENDPOINTS = "want a list of endpoint strings such as [tcp:10045:interface=127.0.0.1]"
ENDPOINT = "want an endpoint string such as tcp:10045:interface=127.0.0.1"
SOCKET = "an absolute path of at most 107 bytes"
ATTRIBUTES = (
    "sasl_username, sasl_sender, client_address, client_name, reverse_client_name, helo_name, sender, server_address, "
    "server_port, ccert_subject, ccert_issuer, ccert_fingerprint, ccert_pubkey_fingerprint, policy_context"
)
NAME = "want a name of at most 64 letters, digits, '.', '_' and '-'"
RFC_5321 = "want at least 100 recipients per message (RFC 5321 4.5.3.1.8)"
HALF_HOUR = "messages-per-half-hour"
SIZE = "want a size above 0 such as 500M or 2G"
MAXIMUM = "want a whole number above 0, or unlimited"
BAD_KEY = "want a key that is text, in quotes if need be"

SCALARS: Rows = [
    ("observe: maybe", "1: observe: want true or false, got 'maybe'"),
    ("observe: 1", "1: observe: want true or false, got 1"),
    ("observe: 'true'", "1: observe: want true or false, got 'true'"),
    ("observe: [true]", "1: observe: want true or false, got a list"),
    ("observe: !!bool maybe", "1: observe: want true or false, got maybe"),
    ("observe: !maybe x", "1: observe: want true or false, got a value tagged '!maybe'"),
    *(
        (f"max_accounts: {given}", f"1: max_accounts: want a whole number from 1000 to 100000000, got {given}")
        for given in ("999", "100000001", "0", "-5", "'1000'", "true")
    ),
    ("max_accounts: []", "1: max_accounts: want a whole number from 1000 to 100000000, got a list"),
    *(
        (f"history: {given}", f"1: history: want a duration from 1m to 366d such as 7d, or 0, got {given}")
        for given in ("-1", "'7x'", "'30s'", "'367d'", "5", "true")
    ),
    ("history: [7d]", "1: history: want a duration from 1m to 366d such as 7d, or 0, got a list"),
    *(
        (f"history_rows: {given}", f"1: history_rows: want a whole number from 1000 to 1000000000, got {given}")
        for given in ("999", "1000000001", "'1000'", "true")
    ),
    ("control: run/policyd.sock", f"1: control: want {SOCKET}, got 'run/policyd.sock'"),
    ("control: /run/policyd/", f"1: control: want {SOCKET}, got '/run/policyd/'"),
    ("control: 5", f"1: control: want {SOCKET}, got 5"),
    ("control: /" + "x" * 107, f"1: control: want {SOCKET}, got '/" + "x" * 63 + "'…"),
    ('control: "/a\\0b"', f"1: control: want {SOCKET}, got '/a\\x00b'"),
    ("control: [/a]", f"1: control: want {SOCKET}, got a list"),
    ("database: nothing", "1: database: want none, or an absolute path, got 'nothing'"),
    ("database: ''", "1: database: want none, or an absolute path, got ''"),
    ("database: /var/lib/", "1: database: want none, or an absolute path, got '/var/lib/'"),
    ("database: false", "1: database: want none, or an absolute path, got false"),
    ("database: 2026-11-23", "1: database: want none, or an absolute path, got 2026-11-23"),
    ("listen: tcp:10045", f"1: listen: {ENDPOINTS}, got 'tcp:10045'"),
    ("listen: []", f"1: listen: {ENDPOINTS}, got an empty list"),
    ("listen: {tcp: 10045}", f"1: listen: {ENDPOINTS}, got a mapping"),
    (
        "listen:\n  - tcp:10045\n  - tcp:10046\n  - tcp:10045\n",
        "4: listen[2]: 'tcp:10045' is given twice, first on line 2",
    ),
    ("listen: [10045]", f"1: listen[0]: {ENDPOINT}, got 10045"),
    ("listen: ['']", f"1: listen[0]: {ENDPOINT}, got ''"),
    ("listen:\n  -\n", f"2: listen[0]: {ENDPOINT}, got nothing"),
    ("listen: [tcp:0]", "1: listen[0]: want a TCP port from 1 to 65535, got 'tcp:0'"),
    ("listen: [tcp:65536]", "1: listen[0]: want a TCP port from 1 to 65535, got 'tcp:65536'"),
    ("listen: [tcp:port=0]", "1: listen[0]: want a TCP port from 1 to 65535, got 'tcp:port=0'"),
    (
        "listen: ['tcp:interface=127.0.0.1']",
        "1: listen[0]: want a TCP port from 1 to 65535, got 'tcp:interface=127.0.0.1'",
    ),
    ("listen: [tcp]", "1: listen[0]: want a TCP port from 1 to 65535, got 'tcp'"),
    ("listen: ['tcp6:x']", "1: listen[0]: want a TCP port from 1 to 65535, got 'tcp6:x'"),
    ("listen: [unix:policy.sock]", f"1: listen[0]: want unix: and {SOCKET}, got 'unix:policy.sock'"),
    (f"listen: [unix:/{LONG}{LONG}]", f"1: listen[0]: want unix: and {SOCKET}, got 'unix:/" + "x" * 58 + "'…"),
    ("listen: ['unix:mode=660']", f"1: listen[0]: want unix: and {SOCKET}, got 'unix:mode=660'"),
    ('listen: ["systemd:\\n"]', f"1: listen[0]: {ENDPOINT}, got 'systemd:\\n'"),
    ("listen:\n  - tcp: 10045\n", f"2: listen[0]: {ENDPOINT}, got a mapping"),
    ("account: sasl_username", "1: account: want a mapping, got 'sasl_username'"),
    (
        "account: {attributes: sasl_username}",
        "1: account.attributes: want a list of policy attributes such as [sasl_username], got 'sasl_username'",
    ),
    (
        "account: {attributes: []}",
        "1: account.attributes: want a list of policy attributes such as [sasl_username], got an empty list",
    ),
    (
        "account: {attributes: [sasl_user]}",
        "1: account.attributes[0]: unknown attribute, did you mean 'sasl_username'?",
    ),
    ("account: {attributes: [sender, sender]}", "1: account.attributes[1]: 'sender' is given twice, first on line 1"),
    ("account: {attributes: [recipient]}", f"1: account.attributes[0]: unknown attribute, want one of {ATTRIBUTES}"),
    ("account: {attributes: [5]}", "1: account.attributes[0]: want the name of a policy attribute, got 5"),
    ("account: {lowercase: 'no'}", "1: account.lowercase: want true or false, got 'no'"),
    ("account: {lower: true}", "1: account.lower: unknown key, did you mean 'lowercase'?"),
    ("account: {attributes: [qqq]}", f"1: account.attributes[0]: unknown attribute, want one of {ATTRIBUTES}"),
]

LIMITS: Rows = [
    ("limits:", "1: limits: empty: leave it out for the house rules, or write {} for no limits"),
    ("limits: ~", "1: limits: empty: leave it out for the house rules, or write {} for no limits"),
    ("limits: []", "1: limits: want a mapping of names to limits, got a list"),
    ("limits: none", "1: limits: want a mapping of names to limits, got 'none'"),
    ("limits:\n  foo:\n", "2: limits.foo: want a mapping with count, per, max, action, got nothing"),
    ("limits: {foo: 500}", "1: limits.foo: want a mapping with count, per, max, action, got 500"),
    (f"limits: {{-foo: {GOOD}}}", f"1: limits.-foo: {NAME}"),
    (f"limits: {{'a b': {GOOD}}}", f"1: limits.'a b': {NAME}"),
    (f"limits: {{'': {GOOD}}}", f"1: limits.'': {NAME}"),
    (f"limits: {{{LONG}x: {GOOD}}}", f"1: limits.'{LONG}'…: {NAME}"),
    (f"limits: {{500: {GOOD}}}", f"1: limits: {BAD_KEY}, got 500"),
    (
        "limits: {foo: {}}",
        [
            "1: limits.foo.count: missing, want messages, recipients, clients, senders or bytes",
            f"1: limits.foo.per: missing, {PER}",
            "1: limits.foo.max: missing, want a whole number above 0",
            "1: limits.foo.action: missing, want an access(5) action such as 'REJECT 5.7.1 text'",
        ],
    ),
    (limit(count="mails"), "3: limits.foo.count: want messages, recipients, clients, senders or bytes, got 'mails'"),
    (limit(count=None), "2: limits.foo.count: missing, want messages, recipients, clients, senders or bytes"),
    (limit(count=""), "3: limits.foo.count: want messages, recipients, clients, senders or bytes, got nothing"),
    (limit(per=None), f"2: limits.foo.per: missing, {PER}"),
    (limit(per="1800"), f"4: limits.foo.per: {PER}, got 1800"),
    (limit(per="1:30"), f"4: limits.foo.per: {PER}, got 1:30"),
    (limit(per="'30 m'"), f"4: limits.foo.per: {PER}, got '30 m'"),
    (limit(per="0s"), f"4: limits.foo.per: {PER}, got '0s'"),
    (limit(per="32d"), f"4: limits.foo.per: {PER}, got '32d'"),
    (limit(per="messages"), f"4: limits.foo.per: {PER}, got 'messages'"),
    (limit(per=""), f"4: limits.foo.per: {PER}, got nothing"),
    (limit(per="[30m]"), f"4: limits.foo.per: {PER}, got a list"),
    (limit(max=None), "2: limits.foo.max: missing, want a whole number above 0"),
    (limit(max="1:30"), "5: limits.foo.max: want a whole number above 0, got 1:30"),
    (limit(max="five"), "5: limits.foo.max: want a whole number above 0, got 'five'"),
    (limit(max=0), "5: limits.foo.max: want a whole number above 0, got 0"),
    (limit(max=-1), "5: limits.foo.max: want a whole number above 0, got -1"),
    (limit(max=500.0), "5: limits.foo.max: want a whole number above 0, got 500.0"),
    (limit(max="'500'"), "5: limits.foo.max: want a whole number above 0, got '500'"),
    (limit(max="true"), "5: limits.foo.max: want a whole number above 0, got true"),
    (limit(max="1000000000001"), "5: limits.foo.max: want a whole number of at most 1000000000000, got 1000000000001"),
    (limit(max="unlimited"), "5: limits.foo.max: want a whole number above 0, got 'unlimited'"),
    (limit(max=""), "5: limits.foo.max: want a whole number above 0, got nothing"),
    (limit(max="[5]"), "5: limits.foo.max: want a whole number above 0, got a list"),
    (limit(max="5e2"), "5: limits.foo.max: want a whole number above 0, got '5e2'"),
    (limit(max="!!int five"), "5: limits.foo.max: want a whole number above 0, got five"),
    (limit(max="9" * 5000), "5: limits.foo.max: want a whole number above 0, got '" + "9" * 64 + "'…"),
    (limit(max="0x_"), "5: limits.foo.max: want a whole number above 0, got 0x_"),
    (limit(action=None), "2: limits.foo.action: missing, want an access(5) action such as 'REJECT 5.7.1 text'"),
    (limit(action=450), "6: limits.foo.action: want a text after 450: to Postfix digits alone mean permit, got 450"),
    (
        limit(action=""),
        "6: limits.foo.action: want an access(5) action such as 'REJECT 5.7.1 text': "
        "to Postfix an empty one means permit, got nothing",
    ),
    (limit(action="KILL"), f"6: limits.foo.action: {ACCESS}, got 'KILL'"),
    (limit(action="no"), f"6: limits.foo.action: {ACCESS}, got no"),
    (limit(action="[HOLD]"), "6: limits.foo.action: want an access(5) action such as 'REJECT 5.7.1 text', got a list"),
    (
        limit(action="{max}"),
        "6: limits.foo.action: want an access(5) action such as 'REJECT 5.7.1 text', got a mapping",
    ),
    (
        limit(action='"HOLD\\nx"'),
        "6: limits.foo.action: want an action on one line, without control characters, got 'HOLD\\nx'",
    ),
    (limit(action="250 fine"), "6: limits.foo.action: want a reply code from 400 to 599, got '250 fine'"),
    (limit(action="REDIRECT"), "6: limits.foo.action: want an argument after REDIRECT, got 'REDIRECT'"),
    (
        limit(action="HOLD {by}"),
        "6: limits.foo.action: want one of {account} {limit} {max} {per} {count} {until} in braces, got 'HOLD {by}'",
    ),
    (
        limit(action='"450 {until}"'),
        "6: limits.foo.action: want a text after 450: to Postfix digits alone mean permit, got '450 {until}'",
    ),
    (
        limit(action="|\n      HOLD"),
        "6: limits.foo.action: want an action on one line, without control characters, got 'HOLD\\n'",
    ),
    (limit(action="x" * 70), f"6: limits.foo.action: {ACCESS}, got '{LONG}'…"),
    (
        limit(action="HOLD " + "é" * 200),
        "6: limits.foo.action: want an action of at most 400 bytes, got 'HOLD " + "é" * 59 + "'…",
    ),
    (limit(lock="yes"), f"7: limits.foo.lock: {LOCK}, got yes"),
    (limit(lock="forever"), f"7: limits.foo.lock: {LOCK}, got 'forever'"),
    (limit(lock="24"), f"7: limits.foo.lock: {LOCK}, got 24"),
    (limit(lock="3661d"), f"7: limits.foo.lock: {LOCK}, got '3661d'"),
    (limit(lock="0s"), f"7: limits.foo.lock: {LOCK}, got '0s'"),
    (
        limit(lock="until-unlocked", action="WARN"),
        "7: limits.foo.lock: a lock must refuse or hold, and WARN lets the mail pass",
    ),
    (limit(lock="''"), f"7: limits.foo.lock: {LOCK}, got ''"),
    (limit(observe="maybe"), "7: limits.foo.observe: want true or false, got 'maybe'"),
    (limit(lokc="no"), "7: limits.foo.lokc: unknown key, did you mean 'lock'?"),
    (limit(window="1h"), "7: limits.foo.window: unknown key, want one of count, per, max, action, lock, observe"),
    (
        limit(count="messages", per="message"),
        "4: limits.foo.per: want a duration such as 30m (a message counts as just 1 message), got 'message'",
    ),
    (limit(RECIPIENTS, max=99), f"5: limits.foo.max: {RFC_5321}, got 99"),
    (limit(RECIPIENTS, max=0), "5: limits.foo.max: want a whole number above 0, got 0"),
    (
        limit(RECIPIENTS, count="messages", max=5),
        "4: limits.foo.per: want a duration such as 30m (a message counts as just 1 message), got 'message'",
    ),
    (limit(count="clients", max=1001), "5: limits.foo.max: want a whole number of at most 1000 clients, got 1001"),
    (limit(count="senders", max=1001), "5: limits.foo.max: want a whole number of at most 1000 senders, got 1001"),
    (limit(count="clients", max="5k"), "5: limits.foo.max: want a whole number above 0, got '5k'"),
    (limit(max="5k"), "5: limits.foo.max: want a whole number above 0, got '5k'"),
    (
        limit(count="clients", per="message"),
        "4: limits.foo.per: want a duration such as 30m (a message comes from just 1 client), got 'message'",
    ),
    (
        limit(count="senders", per="message"),
        "4: limits.foo.per: want a duration such as 30m (a message has just 1 sender), got 'message'",
    ),
    (
        limit(count="bytes", per="message"),
        "4: limits.foo.per: want a duration such as 30m (for one message there is Postfix's message_size_limit), "
        "got 'message'",
    ),
    *(
        (limit(count="bytes", max=most), f"5: limits.foo.max: {SIZE}, got {shown}")
        for most, shown in (("0", "0"), ("0k", "'0k'"), ("500MB", "'500MB'"), ("1.5G", "'1.5G'"), ("-5", "-5"))
    ),
    (limit(count="bytes", max=None), f"2: limits.foo.max: missing, {SIZE}"),
    (limit(count="bytes", max="1025T"), "5: limits.foo.max: want a size of at most 1024T, got '1025T'"),
    (limit(count="bytes", max=""), f"5: limits.foo.max: {SIZE}, got nothing"),
    (
        limit(count="byte", max="500M"),
        "3: limits.foo.count: want messages, recipients, clients, senders or bytes, got 'byte'",
    ),
    (f"limits:\n  foo: {GOOD}\n  bar: {GOOD}\n  foo: {{}}\n", "4: limits.foo: duplicate key, first on line 2"),
]

OVERRIDES: Rows = [
    (
        limit(count="bytes", max="5G") + override("{accounts: [a], limits: {foo: lots}}"),
        f"8: overrides[0].limits.foo: {SIZE}, or unlimited, got 'lots'",
    ),
    (
        limit(count="senders", max=5) + override("{accounts: [a], limits: {foo: 1001}}"),
        "8: overrides[0].limits.foo: want a whole number of at most 1000 senders, got 1001",
    ),
    ("overrides: {}", "1: overrides: want a list of overrides, each with accounts and limits, got a mapping"),
    ("overrides: x", "1: overrides: want a list of overrides, each with accounts and limits, got 'x'"),
    ("overrides: [x]", "1: overrides[0]: want a mapping with accounts and limits, got 'x'"),
    ("overrides:\n  -\n", "2: overrides[0]: want a mapping with accounts and limits, got nothing"),
    (
        override("{}"),
        [
            f"2: overrides[0].accounts: missing, {GLOBS}",
            "2: overrides[0].limits: missing, want a mapping of limits to their maxima",
        ],
    ),
    (override("accounts: [a]"), "2: overrides[0].limits: missing, want a mapping of limits to their maxima"),
    (override("limits: {messages-per-half-hour: 5}"), f"2: overrides[0].accounts: missing, {GLOBS}"),
    (override("accounts:\n    limits: {messages-per-half-hour: 5}"), f"2: overrides[0].accounts: {GLOBS}, got nothing"),
    (
        override("{accounts: [], limits: {messages-per-half-hour: 5}}"),
        f"2: overrides[0].accounts: {GLOBS}, got an empty list",
    ),
    (override("{accounts: a@b, limits: {messages-per-half-hour: 5}}"), f"2: overrides[0].accounts: {GLOBS}, got 'a@b'"),
    (
        override("{accounts: [a, ''], limits: {messages-per-half-hour: 5}}"),
        "2: overrides[0].accounts[1]: want an account name or shell glob, in quotes, got ''",
    ),
    (
        override("{accounts: [12345], limits: {messages-per-half-hour: 5}}"),
        "2: overrides[0].accounts[0]: want an account name or shell glob, in quotes, got 12345",
    ),
    (
        override("{accounts: [a], limits: {}}"),
        "2: overrides[0].limits: want a mapping of limits to their maxima, got an empty mapping",
    ),
    (
        override("{accounts: [a], limits: [5]}"),
        "2: overrides[0].limits: want a mapping of limits to their maxima, got a list",
    ),
    (
        override("{accounts: [a], limits: {messages-per-halfhour: 5}}"),
        "2: overrides[0].limits.messages-per-halfhour: unknown limit, did you mean 'messages-per-half-hour'?",
    ),
    (
        override("{accounts: [a], limits: {foo: 5}}"),
        "2: overrides[0].limits.foo: unknown limit, want one of recipients-per-message, messages-per-half-hour",
    ),
    (
        override("{accounts: [a], limits: {messages-per-half-hour: five}}"),
        f"2: overrides[0].limits.{HALF_HOUR}: {MAXIMUM}, got 'five'",
    ),
    (
        override("{accounts: [a], limits: {messages-per-half-hour: 0}}"),
        f"2: overrides[0].limits.{HALF_HOUR}: {MAXIMUM}, got 0",
    ),
    (
        override("{accounts: [a], limits: {messages-per-half-hour: }}"),
        f"2: overrides[0].limits.{HALF_HOUR}: {MAXIMUM}, got nothing",
    ),
    (
        override("{accounts: [a], limits: {messages-per-half-hour: 1000000000001}}"),
        "2: overrides[0].limits.messages-per-half-hour: "
        "want a whole number of at most 1000000000000, got 1000000000001",
    ),
    (
        override("{accounts: [a], limits: {recipients-per-message: 99}}"),
        f"2: overrides[0].limits.recipients-per-message: {RFC_5321}, got 99",
    ),
    (
        override("{account: [a], limits: {messages-per-half-hour: 5}}"),
        [
            "2: overrides[0].account: unknown key, did you mean 'accounts'?",
            f"2: overrides[0].accounts: missing, {GLOBS}",
        ],
    ),
    (
        override("{accounts: [a], limits: {messages-per-half-hour: 5, messages-per-half-hour: 6}}"),
        "2: overrides[0].limits.messages-per-half-hour: duplicate key, first on line 2",
    ),
    (
        override("{accounts: [a], limits: {<<: 5}}"),
        "2: overrides[0].limits: merge keys (<<) are not read here: write the keys out",
    ),
    (
        override("{accounts: [a], limits: {messages-per-half-hour: Unlimited}}"),
        f"2: overrides[0].limits.{HALF_HOUR}: {MAXIMUM}, got 'Unlimited'",
    ),
    (
        "limits: {}\noverrides:\n  - accounts: [a]\n    limits: {messages-per-half-hour: 5}\n",
        "4: overrides[0].limits.messages-per-half-hour: unknown limit, there are none",
    ),
    (
        limit(RECIPIENTS, action="KILL") + override("{accounts: [a], limits: {foo: 99}}"),
        [f"6: limits.foo.action: {ACCESS}, got 'KILL'", f"8: overrides[0].limits.foo: {RFC_5321}, got 99"],
    ),
    (
        limit(max="five") + override("{accounts: [a], limits: {foo: 5, fooo: 5}}"),
        [
            "5: limits.foo.max: want a whole number above 0, got 'five'",
            "8: overrides[0].limits.fooo: unknown limit, did you mean 'foo'?",
        ],
    ),
]


@pytest.mark.parametrize(("text", "told"), SCALARS)
def test_a_wrong_value_of_a_section_is_told_with_what_was_wanted(text: str, told: str | list[str]) -> None:
    """Endpoints, paths, attributes and switches say what they want, and what they got."""
    assert problems(text) == expected(told)


@pytest.mark.parametrize(("text", "told"), LIMITS)
def test_a_wrong_limit_is_told_with_the_key_that_is_wrong(text: str, told: str | list[str]) -> None:
    """A limit that would not do what its author meant is not read."""
    assert problems(text) == expected(told)


@pytest.mark.parametrize(("text", "told"), OVERRIDES)
def test_a_wrong_override_is_told(text: str, told: str | list[str]) -> None:
    """An override that would concern nobody, or change nothing, is not read."""
    assert problems(text) == expected(told)


def test_every_problem_is_told_in_the_order_of_the_lines() -> None:
    """Whoever has made five mistakes learns of all five at once."""
    text = (
        "overrides: x\n"
        "observe: perhaps\n"
        "limits:\n"
        "  foo:\n"
        "    cuont: messages\n"
        "    per: 1800\n"
        "    max: 1.5\n"
        "    action: HOLD\n"
        "listen: [tcp:0, tcp:10045]\n"
    )
    assert problems(text) == [
        "1: overrides: want a list of overrides, each with accounts and limits, got 'x'",
        "2: observe: want true or false, got 'perhaps'",
        "4: limits.foo.count: missing, want messages, recipients, clients, senders or bytes",
        "5: limits.foo.cuont: unknown key, did you mean 'count'?",
        f"6: limits.foo.per: {PER}, got 1800",
        "7: limits.foo.max: want a whole number above 0, got 1.5",
        "9: listen[0]: want a TCP port from 1 to 65535, got 'tcp:0'",
    ]


def test_what_twisted_says_of_an_endpoint_is_told() -> None:
    """An endpoint that policyd itself knows nothing about is for the daemon's callable to judge."""
    asked = []

    def endpoint_problem(endpoint: str) -> str | None:
        asked.append(endpoint)
        return "no such\nendpoint" + " x" * 1000 if endpoint.startswith("tpc") else None

    with pytest.raises(ConfigError) as caught:
        parse_config("listen: [tcp:0, 'tpc:1', 'tcp:2']", "policyd.yaml", endpoint_problem)
    assert [str(problem) for problem in caught.value.problems] == [
        "policyd.yaml:1: listen[0]: want a TCP port from 1 to 65535, got 'tcp:0'",
        "policyd.yaml:1: listen[1]: want an endpoint string that Twisted knows "
        f"(no such endpoint{' x' * 92}), got 'tpc:1'",
    ]
    assert asked == ["tpc:1", "tcp:2"]
