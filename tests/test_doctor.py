"""policyctl doctor finds each fault in a configuration that postconf has read, and its lines mend it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from policyd.ctl_doctor import exit_status, text
from policyd.ctl_wiring import WHY
from tests.daemon import REPOSITORY
from tests.doctoring import LOGIN, MAIN, MASTER, POLICYD, QUEUE, SOCKET, STATUS, MadeUp, codes, diagnose, mend, write
from tests.test_postfix_troubles import example_main_cf

RCPT, DATA = "smtpd_recipient_restrictions", "smtpd_data_restrictions"
HERE = {
    "mua_recipient_restrictions": "",
    "mua_data_restrictions": "",
    RCPT: "check_policy_service $policyd",
    DATA: "check_policy_service $policyd",
}
"""All in main.cf, for a master.cf that says nothing of it."""
PLAIN = LOGIN.format(chroot="n")
CHROOT = LOGIN.format(chroot="y")


@dataclass(frozen=True)
class Case:
    """A configuration with one fault."""

    code: str
    main: Mapping[str, str] = field(default_factory=dict)
    master: str = MASTER
    status: Mapping[str, Any] = field(default_factory=dict)
    parameter: str | None = None


def limits(**other: object) -> dict[str, Any]:
    """Return a state with one limit more."""
    one = {"name": "h", "count": "messages", "per": "30m", "max": 100, "action": "REJECT", "observe": False}
    return {"limits": [*STATUS["limits"], {**one, **other}]}


def without(option: str) -> str:
    """Return the recommended master.cf without one of its options."""
    return "".join(line for line in MASTER.splitlines(keepends=True) if option not in line)


ASKED = "check_policy_service $policyd"
CASES = {
    "no hook at RCPT": Case("no-rcpt-hook", {"mua_recipient_restrictions": "permit_sasl_authenticated, reject"}),
    "no hook at DATA": Case("no-data-hook", {"mua_data_restrictions": ""}),
    "no list at RCPT": Case("no-rcpt-hook", master=without(RCPT)),
    "no list at DATA": Case("no-data-hook", master=without(DATA)),
    "no hook at RCPT in main.cf": Case("no-rcpt-hook", {**HERE, RCPT: ""}, PLAIN),
    "no hook at DATA in main.cf": Case("no-data-hook", {**HERE, DATA: "reject_unauth_pipelining"}, PLAIN),
    "an override without a hook": Case("no-data-hook", HERE, PLAIN.strip() + " -o smtpd_data_restrictions=permit\n"),
    "behind permit_sasl_authenticated": Case(
        "behind-permit", {"mua_recipient_restrictions": f"permit_sasl_authenticated {ASKED},reject"}
    ),
    "behind permit_mynetworks": Case("behind-permit", {"mua_data_restrictions": f"permit_mynetworks, {ASKED}"}),
    "behind permit": Case("behind-permit", {"mua_data_restrictions": f"PERMIT, {ASKED}"}),
    "behind permit in a class": Case(
        "behind-permit",
        {"smtpd_restriction_classes": "ours", "ours": "permit_mynetworks", "mua_data_restrictions": f"ours, {ASKED}"},
    ),
    "behind permit in the relay list": Case(
        "behind-permit",
        {
            **HERE,
            RCPT: "",
            "smtpd_relay_restrictions": f"permit_mynetworks, permit_sasl_authenticated, {ASKED}, reject",
        },
        PLAIN,
    ),
    "behind reject": Case("behind-reject", {"mua_data_restrictions": f"reject, {ASKED}"}),
    "only in the sender list": Case("wrong-list", {**HERE, RCPT: "", "smtpd_sender_restrictions": ASKED}, PLAIN),
    "only in the client list, at once": Case(
        "wrong-list",
        {**HERE, RCPT: "", "smtpd_client_restrictions": ASKED, "smtpd_delay_reject": "no"},
        PLAIN,
    ),
    "twice in a list": Case("asked-twice", {"mua_data_restrictions": f"{ASKED}, {ASKED}, permit"}),
    "in two lists": Case("asked-twice", {**HERE, "smtpd_sender_restrictions": ASKED}, PLAIN),
    "in relay and recipient lists": Case(
        "asked-twice", {**HERE, "smtpd_relay_restrictions": f"{ASKED}, permit_sasl_authenticated, reject"}, PLAIN
    ),
    "only warned": Case("only-warned", {"mua_data_restrictions": f"warn_if_reject {ASKED}, permit"}),
    "no default action": Case("default-action-unset", {"policyd": "{ inet:127.0.0.1:10045, timeout=10s }"}),
    "a default action that refuses": Case(
        "default-action-refuses", {"policyd": "{ inet:127.0.0.1:10045, timeout=10s, {default_action = 550 no} }"}
    ),
    "a default action that permits": Case(
        "default-action-permits", {"policyd": "{ inet:127.0.0.1:10045 timeout=10s default_action=OK }"}
    ),
    "a default action for all that refuses": Case(
        "default-action-refuses",
        {"policyd": "{ inet:127.0.0.1:10045, timeout=10s }", "smtpd_policy_service_default_action": "REJECT away"},
        parameter="smtpd_policy_service_default_action",
    ),
    "Postfix's own timeout": Case(
        "timeout-too-long", {"policyd": "{ inet:127.0.0.1:10045, default_action=DUNNO }"}, parameter=RCPT
    ),
    "a timeout too short": Case(
        "timeout-too-short", {"policyd": "{ inet:127.0.0.1:10045, timeout=1s, default_action=DUNNO }"}
    ),
    "one try": Case("one-try", {"smtpd_policy_service_try_limit": "1"}),
    "one try, in braces": Case("one-try", {"policyd": POLICYD.replace(" }", ", try_limit=1 }")}),
    "few requests on a connection": Case("requests-limited", {"smtpd_policy_service_request_limit": "1"}),
    "few requests, for a service": Case(
        "requests-limited",
        master=MASTER.replace("  -o smtpd_sasl", "  -o smtpd_policy_service_request_limit=20\n  -o smtpd_sasl"),
    ),
    "a long pause": Case("long-pause", {"smtpd_policy_service_retry_delay": "1m"}),
    "Postfix's own recipient limit": Case("recipient-limit", {"smtpd_recipient_limit": "1000"}),
    "a recipient limit that is the same": Case("recipient-limit", {"smtpd_recipient_limit": "5000"}),
    "a recipient rate": Case("recipient-rate", {"smtpd_client_recipient_rate_limit": "100"}),
    "a before-queue filter": Case(
        "before-queue-filter", {"smtpd_proxy_filter": "127.0.0.1:10025"}, status=limits(action="HOLD")
    ),
    "nobody logs in": Case("no-auth", master="smtp inet n - y - - smtpd\nsubmission inet n - y - - smtpd\n"),
}
BY_HAND = {"before-queue-filter", "no-auth"}
"""Faults whose lines are not all of postconf."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_fault_is_named_and_its_lines_mend_it(case: Case, tmp_path: Path) -> None:
    """One thing is wrong, it alone is named, and where a person does as it says, all is well."""
    write(tmp_path, {**MAIN, **case.main}, case.master)
    found = diagnose(tmp_path, case.status)
    assert set(codes(found)) == {case.code}
    assert exit_status(found) == 1
    for fault in found["faults"]:
        assert fault["why"]
        assert fault["services"] == (() if case.code == "no-auth" else ("submission/inet",))
        assert fault["file"] in ("main.cf", "master.cf")
        assert fault["mend"]
    if case.parameter:
        assert case.parameter in [fault["parameter"] for fault in found["faults"]]
    if case.code not in BY_HAND:
        mend(found["faults"][0]["mend"])
        after = diagnose(tmp_path, case.status)
        assert codes(after) in ([], codes(found)[1:]), after["faults"]
        if after["faults"]:
            mend(after["faults"][0]["mend"])
            assert codes(diagnose(tmp_path, case.status)) == []


