"""The daemon tells people: whatever becomes of the relay, the web server and the command, mail is answered at once."""

from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
import importlib.util
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.asking import ANNA, BERT
from tests.daemon import Connection, Policyd, free_port
from tests.desks import Listener, Smtp, Web
from tests.postfix import PrivatePostfix
from tests.waiting import until

LIMITS = """\
limits:
  messages: {count: messages, per: 30m, max: 4, action: REJECT locked, lock: until-unlocked}
"""
TO = "from: policyd@example.com, to: [abuse@example.com]"
SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 -- of a test


def section(*parts: str) -> str:
    """Return a config with these parts of the section."""
    return f"notify: {{{', '.join(parts)}}}\n{LIMITS}"


def mail(port: int, more: str = "") -> str:
    """Return the part about mail."""
    return f"mail: {{relay: '127.0.0.1:{port}', {TO}{more}}}"


def webhook(port: int, more: str = "") -> str:
    """Return the part about the web server."""
    return f"webhook: {{url: 'http://127.0.0.1:{port}/policyd'{more}}}"


def send(daemon: Policyd, user: str = ANNA, messages: int = 5) -> str:
    """Send messages, and return the last answer."""
    with Connection(daemon.address) as connection:
        answer = ""
        for number in range(messages):
            answer = connection.ask(
                protocol_state="DATA", sasl_username=user, recipient_count=1, instance=f"{user}.{number}"
            )
        return answer


def problem(daemon: Policyd) -> str:
    """Return what status says of notices."""
    return "\n".join(text for text in daemon.ctl_json("status")["problems"] if "notices by" in text)


def script(folder: Path, text: str) -> str:
    """Write a command."""
    path = folder / "on-policyd"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_lock_reaches_all_channels(tmp_path: Path) -> None:
    """The answer is not later for it, and each is told once."""
    web, smtp = Web(), Smtp()
    out = tmp_path / "out"
    command = script(tmp_path, f'echo "$POLICYD_EVENT $POLICYD_ACCOUNT $*" >> {out}; cat >> {out}')
    with Listener(web) as server, Listener(smtp) as relay:
        parts = (mail(relay.port, ", account: true"), webhook(server.port), f"command: [{command}, --now]")
        with Policyd(section(*parts)) as daemon:
            assert send(daemon) == "REJECT locked"
            until(lambda: len(smtp.mails) == 2 and web.posted and daemon.stderr.count("notice-sent") == 4)
            assert problem(daemon) == ""
            until(lambda: daemon.ctl("unlock", ANNA).returncode == 0 and web.told("unlock"))
        (told,) = web.told("lock")
        assert (told["account"], told["limit"], told["count"], told["by"]) == (ANNA, "messages", 5, "policyd")
        assert (told["until"], told["version"], told["host"]) == (None, 1, socket.gethostname())
        assert out.read_text().startswith(f"lock {ANNA} --now\n{{")
        to = {email.message_from_string(text, policy=email.policy.default)["To"] for text in smtp.mails}
        assert to == {"abuse@example.com", ANNA}
        assert "MAIL FROM:<policyd@example.com>" in smtp.commands


def test_a_lock_that_ends_and_a_warning_are_told(tmp_path: Path) -> None:
    """By their own words; the unlock that nobody wants to know of is not."""
    web = Web()
    with Listener(web) as server:
        events = "events: [expiry, warning], warn_at: 75%"
        with Policyd(section(events, webhook(server.port)).replace("until-unlocked", "1s")) as daemon:
            assert send(daemon) == "REJECT locked"
            until(lambda: web.told("expiry"))
    (warning,) = web.told("warning")
    assert (warning["account"], warning["count"], warning["max"], warning["percent"]) == (ANNA, 3, 4, 75)
    assert (warning["limit"], warning["per"]) == ("messages", "30m")
    assert not web.told("lock")


