"""The `notify` section: what it means, and what is said of each mistake."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from policyd.config import Config, ConfigError, changes, parse_config, read_config
from policyd.sections_notify import NOBODY_TOLD, Supplies, address_of
from policyd.supplies import LEAST_SECRET, MAX_SECRET, SUPPLIES, secret
from policyd.templates import MAX_TEMPLATE
from tests.telling import MAIL_CONFIG, config, template_folder

GOOD_MAIL = "from: policyd@example.com, to: [abuse@example.com]"
SECRET = b"0123456789abcdef0123456789abcdef"


def problems(text: str, supplies: Supplies = SUPPLIES) -> list[str]:
    """Return what is wrong with a section, without the name of the config file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(f"notify: {{{text}}}", "policyd.yaml", supplies=supplies)
    return [str(problem).removeprefix("policyd.yaml:") for problem in caught.value.problems]


def test_nobody_is_told_by_default() -> None:
    """Without the section, and where it is empty."""
    assert Config().notify == parse_config("notify:", "policyd.yaml").notify == NOBODY_TOLD


def test_the_section_of_the_docs_is_read() -> None:
    """With all its keys."""
    found = config(
        "events: [lock, warning]",
        "warn_at: 75%",
        "mail: {relay: '[::1]:2525', from: a@example.com, to: [b@example.com, c@example.com], account: true,"
        " language: sv}",
        "webhook: {url: 'http://desk.example.com:8080/policyd?x=1'}",
        "command: [/usr/local/bin/on-policyd, --now, 5]",
    ).notify
    assert (set(found.events), found.warn_at) == ({"lock", "warning"}, 75)
    assert found.mail is not None
    assert (found.mail.relay, found.mail.to) == (("::1", 2525), ("b@example.com", "c@example.com"))
    assert found.webhook is not None
    assert (found.webhook.url, found.webhook.secret) == ("http://desk.example.com:8080/policyd?x=1", None)
    assert found.command == ("/usr/local/bin/on-policyd", "--now", "5")


def test_what_is_not_said_has_a_default() -> None:
    """Locks, unlocks and locks that end; no warnings; the relay of this host."""
    found = config(MAIL_CONFIG).notify
    assert set(found.events) == {"lock", "unlock", "expiry"}
    assert found.warn_at is None
    assert found.mail is not None
    assert (found.mail.relay, found.mail.account) == (("127.0.0.1", 25), False)
    assert config("events: [warning]", MAIL_CONFIG).notify.warn_at == 80


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("command: [/bin/true], on: [lock]", "1: notify.True: unknown key"),
        ("command: [/bin/true], webhok: {}", "1: notify.webhok: unknown key, did you mean 'webhook'?"),
        ("events: [lock]", "1: notify: nobody is told: want mail, webhook or command"),
        ("command: [/bin/true], events: [lokc]", "1: notify.events[0]: unknown event 'lokc', did you mean 'lock'?"),
        ("command: [/bin/true], events: [lock, lock]", "1: notify.events[1]: 'lock' is given twice, first on line 1"),
        ("command: [/bin/true], events: []", "1: notify.events: want a list of events"),
        ("command: [/bin/true], warn_at: 80%", "1: notify.warn_at: nobody is warned: want warning among the events"),
        ("command: [/bin/true], events: [warning], warn_at: 80", "want a percentage from 1% to 100% such as 80%, got"),
        ("command: [/bin/true], events: [warning], warn_at: 0%", "want a percentage from 1% to 100% such as 80%, got"),
        ("command: [/bin/true], events: [warning], warn_at: 101%", "want a percentage from 1% to 100%"),
        ("command: /bin/true", "1: notify.command: want a list of a program's absolute path"),
        ("command: [true]", "1: notify.command: want a list of a program's absolute path"),
        ("command: []", "1: notify.command: want a list of a program's absolute path"),
        ("command: [/bin/true, [a]]", "1: notify.command[1]: want a text, got a list"),
        ("mail: {to: [a@example.com]}", "1: notify.mail.from: missing, want a mail address such as"),
        ("mail: {from: a@example.com}", "1: notify.mail.to: missing, want a list of mail addresses"),
        ("mail: {from: a@example.com, to: a@example.com}", "1: notify.mail.to: want a list of mail addresses"),
        ("mail: {from: a@example.com, to: ['a@b.c, x']}", "1: notify.mail.to[0]: want a mail address such as"),
        ('mail: {from: "a@b.c\\nX: y", to: [a@example.com]}', "1: notify.mail.from: want a mail address such as"),
        ("mail: {from: -x@example.com, to: [a@example.com]}", "1: notify.mail.from: want a mail address such as"),
        (f"mail: {{{GOOD_MAIL}, relay: 127.0.0.1}}", "1: notify.mail.relay: want a host and its port"),
        (f"mail: {{{GOOD_MAIL}, relay: 'mx:0'}}", "1: notify.mail.relay: want a host and its port"),
        (f"mail: {{{GOOD_MAIL}, relay: 'm x:25'}}", "1: notify.mail.relay: want a host and its port"),
        (f"mail: {{{GOOD_MAIL}, language: de}}", "1: notify.mail.language: unknown language 'de', want one of en, sv"),
        (f"mail: {{{GOOD_MAIL}, templates: x}}", "1: notify.mail.templates: want an absolute path, got 'x'"),
        (
            f"mail: {{{GOOD_MAIL}, templates: /no/such}}",
            "notify.mail.templates: cannot be read: /no/such: No such file",
        ),
        (f"mail: {{{GOOD_MAIL}, acount: true}}", "1: notify.mail.acount: unknown key, did you mean 'account'?"),
        ("webhook: {}", "1: notify.webhook.url: missing, want an address such as https://"),
        ("webhook: {url: ftp://example.com/}", "1: notify.webhook.url: want an address such as https://"),
        ("webhook: {url: 'http://a:b@example.com/'}", "1: notify.webhook.url: want an address such as https://"),
        ("webhook: {url: 'http://example.com/\u00e5'}", "1: notify.webhook.url: want an address such as https://"),
        ("webhook: {url: 'http://example.com:99999/'}", "1: notify.webhook.url: want an address such as https://"),
        ("webhook: {url: 'http://[::1/'}", "1: notify.webhook.url: want an address such as https://"),
        ("webhook: {url: 'http://a b/'}", "1: notify.webhook.url: want an address such as https://"),
        (
            "webhook: {url: 'http://x/', secret_file: /no/such}",
            "notify.webhook.secret_file: cannot be read: /no/such: No",
        ),
    ],
)
def test_a_mistake_is_named(text: str, told: str) -> None:
    """With its line, its key, what was wanted and what was there; and nothing else is said."""
    if "on: [lock]" in text:
        told = "notify: want a key that is text, in quotes if need be, got on"
    (found,) = problems(text)
    assert told in found