@pytest.mark.parametrize(
    "main",
    [
        {},
        {"policyd": "{ unix:policyd/policy.sock, timeout=10s, default_action=DUNNO }"},
        {"policyd": "{inet:localhost:10045 timeout=10s {default_action = 451 4.3.5 Later} }"},
        {"mua_recipient_restrictions": "reject_unauth_pipelining,\n  check_policy_service\n  $policyd reject"},
        {"mua_recipient_restrictions": "warn_if_reject reject, Check_Policy_Service ${policyd}, reject"},
        {
            "smtpd_restriction_classes": "ours",
            "ours": "check_policy_service $(policyd)",
            "mua_data_restrictions": "ours",
        },
        {"mua_data_restrictions": "check_policy_service inet:127.0.0.1:10023, check_policy_service $policyd"},
        {"smtpd_client_recipient_rate_limit": "6000", "smtpd_proxy_filter": "127.0.0.1:10025"},
        {"smtpd_sender_restrictions": ASKED, "smtpd_delay_reject": "no"},
    ],
)
def test_good_wirings_have_no_fault(main: Mapping[str, str], tmp_path: Path) -> None:
    """However it is written, what asks policyd at RCPT and at DATA is well."""
    found = diagnose(write(tmp_path, {**MAIN, **main}))
    assert found["faults"] == []
    assert exit_status(found) == 0
    assert text(found)[-1] == f"no fault found: Postfix ({tmp_path}) asks policyd as it should"


