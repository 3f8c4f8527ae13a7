"""The config file: what it means, and that nothing in it is ever a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.actions import parse_action
from policyd.config import MAX_CONFIG, Config, ConfigError, parse_config, read_config
from policyd.limits import HOUSE_RULES, UNTIL_UNLOCKED, Limit, Override
from tests.configs import GOOD, MESSAGES, RECIPIENTS, limit

SHIPPED = Path(__file__).parent.parent / "etc" / "policyd.yaml"


NOBODY = 65534


def parse(text: str) -> Config:
    """Read a config."""
    return parse_config(text, "policyd.yaml")


def test_the_shipped_config_says_what_holds_without_one() -> None:
    """Installing the package changes nothing until somebody edits the file."""
    assert read_config(SHIPPED) == Config()


def test_maxima_of_bytes_may_be_sizes() -> None:
    """A k is 1024 bytes; a plain number is of bytes, and of an override, too."""
    for most, bytes_ in (("500M", 500 * 1024**2), ("10k", 10240), ("2G", 2 * 1024**3), ("'1t'", 1024**4), (4096, 4096)):
        config = parse(
            f"limits:\n  foo: {{count: bytes, per: 1d, max: {most}, action: HOLD}}\n"
            f"overrides:\n"
            f"  - {{accounts: [a], limits: {{foo: {most}}}}}\n"
            f"  - {{accounts: [b], limits: {{foo: unlimited}}}}\n"
        )
        assert config.limits[0].max == bytes_
        assert [override.maxima for override in config.overrides] == [(("foo", bytes_),), (("foo", None),)]


def test_the_commented_examples_of_the_shipped_config_can_be_used() -> None:
    """Whoever takes away the `# ` of an example has a config that works."""
    lines = SHIPPED.read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("  # # "))
    text = "\n".join([*lines[:start], *(line.replace("  # ", "  ", 1) for line in lines[start:])])
    for name in (
        "control",
        "database",
        "history",
        "history_rows",
        "max_accounts",
        "observe",
        "  lowercase",
        "  - unix",
    ):
        indent = name[: len(name) - len(name.lstrip())]
        assert text.count(f"\n{indent}# {name.lstrip()}:") == 1
        text = text.replace(f"\n{indent}# {name.lstrip()}:", f"\n{name}:")
    config = parse(text)
    assert config.control == "/run/policyd/control.sock"
    assert config.database == "/var/lib/policyd/policyd.sqlite"
    assert (config.history, config.history_rows) == (7 * 86400.0, 1_000_000)
    assert config.max_accounts == 1_000_000
    assert config.observe
    assert config.listen == (
        "tcp:10045:interface=127.0.0.1",
        "unix:/var/spool/postfix/policyd/policy.sock:mode=660",
    )
    assert [(limit.name, limit.count, limit.per, limit.max) for limit in config.limits[2:]] == [
        ("clients-per-hour", "clients", "1h", 20),
        ("senders-per-hour", "senders", "1h", 10),
        ("bytes-per-day", "bytes", "1d", 1024**3),
    ]
    assert config.overrides == (
        Override(
            ("news@example.com", "*@lists.example.com"),
            (("messages-per-half-hour", 5000), ("recipients-per-message", None)),
        ),
        Override(("scanner@example.com",), (("messages-per-half-hour", 20),)),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "# nothing\n",
        "---\n",
        "---\n...\n",
        "\ufeff# Windows\r\n",
        "~",
        "{}",
        "listen:\ncontrol:\ndatabase:\naccount:\noverrides:\nobserve:\n",
        "control: null\ndatabase: ~\naccount:\n  attributes:\n  lowercase:\n",
        "account: {}\noverrides: []\n",
    ],
)
def test_what_is_absent_or_empty_has_its_default(text: str) -> None:
    """Commenting out all that stands beneath a section is the same as leaving it out."""
    assert parse(text) == Config()
    assert parse_config(text.encode(), "policyd.yaml") == Config()


def test_a_config_is_read_whole() -> None:
    """Every key has its place."""
    config = parse(
        "listen:\n"
        "  - tcp:10045:interface=127.0.0.1\n"
        "  - unix:/run/policy.sock:mode=660:backlog=1024\n"
        "control: /run/other/control.sock\n"
        "database: none\n"
        "account:\n"
        "  attributes: [sasl_username, client_address]\n"
        "  lowercase: no\n"
        "limits:\n"
        "  recipients-per-message: {count: recipients, per: message, max: 100, action: HOLD, lock: 24h, observe: yes}\n"
        "  burst: {count: messages, per: 1h30m, max: 5_000, action: REJECT 5.7.1 Later, lock: until-unlocked}\n"
        "overrides:\n"
        "  - accounts: [anna, '*@lists.example.com']\n"
        "    limits: {burst: unlimited, recipients-per-message: 100}\n"
    )
    assert config == Config(
        listen=("tcp:10045:interface=127.0.0.1", "unix:/run/policy.sock:mode=660:backlog=1024"),
        control="/run/other/control.sock",
        database="none",
        attributes=("sasl_username", "client_address"),
        lowercase=False,
        limits=(
            Limit("recipients-per-message", "recipients", "message", None, 100, parse_action("HOLD"), 86400.0, True),
            Limit("burst", "messages", "1h30m", 5400.0, 5000, parse_action("REJECT 5.7.1 Later"), UNTIL_UNLOCKED),
        ),
        overrides=(Override(("anna", "*@lists.example.com"), (("burst", None), ("recipients-per-message", 100))),),
    )


def test_limits_replace_the_house_rules() -> None:
    """Who writes limits of his own has those, and no others."""
    assert [limit.name for limit in parse(MESSAGES).limits] == ["foo"]
    assert parse("limits: {}").limits == ()


@pytest.mark.parametrize(
    ("text", "maximum"),
    [("500", 500), ("0x1F4", 500), ("1_000", 1000), ("010", 8), ("1", 1), ("+5", 5), ("1000000000000", 10**12)],
)
def test_a_whole_number_is_what_yaml_takes_it_for(text: str, maximum: int) -> None:
    """YAML 1.1 has more ways to write one than most people know."""
    assert parse(limit(max=text)).limits[0].max == maximum


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("no", None),
        ("off", None),
        ("false", None),
        ("'no'", None),
        ("", None),
        ("until-unlocked", UNTIL_UNLOCKED),
        ("1s", 1.0),
        ("24h", 86400.0),
        ("3660d", 3660 * 86400.0),
    ],
)
def test_a_lock_lasts_as_long_as_it_says(text: str, seconds: float | None) -> None:
    """YAML's own `no` is understood, and so is one in quotes."""
    assert parse(limit(lock=text)).limits[0].lock_for == seconds


