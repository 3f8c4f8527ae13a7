"""Notices as mails: whatever an account is called, a mail has the headers that it should, and no other."""

from __future__ import annotations

import email
import email.policy
import subprocess
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.letters import Letter, letter
from policyd.notices import ACCOUNT, MAIL, STORM, Notice
from policyd.sections_notify import EVENTS, LANGUAGES, MailNotices
from policyd.supplies import SHIPPED, SUPPLIES
from policyd.templates import FIELDS, MAX_FILLED, TEXTS, read_texts
from policyd.words import printable, shell_word
from tests.asking import ANNA, EPOCH
from tests.telling import MAIL_CONFIG, Telling, config, template_folder

HEADERS = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "X-Policyd-Event",
    "Content-Type",
    "Content-Transfer-Encoding",
    "MIME-Version",
    "Content-Language",
]
HOSTILE = [
    "",
    "anna@example.com",
    "a\nBcc: x@example.net",
    "a\r\n\r\nbody",
    "a\0b\x1b[31m",
    "\ud800\udcff",
    "\u202eevil",
    "räksmörgås@exämple.se",
    "'; rm -rf / #",
    "-x",
    "=?utf-8?q?a=0A?=",
    "{account} {id} {0}",
    "." * 300,
    "x" * 10_000,
    "a b\tc" * 500,
    "\u2028\u2029\x85",
]


def mail_notices(language: str = "en") -> MailNotices:
    """Return how mails are sent."""
    found = config(
        f"mail: {{from: policyd@example.com, to: [abuse@example.com, b@example.com], account: true,"
        f" language: {language}}}"
    ).notify.mail
    assert found is not None
    return found


def parsed(found: Letter | None) -> EmailMessage:
    """Return a mail as its reader sees it."""
    assert found is not None
    assert found.data.endswith(b"\r\n")
    assert b"\n" not in found.data.replace(b"\r\n", b"")
    assert b"\r" not in found.data.replace(b"\r\n", b"")
    assert all(len(line) <= 998 for line in found.data.split(b"\r\n"))
    found.data.decode("ascii")
    message = email.message_from_bytes(found.data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message.keys() == HEADERS
    return message


def text_of(message: EmailMessage) -> str:
    """Return the text of a mail."""
    text: str = message.get_content()
    return text.replace("\r\n", "\n")


def locked(account: str, **fields: object) -> Notice:
    """Return the notice of a lock."""
    told = {"account": account, "by": "policyd", "limit": "m", "count": 501, "reason": "spam", "until": None}
    return Notice("0123abcd", "lock", EPOCH, {**told, **fields})


def test_the_desk_reads_what_it_needs() -> None:
    """Who, why, since when, until when, and what to do."""
    message = parsed(letter(locked(ANNA), MAIL, mail_notices(), "mx1.example.com"))
    assert (message["From"], message["To"]) == ("policyd@example.com", "abuse@example.com, b@example.com")
    assert message["Subject"] == "anna@example.com is locked: spam"
    assert message["Date"] == "Mon, 23 Nov 2026 08:00:00 +0000"
    assert message["Message-ID"] == "<0123abcd.mail@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    text = text_of(message)
    assert "mx1.example.com" in text
    assert "reason    spam" in text
    assert "until     a person unlocks it" in text
    assert "\n  policyctl unlock anna@example.com\n" in text


def test_the_account_gets_a_mail_of_its_own() -> None:
    """In Swedish where that is wanted, without what concerns the desk alone."""
    found = letter(locked(ANNA, until="2026-11-23T20:00:00+00:00"), ACCOUNT, mail_notices("sv"), "mx1")
    message = parsed(found)
    assert found is not None
    assert (message["To"], found.to) == (ANNA, (ANNA,))
    assert message["Subject"] == "Ditt konto anna@example.com kan inte skicka e-post"
    assert "2026-11-23 20:00:00 UTC" in text_of(message)
    assert "policyctl" not in text_of(message)


def test_an_account_gets_no_digest() -> None:
    """There is no mail for what concerns many."""
    assert letter(Notice("1", "digest", EPOCH, {}), ACCOUNT, mail_notices(), "mx1") is None
    assert letter(locked("anna"), ACCOUNT, mail_notices(), "mx1") is None


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
def test_no_name_adds_a_header_or_a_line(name: str, language: str) -> None:
    """Whatever a login, a reason and a limit are called."""
    notices = mail_notices(language)
    usual = parsed(letter(locked("x", reason="y", limit="z", by="b"), MAIL, notices, "mx1"))
    message = parsed(letter(locked(name, reason=name, limit=name, by=name), MAIL, notices, "mx1"))
    assert message["To"] == usual["To"]
    assert len(text_of(message).split("\n")) == len(text_of(usual).split("\n"))
    assert "\n" not in message["Subject"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300), st.text(st.characters(codec=None), max_size=300))