@pytest.mark.parametrize("asked", ["smtpd_relay_restrictions", RCPT])
def test_hook_in_main_cf_is_enough(asked: str, tmp_path: Path) -> None:
    """A service that inherits its lists is wired by them, also at the relay list alone."""
    main = {**MAIN, **HERE, RCPT: "", asked: f"{ASKED}, permit_sasl_authenticated, reject"}
    assert diagnose(write(tmp_path, main, CHROOT))["faults"] == []


def test_end_of_message_stands_in_for_data(tmp_path: Path) -> None:
    """Messages may be counted at either."""
    main = {**MAIN, "mua_data_restrictions": "", "smtpd_end_of_data_restrictions": ASKED}
    assert diagnose(write(tmp_path, main))["faults"] == []


@pytest.mark.parametrize(
    "service",
    [
        "{ inet:127.0.0.1:10045, timeout=10s, default_action=DUNNO }",
        "{ inet:127.0.0.1:10045, timeout=10s, { default_action = 451 4.3.5 Server configuration problem } }",
        "{ unix:policyd/policy.sock, timeout=10s, default_action=DUNNO }",
    ],
)
def test_shipped_example_has_no_fault(service: str, tmp_path: Path) -> None:
    """Each variant of etc/postfix/main.cf.example, main.cf and master.cf, comes out clean."""
    example = (REPOSITORY / "etc" / "postfix" / "main.cf.example").read_text()
    _, _, master = example.partition("--- master.cf ---")
    lines = [line[2:] for line in master.splitlines()[2:] if line.startswith(("# submission", "#   -o"))]
    main = {name: value for name, value in example_main_cf(service).items() if not name.startswith("smtpd_r")}
    write(tmp_path, {**main, "smtpd_recipient_limit": "5100", "compatibility_level": "3.6"}, "\n".join(lines) + "\n")
    assert diagnose(tmp_path)["faults"] == []


def test_lines_of_the_readme_have_no_fault(tmp_path: Path) -> None:
    """What README.md says of main.cf and master.cf comes out clean."""
    readme = (REPOSITORY / "README.md").read_text().partition("## Ask it from Postfix")[2]
    _, main, _, master, *_ = readme.split("```")
    (tmp_path / "main.cf").write_text(main + "compatibility_level = 3.6\n")
    (tmp_path / "master.cf").write_text(master.lstrip("\n"))
    assert diagnose(tmp_path)["faults"] == []


def test_several_services_share_a_fault(tmp_path: Path) -> None:
    """What has one cause is told once, with all the services that it concerns."""
    master = PLAIN + PLAIN.replace("submission", "submissions")
    (fault,) = diagnose(write(tmp_path, {**MAIN, **HERE, DATA: ""}, master))["faults"]
    assert fault["services"] == ("submission/inet", "submissions/inet")
    assert (fault["code"], fault["file"], fault["parameter"]) == ("no-data-hook", "main.cf", DATA)
    assert fault["mend"] == (f"postconf -c {tmp_path} -e 'smtpd_data_restrictions = check_policy_service $policyd'",)