@pytest.mark.parametrize(("text", "period"), [("1s", 1.0), ("31d", 31 * 86400.0), ("1h30m", 5400.0), ("'30m'", 1800.0)])
def test_a_window_is_from_1_second_to_31_days(text: str, period: float) -> None:
    """It is shown as it was written."""
    read = parse(limit(per=text)).limits[0]
    assert (read.per, read.period) == (text.strip("'"), period)


def test_100_recipients_per_message_may_be_the_maximum() -> None:
    """RFC 5321 4.5.3.1.8 asks for no more than that."""
    assert parse(limit(RECIPIENTS, max=100)).limits[0].max == 100


def test_an_observed_limit_may_have_a_lock() -> None:
    """Trying a limit out needs no other change than `observe`."""
    read = parse(limit(lock="24h", observe="true")).limits[0]
    assert (read.lock_for, read.observe) == (86400.0, True)


@pytest.mark.parametrize("text", ["observe: true\n", f"observe: on\n{MESSAGES}"])
def test_observe_at_the_top_holds_for_every_limit(text: str) -> None:
    """The house rules included."""
    config = parse(text)
    assert config.observe
    assert all(limit.observe for limit in config.limits)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:1",
        "tcp:65535",
        "tcp:port=10045:interface=127.0.0.1",
        r"tcp6:10045:interface=\:\:1",
        "tcp:interface=127.0.0.1:port=10045",
        "unix:/run/policy.sock",
        r"unix:/run/a\:b\=c",
        "unix:address=/run/policy.sock:mode=660",
        "systemd:domain=INET:index=0",
        "haproxy:tcp:10045",
    ],
)
def test_an_endpoint_may_be_any_that_twisted_knows(endpoint: str) -> None:
    """Only what must be wrong is refused before Twisted sees it."""
    assert parse(f"listen: ['{endpoint}']").listen == (endpoint,)


def test_lists_may_be_shared_by_anchors() -> None:
    """Anchors and aliases are YAML, as long as nothing contains itself."""
    config = parse(f"limits: {{foo: &foo {GOOD}, bar: *foo}}")
    assert [limit.name for limit in config.limits] == ["foo", "bar"]


def test_a_limit_may_have_a_name_of_64_characters() -> None:
    """Longer ones would not fit into a line of the log."""
    assert parse(f"limits: {{{'x' * 64}: {GOOD}}}").limits[0].name == "x" * 64