def test_no_text_at_all_adds_a_header(name: str, reason: str) -> None:
    """Not even one that nobody has thought of."""
    message = parsed(letter(locked(name, reason=reason), MAIL, mail_notices(), "mx1"))
    assert text_of(message).replace("\n", "").isprintable()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_can_be_filled_in(language: str) -> None:
    """The shipped texts of each language, with all that a notice has and with nothing but its account."""
    notices = mail_notices(language)
    telling = Telling("events: [lock, unlock, expiry, warning]", MAIL_CONFIG)
    telling.lock()
    told = {"account": ANNA, "by": "root", "uid": 0, "attempts": 1, "limit": "m", "count": 8, "max": 10, "per": "30m"}
    for word, uid in (("unlock", None), ("unlock", 0), ("near-limit", 0)):
        by = "policyd" if uid is None else "root"
        telling.notices.tell(word, {**told, "by": by, "uid": uid}, telling.now)
    for number in range(2 * STORM):
        telling.lock(f"u{number}")
    telling.now += 60
    found = {notice.event: notice for notice in reversed(telling.due())}
    found["test"] = Notice("t", "test", EPOCH, {"by": "root"})
    assert found.keys() == FIELDS.keys()
    for event, notice in found.items():
        text = text_of(parsed(letter(notice, MAIL, notices, "mx1")))
        assert "{" not in text
        if event in EVENTS:
            assert ANNA in text_of(parsed(letter(notice, ACCOUNT, notices, "mx1")))
    digest = text_of(parsed(letter(found["digest"], MAIL, notices, "mx1")))
    assert "\n  u9\n  u10\n" in digest


def test_a_name_in_a_command_is_the_name() -> None:
    """What the desk pastes into a shell means this account and nothing else."""
    for name in HOSTILE:
        if "\0" in name or "\ud800" in name:
            continue
        done = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=True)
        assert done.stdout.decode() == name


def test_a_name_too_long_for_a_command_is_not_cut_in_it() -> None:
    """Half a quoted word would swallow what comes after it."""
    text = text_of(parsed(letter(locked("x'" * MAX_FILLED), MAIL, mail_notices(), "mx1")))
    assert "policyctl unlock ACCOUNT\n" in text


def test_own_templates_take_the_place_of_the_shipped_ones(tmp_path: Path) -> None:
    """Those that are there; the others stay."""
    folder = template_folder(tmp_path, desk_lock="Subject: Oj: {account}\n\nKolla {account_word}!\n")
    (tmp_path / "README").write_text("nothing of ours")
    own = config(f"mail: {{from: p@example.com, to: [a@example.com], templates: {folder}, language: sv}}").notify.mail
    assert own is not None
    assert text_of(parsed(letter(locked(ANNA), MAIL, own, "mx1"))) == "Kolla anna@example.com!\n"
    shipped = mail_notices("sv")
    assert {name: text for name, text in own.texts.items() if name != "desk-lock"} == {
        name: text for name, text in shipped.texts.items() if name != "desk-lock"
    }


def test_all_texts_are_there_in_all_languages() -> None:
    """And no other files are shipped."""
    for language in LANGUAGES:
        assert {file.stem for file in (SHIPPED / language).iterdir()} == set(TEXTS)
    assert {folder.name for folder in SHIPPED.iterdir()} == set(LANGUAGES)


def test_shipped_texts_are_right() -> None:
    """By the rules for one's own."""
    for language in LANGUAGES:
        assert read_texts(SUPPLIES.templates(language, None))[1] == []


def test_printable_text_is_what_it_says() -> None:
    """Nothing that a terminal would obey, and nothing that is lost."""
    assert printable("a\n\x1b\u202e\ud800ö") == "a\\n\\x1b\\u202e\\ud800ö"