def test_mending_spares_services_where_nobody_logs_in(tmp_path: Path) -> None:
    """The MX beside it does not ask policyd afterwards."""
    (fault,) = diagnose(write(tmp_path, MAIN, without(DATA)))["faults"]
    assert fault["mend"] == (
        f"postconf -c {tmp_path} -e 'mua_data_restrictions = check_policy_service $policyd'",
        f"postconf -c {tmp_path} -P 'submission/inet/smtpd_data_restrictions=$mua_data_restrictions'",
    )


def test_nothing_wired_at_all_is_wired_by_the_lines(tmp_path: Path) -> None:
    """From a Postfix that has never heard of policyd, the lines lead to one that is well."""
    main = {"compatibility_level": "3.6", "queue_directory": QUEUE}
    write(tmp_path, main, "smtp inet n - y - - smtpd\n" + CHROOT)
    for _ in range(10):
        faults = diagnose(tmp_path)["faults"]
        if not faults:
            break
        mend(faults[0]["mend"])
    assert diagnose(tmp_path)["faults"] == []
    assert f"policyd = {POLICYD}\n" in (tmp_path / "main.cf").read_text()


def test_class_that_only_a_table_may_name_is_a_note(tmp_path: Path) -> None:
    """Where an access table may lead to policyd, a missing hook is no fault: it cannot be seen."""
    main = {
        **MAIN,
        "smtpd_restriction_classes": "ours",
        "ours": ASKED,
        "mua_data_restrictions": "",
        "mua_recipient_restrictions": "check_sasl_access hash:/etc/postfix/who, reject",
    }
    found = diagnose(write(tmp_path, main))
    assert found["faults"] == []
    assert found["notes"][0] == (
        "submission/inet: the restriction class ours asks policyd; whether an access table leads there cannot be seen"
    )
    assert text(found)[0] == f"note: {found['notes'][0]}"


def test_policy_service_of_others_is_not_policyd(tmp_path: Path) -> None:
    """A greylisting daemon in the lists does not count as a hook."""
    main = {**MAIN, **HERE, RCPT: "check_policy_service inet:127.0.0.1:10023", DATA: ""}
    assert codes(diagnose(write(tmp_path, main, PLAIN))) == ["no-rcpt-hook", "no-data-hook"]


def test_accounts_that_are_no_logins_need_no_sasl(tmp_path: Path) -> None:
    """With `attributes: [client_address]` the services that name policyd are looked at."""
    main = {**MAIN, **HERE, DATA: ""}
    found = diagnose(write(tmp_path, main, "smtp inet n - n - - smtpd\n"), {"attributes": ["client_address"]})
    assert codes(found) == ["no-data-hook"]


def test_names_of_one_service_override_those_of_main_cf(tmp_path: Path) -> None:
    """`-o policyd=…` changes what `$policyd` in an inherited list means, for this service alone."""
    master = PLAIN + PLAIN.replace("submission", "submissions").strip() + " -o policyd=inet:127.0.0.1:10023\n"
    faults = diagnose(write(tmp_path, {**MAIN, **HERE}, master))["faults"]
    assert {fault["code"] for fault in faults} == {"no-rcpt-hook", "no-data-hook"}
    assert {fault["services"] for fault in faults} == {("submissions/inet",)}


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({"requests": {}, "hooks": {}}, ["never-asked"]),
        ({"requests": {"RCPT": 5}, "hooks": {"RCPT": True, "DATA": False}, "problems": ["no DATA requests seen: x"]},
         ["no-data-seen"]),
        ({"requests_without_account": 16}, ["no-account"]),
        ({"requests_without_account": 16, "attributes": ["sasl_username", "client_address"]}, ["no-account"]),
        ({"protocol_errors": 2}, ["protocol-errors"]),
        ({"problems": ["the disk is full", "listen has changed in the config, and takes a restart to change"]},
         ["problem", "problem"]),
    ],
)  # fmt: skip
def test_state_of_the_daemon_tells_faults(status: Mapping[str, Any], found: list[str], tmp_path: Path) -> None:
    """What no configuration shows, the requests that have come in do."""
    value = diagnose(write(tmp_path, MAIN), status)
    assert codes(value) == found
    assert all(fault["services"] == () and fault["mend"] for fault in value["faults"])


