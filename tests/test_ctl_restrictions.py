"""What Postfix's settings mean: words, `$name`, restriction lists and policy services, read as Postfix reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.ctl_doctor import diagnosis, text
from policyd.ctl_postconf import parse_postfix, read_postfix
from policyd.ctl_restrictions import (
    MAX_STEPS,
    MAX_VALUE,
    PolicyService,
    Step,
    alone,
    expand,
    joined,
    level,
    parse_policy_service,
    seconds,
    steps,
    words,
)
from tests.doctoring import LISTEN, STATUS, MadeUp, postconf, require_postconf, write

PLAIN = st.text(st.characters(codec="ascii", exclude_characters=", \t\r\n{}"), min_size=1, max_size=8)
BRACED = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{ " + ", ".join(parts) + " }"), max_leaves=6
)
SEPARATOR = st.text(st.sampled_from(", \t\r\n"), min_size=1, max_size=3)


@given(st.lists(st.tuples(BRACED, SEPARATOR)), SEPARATOR)
def test_words_are_what_separators_separate(parts: list[tuple[str, str]], before: str) -> None:
    """Commas and blanks, several too, stand between words; those in braces belong to one."""
    assert words(before + "".join(word + gap for word, gap in parts)) == [word for word, _ in parts]


@given(st.text())
def test_words_of_any_text_lose_nothing_but_separators(value: str) -> None:
    """Braces that do not match harm nothing."""
    assert all(words(value))
    assert [c for c in value if c not in ", \t\r\n{}"] == [c for c in "".join(words(value)) if c not in ", \t\r\n{}"]


@given(st.lists(BRACED.filter(lambda word: "warn_if_reject" not in word)))
def test_words_joined_are_the_same_words(listed: list[str]) -> None:
    """A list that is written again says what it said."""
    assert words(joined(listed)) == listed


def test_joined_keeps_an_argument_with_its_restriction() -> None:
    """As a person writes it."""
    listed = ["warn_if_reject", "check_policy_service", "{ a, b=c }", "check_sasl_access", "hash:x", "permit"]
    assert joined(listed) == "warn_if_reject check_policy_service { a, b=c }, check_sasl_access hash:x, permit"


VALUES = {"a": "x", "empty": "", "b": "<$a>", "c": "${b}$(b)", "loop": "$loop", "compatibility_level": "3.6"}


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("$a, ${a} $(a) $$a $nosuch.", "x, x x $a ."),
        ("$c", "<x><x>"),
        ("$loop$a", "x"),
        ("${a?yes}${empty?no}${nosuch:none}${a:no}", "yesnone"),
        ("${a?{yes}:{no}} ${empty?{yes}:{no}} ${a?{$b}}", "yes no <x>"),
        ("${{$a} == {x} ? {same} : {other}}", "same"),
        ("${{10} > {9} ? {number} : {text}}", "number"),
        ("${{$a} != {x} ? {other}}.", "."),
        ("${{$compatibility_level} <level {3.6} ? {no} : {yes}}", "yes"),
        ("${{$compatibility_level} <level {3.10} ? {no} : {yes}}", "no"),
        ("${{$a} ~ {x} ? {a} : {b}}${", ""),
        ("100$", "100$"),
    ],
)
def test_references_are_expanded(value: str, meaning: str) -> None:
    """All of Postfix's forms, and what refers to itself is nothing."""
    assert expand(value, lambda name: VALUES.get(name, "")) == meaning


def test_all_defaults_of_postfix_are_expanded_as_postconf_does(tmp_path: Path) -> None:
    """Each parameter of a real Postfix means what `postconf -x` says, where it refers to parameters alone."""
    require_postconf()
    write(tmp_path, {"compatibility_level": "3.6", "one": "${smtpd_recipient_limit?{$two}:{no}}", "two": "$myhostname",
                     "smtpd_data_restrictions": "${{$one} == {$two} ? {permit $one} : {reject}}"})  # fmt: skip
    postfix = read_postfix(str(tmp_path))
    lines = postconf(tmp_path, "-x").split("\n")
    expanded = {name.strip(): value.split() for name, _, value in (line.partition("=") for line in lines)}
    compared = [name for name in postfix.main if name != "process_id" and "$" not in "".join(expanded[name])]
    assert len(compared) > 500
    assert {name: postfix.value(name).split() for name in compared} == {name: expanded[name] for name in compared}


@pytest.mark.parametrize(
    ("value", "name"), [("$a", "a"), ("${a}", "a"), (" $(a) ", "a"), ("$a b", ""), ("a", ""), ("${a?b}", ""), ("", "")]
)
def test_reference_alone_is_known(value: str, name: str) -> None:
    """A list that is nothing but another is written there."""
    assert alone(value) == name


@pytest.mark.parametrize(
    ("value", "length"),
    [("100s", 100), ("10", 10), ("2m", 120), ("1h", 3600), ("1d", 86400), ("1w", 604800), ("x", None)],
)
def test_times_are_seconds(value: str, length: int | None) -> None:
    """In Postfix's units."""
    assert seconds(value) == length