def test_the_rules_are_those_of_the_config() -> None:
    """What is read is what is enforced."""
    text = "account: {lowercase: false}\noverrides:\n  - {accounts: [Anna], limits: {messages-per-half-hour: 9}}\n"
    rules = parse(text).rules()
    assert [limit.max for limit in rules.limits_for("Anna")] == [5000, 9]
    assert rules.limits_for("anna") == HOUSE_RULES


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("", "2 limits, 0 overrides, listening on tcp:10045:interface=127.0.0.1"),
        (
            "observe: true\nlisten: ['tcp:1', 'tcp:2']\nlimits: {foo: "
            + GOOD
            + "}\noverrides: [{accounts: [a], limits: {foo: 5}}]\n",
            "1 limit, 1 override, listening on tcp:1, tcp:2, observing only",
        ),
    ],
)
def test_a_config_is_summed_up_in_one_line(text: str, summary: str) -> None:
    """`policyd --check` says what it has read."""
    assert parse(text).summary() == summary


def unreadable(path: Path) -> str:
    """Return what is told of a file that cannot be read."""
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    return str(caught.value).removeprefix(str(path))


def test_a_file_that_cannot_be_read_is_told_without_a_traceback(tmp_path: Path) -> None:
    """`-c` naming no file is a config error like any other."""
    assert unreadable(tmp_path / "absent.yaml") == ": cannot be read: No such file or directory"
    assert unreadable(tmp_path) == ": cannot be read: Is a directory"
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        read_config("a\x00b")


def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    """The daemon's user needs to read its config."""
    path = tmp_path / "policyd.yaml"
    path.touch(mode=0o000)
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)  # root may read everything
    try:
        assert unreadable(path) == ": cannot be read: Permission denied"
    finally:
        os.seteuid(me)


def test_a_file_has_a_largest_size(tmp_path: Path) -> None:
    """A log given in place of the config is not parsed for minutes."""
    path = tmp_path / "policyd.yaml"
    path.write_bytes(b"#" * MAX_CONFIG)
    assert read_config(path) == Config()
    path.write_bytes(b"#" * (MAX_CONFIG + 1))
    assert unreadable(path) == ": want a file of at most 1048576 bytes"


def test_the_problems_of_a_file_begin_with_its_path(tmp_path: Path) -> None:
    """An editor can jump there."""
    path = tmp_path / "policyd.yaml"
    path.write_text("limits:\n  foo: 5\n")
    assert unreadable(path) == ":2: limits.foo: want a mapping with count, per, max, action, got 5"


def check_any(text: str | bytes) -> None:
    """Read a text that may be anything."""
    try:
        config = parse_config(text, "policyd.yaml")
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
        lines = [problem.line or 0 for problem in error.problems]
    else:
        config.rules()
        assert "\n" not in config.summary()
        return
    assert problems
    assert lines == sorted(lines)
    for problem in problems:
        assert problem.startswith("policyd.yaml:")
        assert len(problem.splitlines()) == 1
        assert len(problem) < 2000
        assert problem.encode()


TOKENS = st.sampled_from(
    [
        *("listen", "control", "database", "account", "attributes", "lowercase", "limits", "overrides", "observe"),
        *("accounts", "count", "per", "max", "action", "lock", "foo", "messages", "recipients", "message", "unlimited"),
        *(
            ": ",
            ":\n",
            "\n",
            "\n  ",
            "\n    ",
            "\n  - ",
            "- ",
            ", ",
            "[",
            "]",
            "{",
            "}",
            "&a ",
            "*a",
            "<<",
            "? ",
            "|\n",
        ),
        *("30m", "500", "1:30", "0x_", "no", "true", "~", "1.5", "HOLD", "REJECT {max}", "450", "/run/x", "tcp:0"),
        *("!!int ", "!!str ", "!x ", "!!bool ", "'", '"', "\\0", "\\ud800", "\\UFFFFFFFF", "#", "\t", "---\n", "...\n"),
    ]
)


@given(st.text() | st.lists(TOKENS, max_size=40).map("".join))
def test_any_text_is_a_config_or_refused(text: str) -> None:
    """Nothing that a file can hold is a traceback, or a problem that takes more than a line."""
    check_any(text)


@given(st.binary())
def test_any_bytes_are_a_config_or_refused(data: bytes) -> None:
    """A file of whatever kind is told what it lacks."""
    check_any(data)


@given(st.data())
def test_a_damaged_config_is_read_or_refused(data: st.DataObject) -> None:
    """A piece cut out of the shipped config, or put into it, is never a traceback."""
    text = "".join(line for line in SHIPPED.read_text().splitlines(keepends=True) if not line.lstrip().startswith("#"))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    check_any(text[:start] + data.draw(TOKENS | st.text(max_size=3)) + text[end:])


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 5_000, "a: " + "[" * 31 + "]" * 31, "!" * 100_000],
)
def test_what_is_nested_without_end_is_refused(text: str) -> None:
    """Neither the stack nor the patience of the reader is exhausted."""
    check_any(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("no", 0.0), ("1m", 60.0), ("1d12h", 129_600.0), ("366d", 31_622_400.0)]
)
def test_the_history_is_kept_for_a_time(text: str, seconds: float) -> None:
    """Or not at all."""
    assert parse(f"history: {text}").history == seconds