@pytest.mark.parametrize(
    ("status", "note"),
    [
        ({"requests": {}, "hooks": {}, "uptime": 5.0}, "no request has come in since policyd started"),
        (
            {"observe": True},
            "policyd only observes (`observe: true` in its config): nothing is refused, held or locked",
        ),
        (
            {"requests_without_account": 12},
            "12 of 16 requests name no account: a service asks policyd where clients do not log in",
        ),
    ],
)
def test_what_is_no_fault_is_a_note(status: Mapping[str, Any], note: str, tmp_path: Path) -> None:
    """What may be meant as it is, is told, and changes no exit status."""
    value = diagnose(write(tmp_path, MAIN), status)
    assert (value["faults"], value["notes"]) == ([], [note])


def test_limits_that_only_observe_are_no_reason(tmp_path: Path) -> None:
    """What such a limit would do, Postfix never has to."""
    status = limits(action="HOLD", observe=True)
    assert diagnose(write(tmp_path, {**MAIN, "smtpd_proxy_filter": "[::1]:25"}), status)["faults"] == []


def test_postfix_is_checked_while_the_daemon_is_away(tmp_path: Path) -> None:
    """That policyd is not running is one fault, and hides none of Postfix's."""
    write(tmp_path, {**MAIN, "mua_data_restrictions": ""})
    value = diagnose(tmp_path, world=MadeUp(dead=[("127.0.0.1", "10045")]), away="policyd is not running")
    assert codes(value) == ["not-running", "no-data-hook"]
    assert value["running"] is False
    assert text(value)[0] == "1. policyd is not running"


def test_daemon_that_hangs_is_to_be_restarted(tmp_path: Path) -> None:
    """To start it would do nothing."""
    (fault,) = diagnose(write(tmp_path, MAIN), away="policyd has not answered within 10 s: it hangs, see its log")[
        "faults"
    ]
    assert (fault["code"], fault["mend"]) == ("not-running", ("systemctl restart policyd",))


def test_daemon_that_is_closed_to_the_caller_is_a_note(tmp_path: Path) -> None:
    """Whoever may not ask it cannot know that it is away."""
    value = diagnose(write(tmp_path, MAIN), away="permission denied on /run/policyd/control.sock")
    assert (value["faults"], value["running"]) == ([], None)
    assert value["notes"] == ["not seen: how policyd is: permission denied on /run/policyd/control.sock"]


def test_a_misspelt_address_is_set_right(tmp_path: Path) -> None:
    """Where policyd is asked nowhere, an address where nobody listens is taken for it."""
    write(tmp_path, {**MAIN, "policyd": POLICYD.replace("10045", "10046")})
    world = MadeUp(dead=[("127.0.0.1", "10046")])
    value = diagnose(tmp_path, world=world)
    assert set(codes(value)) == {"nobody-listens"}
    assert value["faults"][0]["what"] == "nobody listens on inet:127.0.0.1:10046: Connection refused"
    mend(value["faults"][0]["mend"])
    assert diagnose(tmp_path, world=world)["faults"] == []


def test_a_stranger_that_is_away_is_told(tmp_path: Path) -> None:
    """Another policy service where nobody listens slows each request down, too."""
    write(tmp_path, {**MAIN, "smtpd_sender_restrictions": "check_policy_service inet:127.0.0.1:10023"})
    value = diagnose(tmp_path, world=MadeUp(dead=[("127.0.0.1", "10023")]))
    assert codes(value) == ["nobody-listens"]
    assert value["faults"][0]["services"] == ("smtp/inet", "submission/inet")