def test_levels_are_compared_by_number() -> None:
    """3.10 is more than 3.6, and what is no level is 0."""
    assert level("3.10") > level("3.6") > level("2") > level("x") == (0,)


def test_list_is_read_in_steps() -> None:
    """Arguments belong to their restriction, and classes are followed to their end."""
    values = {"inner": "permit_mynetworks, check_policy_service inet:h:2", "outer": "inner reject"}
    listed = "Check_Policy_Service $svc check_sasl_access hash:/permit, warn_if_reject reject outer sleep 1 PERMIT"
    values["svc"] = "{ unix:p, timeout=1s }"
    assert steps(listed, lambda name: values.get(name, ""), ("inner", "outer")) == [
        Step("check_policy_service", "{ unix:p, timeout=1s }"),
        Step("check_sasl_access", "hash:/permit"),
        Step("reject", "", True),
        Step("permit_mynetworks"),
        Step("check_policy_service", "inet:h:2"),
        Step("reject"),
        Step("sleep", "1"),
        Step("permit"),
    ]


SERVICES = {
    "inet:127.0.0.1:10045": PolicyService("inet:127.0.0.1:10045"),
    "{inet:[::1]:10045}": PolicyService("inet:[::1]:10045"),
    "{ unix:p, timeout=10s default_action=DUNNO }": PolicyService(
        "unix:p", {"timeout": "10s", "default_action": "DUNNO"}
    ),
    "{ unix:p, { default_action = 451 4.3.5 a, b } {policy_context=x} }": PolicyService(
        "unix:p", {"default_action": "451 4.3.5 a, b", "policy_context": "x"}
    ),
    "{}": PolicyService(""),
}


@pytest.mark.parametrize(("argument", "service"), SERVICES.items())
def test_policy_service_is_taken_apart(argument: str, service: PolicyService) -> None:
    """A server, alone or in braces with its options; what is written again means the same."""
    assert parse_policy_service(argument) == service
    assert parse_policy_service(service.written()) == service


@pytest.mark.parametrize(
    ("server", "kind", "host", "port"),
    [
        ("inet:h:1", "inet", "h", "1"),
        ("inet:[::1]:25", "inet", "::1", "25"),
        ("inet:10045", "inet", "localhost", "10045"),
    ],
)
def test_server_has_host_and_port(server: str, kind: str, host: str, port: str) -> None:
    """However it is written."""
    service = PolicyService(server)
    assert (service.kind, *service.host_and_port) == (kind, host, port)


HOSTILE = st.text(
    st.one_of(st.sampled_from("${}(),?:= \t\x1b\x00\u202e"), st.characters(exclude_characters="\n", codec="utf-8")),
    max_size=60,
)
PIECES = st.lists(
    st.one_of(
        HOSTILE,
        st.sampled_from(
            ["check_policy_service", "$policyd", "inet:127.0.0.1:10045", "permit", "ours", "warn_if_reject", "unix:a/b"]
        ),
    ),
    max_size=8,
).map(" ".join)
NAMES = (
    *("smtpd_client_restrictions", "smtpd_recipient_restrictions", "smtpd_data_restrictions", "policyd", "ours"),
    *("smtpd_restriction_classes", "queue_directory", "smtpd_recipient_limit", "smtpd_proxy_filter", "mail_owner"),
    *(
        "smtpd_policy_service_timeout",
        "smtpd_policy_service_default_action",
        "compatibility_level",
        "smtpd_delay_reject",
    ),
)


@given(st.dictionaries(st.sampled_from(NAMES), PIECES), st.dictionaries(st.sampled_from(NAMES), PIECES))
def test_no_configuration_is_too_strange(main: dict[str, str], overrides: dict[str, str]) -> None:
    """Whatever stands in it, faults are named, and nothing that a terminal would obey is printed."""
    lines = "".join(f"{name} = {value}\n" for name, value in {"smtpd_sasl_auth_enable": "yes", **main}.items())
    own = "".join(f"submission/inet/{name} = {value}\n" for name, value in overrides.items())
    postfix = parse_postfix(lines, lines, own, "submission inet n - y - - smtpd -o x=y\n")
    value = diagnosis(postfix, STATUS, None, [LISTEN, "unix:/q/a/b"], MadeUp())
    assert all(line.isprintable() for line in text(value))


@pytest.mark.parametrize("inner", ["", "permit", "x" * 50])
def test_what_grows_without_end_is_cut(inner: str) -> None:
    """Parameters and classes that double twenty times over cost no time and no memory."""
    values = {f"p{n}": f"$p{n + 1} $p{n + 1}" for n in range(30)} | {"p30": inner}
    classes = {f"c{n}": f"c{n + 1} c{n + 1}" for n in range(30)} | {"c30": inner}
    assert len(expand("$p0", lambda name: values.get(name, ""))) <= MAX_VALUE
    assert len(steps("c0", lambda name: classes.get(name, ""), classes)) <= MAX_STEPS
    assert len(steps("a a", lambda name: "a a", ["a"])) == 0