def test_a_receiver_can_verify_who_has_posted(tmp_path: Path) -> None:
    """By the secret over the body as it came, and by the time of the try that is in it; no proxy is asked."""
    key = tmp_path / "key"
    key.write_text(SECRET + "\n")
    key.chmod(0o600)
    web = Web()
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:1/")
    signed = f", secret_file: {key}"
    with Listener(web) as server, Policyd(section(webhook(server.port, signed)), environment=proxies) as daemon:
        daemon.ctl("lock", "a\n\udcff-x", "--reason", "spam")
        until(lambda: web.posted)
        posted = web.posted[0]
        proof = hmac.new(SECRET.encode(), posted.body, hashlib.sha256).hexdigest()
        assert posted.headers["x-policyd-signature"] == f"sha256={proof}"
        assert posted.line == "POST /policyd HTTP/1.1"
        assert posted.headers["content-type"] == "application/json"
        assert (posted.headers["x-policyd-id"], posted.headers["x-policyd-event"]) == (posted.value["id"], "lock")
        assert abs(posted.value["sent"] - time.time()) < 60
        assert posted.value["account"] == "a\n\\xff-x"
        assert SECRET not in daemon.stderr


HUGE = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 1_000_000


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 8\r\n\r\nno \x1b[31m!", "the server answers 500: no \\x1b[31m"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "the server answers 302"),
        (HUGE.replace(b"200", b"404"), "the server answers 404: xxx"),
        (b"", "Connection was closed cleanly"),
        (b"HTTP/1.1 200 OK\r\n", "Connection was closed cleanly"),
        (b"SSH-2.0-OpenSSH\r\n", ""),
    ],
    ids=["500", "redirect", "huge 404", "nothing", "half", "no HTTP"],
)
def test_a_web_server_that_does_not_take_a_notice_is_a_problem(answer: bytes, why: str) -> None:
    """It is named in status and once in the log; the notice is posted again, and the problem is gone."""
    web = Web(answer)
    with Listener(web) as server, Policyd(section(webhook(server.port))) as daemon:
        assert send(daemon) == "REJECT locked"
        until(lambda: problem(daemon))
        assert why in problem(daemon)
        assert "1 waiting" in problem(daemon)
        web.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        daemon.reload()
        until(lambda: not problem(daemon))
        assert len(web.posted) > 1
        assert len({posted.value["id"] for posted in web.posted}) == 1
        words = [line.split()[3] for line in daemon.stderr.splitlines()]
        assert (words.count("notify-problem"), words.count("notify-well"), words.count("notice-sent")) == (1, 1, 1)


def test_a_huge_answer_is_not_read() -> None:
    """It was taken all the same."""
    web = Web(HUGE)
    with Listener(web) as server, Policyd(section(webhook(server.port))) as daemon:
        send(daemon)
        until(lambda: "notice-sent" in daemon.stderr)
        assert len(web.posted) == 1


def test_nobody_waits_for_desks_that_hang() -> None:
    """Not Postfix, and not the other channels; after ten seconds the web server is a problem."""
    smtp = Smtp()
    with Listener(lambda _: None) as server, Listener(smtp) as relay:
        server.serve = server.hang
        with Policyd(section(webhook(server.port), mail(relay.port))) as daemon:
            begun = time.monotonic()
            assert send(daemon) == "REJECT locked"
            assert send(daemon, BERT) == "REJECT locked"
            assert time.monotonic() - begun < 5
            until(lambda: len(smtp.mails) == 2)
            until(lambda: "no answer within 10 s" in problem(daemon))
            assert "2 waiting" in problem(daemon)


def test_a_reload_changes_where_notices_go_and_loses_none() -> None:
    """What could not be sent goes to the new place at once."""
    web = Web()
    with Listener(web) as server, Policyd(section(webhook(free_port()))) as daemon:
        send(daemon)
        until(lambda: "refused" in problem(daemon))
        daemon.reload(section(webhook(server.port)))
        until(lambda: web.told("lock"))
        until(lambda: not problem(daemon))
        daemon.reload(LIMITS)
        daemon.ctl("unlock", ANNA)
        daemon.reload(section(webhook(server.port)))
        send(daemon, BERT)
        until(lambda: len(web.posted) == 2)
        assert [posted.value["event"] for posted in web.posted] == ["lock", "lock"]