def test_each_address_is_connected_to_once(tmp_path: Path) -> None:
    """However often a policy service is named."""
    world = MadeUp()
    diagnose(write(tmp_path, {**MAIN, **HERE}, CHROOT + CHROOT.replace("submission", "submissions")), world=world)
    assert world.connected == [("127.0.0.1", "10045")]


UNIX = "{ unix:%s, timeout=10s, default_action=DUNNO }"


@pytest.mark.parametrize(
    ("path", "master", "listen", "found"),
    [
        ("policyd/policy.sock", CHROOT, SOCKET, []),
        ("/policyd/policy.sock", CHROOT, SOCKET, []),
        ("policyd/policy.sock", PLAIN, SOCKET, []),
        (SOCKET, PLAIN, SOCKET, []),
        ("/var/run/policyd/policy.sock", PLAIN, "/run/policyd/policy.sock", []),
        (SOCKET, CHROOT, SOCKET, ["outside-chroot"]),
        ("/run/policyd/policy.sock", CHROOT, "/run/policyd/policy.sock", ["outside-chroot"]),
    ],
)
def test_socket_behind_a_chroot_is_found(path: str, master: str, listen: str, found: list[str], tmp_path: Path) -> None:
    """A smtpd in a chroot sees what lies below the queue directory, under its name there."""
    write(tmp_path, {**MAIN, **HERE, "policyd": UNIX % path}, master)
    value = diagnose(tmp_path, {"listen": [f"unix:{listen}"]})
    assert codes(value) == found
    if found:
        mend(value["faults"][0]["mend"])
        assert f"policyd = {UNIX % 'policyd/policy.sock'}\n" in (tmp_path / "main.cf").read_text()


@pytest.mark.parametrize(
    ("place", "mode", "is_closed"),
    [
        (SOCKET, (0o660, 0, 0), True),
        (SOCKET, (0o660, 0, 102), False),
        (SOCKET, (0o600, 101, 0), False),
        (SOCKET, (0o066, 101, 102), True),
        (f"{QUEUE}/policyd", (0o700, 0, 0), True),
        (f"{QUEUE}/policyd", (0o750, 0, 102), False),
        (QUEUE, (0o700, 0, 0), True),
        ("/var", (0o700, 0, 0), False),
    ],
)
def test_socket_that_is_closed_to_postfix_is_found(
    place: str, mode: tuple[int, int, int], is_closed: bool, tmp_path: Path
) -> None:
    """Owner, group and mode of the socket and of each folder on smtpd's way to it are looked at."""
    write(tmp_path, {**MAIN, "policyd": UNIX % "policyd/policy.sock"})
    faults = diagnose(tmp_path, world=MadeUp(modes={place: mode}))["faults"]
    assert {fault["code"] for fault in faults} == ({"closed-socket"} if is_closed else set())
    assert all(place in fault["what"] and fault["mend"] for fault in faults)


def test_what_cannot_be_seen_is_said(tmp_path: Path) -> None:
    """Without the rights to look, doctor guesses nothing."""
    write(tmp_path, {**MAIN, "policyd": UNIX % "policyd/policy.sock"})
    value = diagnose(tmp_path, world=MadeUp(hidden=True))
    assert value["faults"] == []
    assert value["notes"] == [
        "not seen: whether unix:policyd/policy.sock can be reached: its folder is closed to you; run this as root"
    ]


def test_warnings_of_postconf_are_passed_on(tmp_path: Path) -> None:
    """A misspelt parameter is what postconf itself complains of."""
    (note,) = diagnose(write(tmp_path, {**MAIN, "smtpd_recipients_limit": "\x1b[2J"}))["notes"]
    assert "unused parameter: smtpd_recipients_limit" in note
    assert "\x1b" not in note


def test_documentation_names_every_fault() -> None:
    """docs/doctor.md has each code, and none that there is not."""
    rooms = "".join(path.read_text() for path in (REPOSITORY / "policyd").glob("ctl_*.py"))
    known = {*WHY, *re.findall(r'[Ff]ault\(\s*"([a-z-]+)"', rooms)}
    told = re.findall(r"^\| `([a-z-]+)` \|", (REPOSITORY / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(known)