def test_without_what_tls_takes_an_https_address_is_refused() -> None:
    """And it is said what to install."""

    def use_url(url: str) -> None:
        raise ValueError(f"cannot use {url}")

    supplies = SUPPLIES._replace(use_url=use_url)
    assert problems("webhook: {url: 'https://example.com/'}", supplies) == [
        "1: notify.webhook.url: cannot use https://example.com/"
    ]


def test_what_https_takes_is_looked_for() -> None:
    """It is an extra, which may be installed here or not; http takes nothing."""
    SUPPLIES.use_url("http://example.com/")
    if all(importlib.util.find_spec(name) for name in ("OpenSSL", "service_identity")):
        SUPPLIES.use_url("https://example.com/")
    else:
        with pytest.raises(ValueError, match=r"from the source, /opt/policyd/bin/pip install '\.\[tls\]'$"):
            SUPPLIES.use_url("https://example.com/")


def test_policyctl_reads_no_other_files(tmp_path: Path) -> None:
    """Who wants to know where the control socket is may not be allowed to read a secret."""
    file = tmp_path / "policyd.yaml"
    file.write_text(
        "control: /run/x.sock\nnotify:\n  webhook: {url: 'https://x/', secret_file: /no/such}\n"
        f"  mail: {{{GOOD_MAIL}, templates: /no/such}}\n"
    )
    assert read_config(file).control == "/run/x.sock"


def test_a_secret_is_read_without_its_line_end(tmp_path: Path) -> None:
    """As `openssl rand -hex 32 > file` writes it."""
    file = tmp_path / "key"
    file.write_bytes(SECRET + b"\n")
    file.chmod(0o600)
    found = config(f"webhook: {{url: 'http://x/', secret_file: {file}}}").notify.webhook
    assert found is not None
    assert found.secret == SECRET
    assert SECRET.decode() not in repr(found)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644, 0o666])
def test_a_secret_that_others_can_read_is_none(tmp_path: Path, mode: int) -> None:
    """It is said what to do."""
    file = tmp_path / "key"
    file.write_bytes(SECRET)
    file.chmod(mode)
    (told,) = problems(f"webhook: {{url: 'http://x/', secret_file: {file}}}")
    assert "everybody can read or write" in told
    assert f"chmod o= {file}" in told


@pytest.mark.parametrize("data", [b"", b"short\n", b"x" * (LEAST_SECRET - 1), b"x" * (MAX_SECRET + 1)])
def test_a_secret_of_a_wrong_length_is_refused(tmp_path: Path, data: bytes) -> None:
    """An empty file would sign nothing."""
    file = tmp_path / "key"
    file.write_bytes(data)
    file.chmod(0o600)
    with pytest.raises(ValueError, match="want a secret of"):
        secret(str(file))