@pytest.mark.parametrize("end", [Policyd.kill, Policyd.stop], ids=["kill -9", "stop"])
def test_the_notice_of_a_lock_outlives_the_daemon(end: Callable[[Policyd], object], tmp_path: Path) -> None:
    """What a channel has taken is not sent to it again; what it has not, is, with the same id."""
    web, port = Web(), free_port()
    database = f"database: {tmp_path / 'policyd.sqlite'}\n"
    with Listener(web) as server:
        config = database + section(webhook(server.port), mail(port))
        with Policyd(config) as daemon:
            assert send(daemon) == "REJECT locked"
            until(lambda: "notify-problem channel=mail" in daemon.stderr and "channel=webhook" in daemon.stderr)
            until(lambda: _left(tmp_path / "policyd.sqlite") == ['["mail"]'])
            end(daemon)
            smtp = Smtp()
            with Listener(smtp) as relay:
                daemon.write_config(database + section(webhook(server.port), mail(relay.port)))
                daemon.start()
                until(lambda: smtp.mails)
                until(lambda: _left(tmp_path / "policyd.sqlite") == [])
                assert f"<{web.posted[0].value['id']}.mail@example.com>" in smtp.mails[0]
                assert (len(web.posted), len(smtp.mails)) == (1, 1)
                daemon.kill()
                daemon.start()
                assert daemon.ctl_json("status", ANNA)["lock"]
                send(daemon, BERT)
                until(lambda: len(smtp.mails) == 2)
    assert BERT in smtp.mails[1]


def _left(path: Path) -> list[str]:
    """Return the channels that each stored notice waits for."""
    with closing(sqlite3.connect(path)) as database:
        return [left for (left,) in database.execute("SELECT json_extract(record, '$.left') FROM notices")]


def test_a_lock_that_was_announced_is_told_after_a_kill(tmp_path: Path) -> None:
    """Killed in the moment in which the answer is there, before anything could be sent: over and over."""
    web = Web()
    with Listener(web) as server:
        config = f"database: {tmp_path / 'policyd.sqlite'}\n" + section(webhook(server.port))
        with Policyd(config) as daemon:
            for number in range(5):
                user = f"u{number}@example.com"
                assert send(daemon, user) == "REJECT locked"
                daemon.kill()
                daemon.start()
                until(lambda user=user: user in {told["account"] for told in web.told("lock")})  # type: ignore[misc]
    by_account: dict[str, set[str]] = {}
    for told in web.told("lock"):
        by_account.setdefault(told["account"], set()).add(told["id"])
    assert {account: len(ids) for account, ids in by_account.items()} == {f"u{n}@example.com": 1 for n in range(5)}


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        ({"": "554 go away"}, "the relay answers the connection with 554 go away"),
        ({"MAIL": "451 later"}, "the relay answers MAIL with 451 later"),
        ({"RCPT": "550 5.1.1 no such user"}, "abuse@example.com: the relay answers RCPT with 550 5.1.1 no such user"),
        ({"DATA": "421 bye"}, "the relay answers DATA with 421 bye"),
        ({".": "552 too large"}, "the relay answers the mail with 552 too large"),
        ({"HELO": ""}, "Connection was closed cleanly"),
        ({"HELO": "2" * 5000}, "Connection"),
        ({"HELO": "\n".join(["250-more"] * 5000)}, ""),
    ],
    ids=["greeting", "MAIL", "RCPT", "DATA", "text", "hangs up", "long line", "many lines"],
)
def test_a_relay_that_does_not_take_a_mail_is_a_problem(replies: dict[str, str], why: str) -> None:
    """What it says is told, and the mail is sent again until it takes it."""
    smtp = Smtp(replies)
    with Listener(smtp) as relay, Policyd(section(mail(relay.port))) as daemon:
        send(daemon)
        until(lambda: problem(daemon))
        assert why in problem(daemon)
        smtp.replies.clear()
        daemon.reload()
        until(lambda: not problem(daemon))
        (taken,) = smtp.mails
        assert ANNA in taken


def test_each_address_of_the_desk_gets_a_mail_once() -> None:
    """Where the relay refuses one of them, the others get it at once, and only that one is tried again."""
    smtp = Smtp({"RCPT TO:<b@": "450 later"})
    to = "{from: p@example.com, to: [a@example.com, b@example.com, c@example.com]"
    with Listener(smtp) as relay, Policyd(section(f"mail: {to}, relay: '127.0.0.1:{relay.port}'}}")) as daemon:
        send(daemon)
        until(lambda: "b@example.com: the relay answers RCPT with 450 later" in problem(daemon))
        assert len(smtp.mails) == 1
        smtp.replies.clear()
        daemon.reload()
        until(lambda: not problem(daemon))
        assert len(smtp.mails) == 2
        rcpts = [command for command in smtp.commands if command.startswith("RCPT")]
        assert rcpts[-1] == "RCPT TO:<b@example.com>"
        assert rcpts.count("RCPT TO:<a@example.com>") == rcpts.count("RCPT TO:<c@example.com>") == 1


def test_an_account_whose_mailbox_is_gone_is_no_problem() -> None:
    """The desk is told; the account's mail is lost, and the log says so."""
    smtp = Smtp({f"RCPT TO:<{ANNA}>": "550 no such user"})
    with Listener(smtp) as relay, Policyd(section(mail(relay.port, ", account: true"))) as daemon:
        send(daemon)
        until(lambda: "notices-lost channel=account" in daemon.stderr and smtp.mails)
        assert problem(daemon) == ""


def test_a_real_postfix_queues_the_mails() -> None:
    """As they are: sender, recipients, headers, and a text in UTF-8."""
    settings = {"smtpd_relay_restrictions": "permit_mynetworks, reject", "header_checks": "static:HOLD"}
    with PrivatePostfix(settings) as postfix:
        config = section(mail(postfix.port, ", account: true, language: sv"))
        with Policyd(config) as daemon:
            daemon.ctl("lock", ANNA, "--reason", "lösenordet är känt\r\nBcc: x@example.net")
            queue = until(lambda: found if len(found := postfix.queue()) == 2 else [])
        envelopes = {message["recipients"][0]["address"]: message for message in queue}
        assert envelopes.keys() == {"abuse@example.com", ANNA}
        for address, message in envelopes.items():
            assert (message["sender"], len(message["recipients"])) == ("policyd@example.com", 1)
            text = subprocess.run(
                ["postcat", "-c", str(postfix.folder / "conf"), "-hbq", message["queue_id"]],
                capture_output=True,
                check=True,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin"},
            ).stdout
            found = email.message_from_bytes(text, policy=email.policy.default)
            assert (found["From"], found["To"], found["Bcc"]) == ("policyd@example.com", address, None)
            assert found["Auto-Submitted"] == "auto-generated"
            content = found.get_body().get_content()  # type: ignore[union-attr]
            assert "lösenordet är känt\\r\\nBcc: x@example.net" in content


def test_notices_are_not_counted_where_postfix_asks_policyd_too() -> None:
    """They come without a login; were they counted, the notice of a lock could lock."""
    with Policyd("") as daemon:
        hooks = {
            "smtpd_recipient_restrictions": f"check_policy_service {daemon.endpoint}, permit_mynetworks, reject",
            "smtpd_data_restrictions": f"check_policy_service {daemon.endpoint}",
        }
        with PrivatePostfix(hooks) as postfix:
            daemon.reload(section(mail(postfix.port)).replace("max: 4", "max: 1"))
            for number in range(3):
                daemon.ctl("lock", f"u{number}@example.com", "--reason", "x")
            until(lambda: daemon.stderr.count("notice-sent") == 3)
            assert daemon.ctl_json("status")["answers"] == {"DUNNO": 6}
            assert daemon.ctl_json("status")["accounts"] == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo broken: $POLICYD_ACCOUNT >&2; exit 3", f"ended with status 3: broken: {ANNA}"),
        ("kill -9 $$", "was ended by signal 9"),
        ("yes | head -c 10000000; printf '\\033[31m'; exit 1", "ended with status 1"),
    ],
    ids=["status", "signal", "flood"],
)
def test_a_command_that_fails_is_a_problem(text: str, why: str, tmp_path: Path) -> None:
    """With the end of what it has written, as far as that can be shown."""
    with Policyd(section(f"command: [{script(tmp_path, text)}]")) as daemon:
        send(daemon)
        until(lambda: problem(daemon))
        assert why in problem(daemon)
        assert "\x1b" not in daemon.stderr
        script(tmp_path, "exit 0")
        daemon.reload()
        until(lambda: not problem(daemon))