def test_a_secret_is_a_file(tmp_path: Path) -> None:
    """Not a device without end, nor a folder, nor a pipe that nobody writes to."""
    with pytest.raises(ValueError, match="want a file"):
        secret("/dev/zero")
    with pytest.raises((ValueError, OSError)):
        secret(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("desk_lock", "Subject: a\n\n{account}\n{acount}\n", "4: unknown field {acount}, want one of {reason}"),
        ("desk_lock", "Subject: a\n\n{account} {\n", "3: unknown field {, want one of"),
        ("desk_lock", "Subject: a\n\n{account} {0} \n", "3: unknown field {0}, want one of"),
        ("desk_lock", "Subject: a {x}\n\n{account}\n", "1: unknown field {x}, want one of"),
        ("desk_lock", "Hello\n\n{account}\n", "1: want a first line such as 'Subject: {account} is locked'"),
        ("desk_lock", "Subject:\n\n{account}\n", "1: want a first line such as 'Subject: {account} is locked'"),
        ("desk_lock", "Subject: x\nTo: me\n{account}\n", "2: want an empty line between the subject and the text"),
        ("desk_lock", "Subject: {account}\n\n", "want a text below the subject"),
        ("desk_lock", "Subject: x\n\ny\n", ": want {account} in it: the desk could not act without"),
        ("desk_digest", "Subject: {accounts}\n\ny {accounts}\n", "1: unknown field {accounts}, want one of {of}"),
        ("desk_lock", "Subject: x\n\n{account}\x1b\n", "3: want lines without control characters"),
        ("desk_lock", f"Subject: x\n\n{{account}}{'y' * 1000}\n", "3: want lines of at most 900 characters"),
    ],
)
def test_a_mistake_in_a_template_is_named(tmp_path: Path, name: str, text: str, told: str) -> None:
    """With the template's own file and line."""
    folder = template_folder(tmp_path, **{name: text})
    (found,) = problems(f"mail: {{{GOOD_MAIL}, templates: {folder}}}")
    assert found.startswith(f"{folder}/{name.replace('_', '-')}.txt:")
    assert told in found


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("desk-lokc.txt", b"", "no template is called 'desk-lokc', did you mean 'desk-lock'?"),
        ("desk-lock.txt", b"Subject: x\n\n\xff", "desk-lock.txt:3: want UTF-8, got the byte 0xff"),
        ("desk-lock.txt", b"x" * (MAX_TEMPLATE + 1), f"want a file of at most {MAX_TEMPLATE} bytes"),
    ],
)
def test_a_file_that_is_no_template_is_named(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    """Rather than passed over: whoever wrote it wants it to be sent."""
    (tmp_path / name).write_bytes(data)
    (found,) = problems(f"mail: {{{GOOD_MAIL}, templates: {tmp_path}}}")
    assert told in found


def test_a_template_is_a_file(tmp_path: Path) -> None:
    """Nobody waits for a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "desk-lock.txt")
    (found,) = problems(f"mail: {{{GOOD_MAIL}, templates: {tmp_path}}}")
    assert "desk-lock.txt' is none" in found


def test_what_changes_is_told_without_the_secret(tmp_path: Path) -> None:
    """Also where only the secret or a text is different."""
    file = tmp_path / "key"
    configs = []
    for data in (SECRET, SECRET[::-1]):
        file.write_bytes(data)
        file.chmod(0o600)
        configs.append(config(f"webhook: {{url: 'http://x/', secret_file: {file}}}"))
    assert changes(*configs) == ["notify: changed"]
    assert changes(configs[0], configs[0]) == []


@pytest.mark.parametrize(
    ("account", "address"),
    [
        ("anna@example.com", "anna@example.com"),
        ("anna+x@sub.example.com", "anna+x@sub.example.com"),
        ("anna", None),
        ("anna@", None),
        ("@example.com", None),
        ("a@b@example.com", None),
        ("a..b@example.com", None),
        ("anna@example..com", None),
        ('"a b"@example.com', None),
        ("anna@example.com\n", None),
        ("anna@example.com>", None),
        ("-f@example.com", None),
        ("jürgen@example.com", None),
        ("=?utf-8?q?a?=@example.com", None),
        ("client_address=192.0.2.7", None),
        ("sender=anna@example.com", None),
        (f"{'x' * 250}@example.com", None),
    ],
)
def test_mail_goes_to_accounts_that_are_addresses(account: str, address: str | None) -> None:
    """As they are, and to nothing that a relay could read in another way."""
    assert address_of(account) == address