def test_a_command_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    """So is one that nobody may run."""
    with Policyd(section(f"command: [{tmp_path}/none]")) as daemon:
        send(daemon)
        until(lambda: "none cannot be run: No such file or directory" in problem(daemon))


def make_certificate(folder: Path) -> ssl.SSLContext:
    """Return a server's context with a certificate that nobody has signed."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    what = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    whose = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", *what, *whose, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def require_tls() -> None:
    """Skip where policyd's extra `tls` is not installed; under CI it has to be."""
    missing = [name for name in ("OpenSSL", "service_identity") if importlib.util.find_spec(name) is None]
    if missing or shutil.which("openssl") is None:
        reason = "pip install '.[tls]', apt-get install openssl"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_has_to_be_signed_by_someone_known(tmp_path: Path, *, trusted: bool) -> None:
    """One that signs itself is refused before anything is posted."""
    require_tls()
    web = Web()
    with Listener(web, make_certificate(tmp_path)) as server:
        config = section(f"webhook: {{url: 'https://localhost:{server.port}/'}}")
        environment = {"SSL_CERT_FILE": str(tmp_path / "cert.pem")} if trusted else {}
        with Policyd(config, environment=environment) as daemon:
            send(daemon)
            until(lambda: problem(daemon) or web.posted)
            assert bool(web.posted) is trusted
            assert ("certificate verify failed" in problem(daemon)) is not trusted


def test_a_person_can_try_out_the_channels(tmp_path: Path) -> None:
    """At once, with what each says; and sees how they do."""
    smtp, web = Smtp({"RCPT": "550 5.1.1 no such \x1b[31muser"}), Web()
    command = script(tmp_path, 'test -n "$POLICYD_EVENT"')
    with Listener(smtp) as relay, Listener(web) as server:
        parts = (mail(relay.port, ", account: true"), webhook(server.port), f"command: [{command}]")
        with Policyd(section(*parts)) as daemon:
            done = daemon.ctl("notify", "--test")
            head, *lines = (line.strip() for line in done.stderr.splitlines())
            assert (done.returncode, done.stdout, len(lines)) == (1, "", 3)
            assert head == "policyctl: not every channel has taken the test"
            assert lines[0].startswith(
                "mail: NOT SENT (abuse@example.com: the relay answers RCPT with 550 5.1.1 no such"
            )
            assert "\x1b" not in done.stderr
            assert lines[1].startswith("webhook: sent (204, ")
            assert lines[2].startswith("command: sent (status 0, ")
            assert web.told("test")[0]["by"] == "root"
            smtp.replies.clear()
            assert [test["sent"] for test in daemon.ctl_json("notify", "--test")["channels"]] == [True, True, True]
            assert "policyd can reach you" in smtp.mails[0]
            daemon.ctl("lock", ANNA, "--reason", "x")
            until(lambda: len(smtp.mails) == 3)
            until(lambda: [channel["sent"] for channel in daemon.ctl_json("notify")["channels"]] == [1, 1, 1, 1])
            assert daemon.ctl("notify").stdout == "".join(
                f"{channel}: 1 sent, 0 waiting, 0 lost\n" for channel in ("mail", "account", "webhook", "command")
            )
            daemon.reload(LIMITS)
            nobody = "nobody is told of anything: the config has no `notify` section\n"
            assert daemon.ctl("notify").stdout == daemon.ctl("notify", "--test").stdout == nobody


def test_a_channel_that_fails_is_shown(tmp_path: Path) -> None:
    """With since when and why."""
    with Policyd(section(f"command: [{tmp_path}/none]")) as daemon:
        send(daemon)
        until(lambda: "FAILS since 2" in daemon.ctl("notify").stdout)
        (channel,) = daemon.ctl_json("notify")["channels"]
        assert (channel["waiting"], channel["reason"]) == (
            1,
            f"{tmp_path}/none cannot be run: No such file or directory",
        )
