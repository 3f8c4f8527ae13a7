"""The log: one line an event, whatever its values hold, and no flood of warnings."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import policyd
from policyd.answering import _TOLD_AS
from policyd.log import EVENTS, MAX_WARNINGS, NOTICE, SUM_UP, EventLog, is_journal, line

SOURCES = sorted(Path(policyd.__file__).parent.glob("*.py"))


class Log:
    """An event log with a clock that the test moves, and the lines that it writes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.severities: list[int] = []
        self.events = EventLog(lambda: self.now, self.write)

    def write(self, severity: int, text: str) -> None:
        """Keep a line."""
        self.severities.append(severity)
        self.lines.append(text)

    def complain(self, reason: object, times: int = 1) -> None:
        """Report a warning."""
        for _ in range(times):
            self.events.report("protocol-error", {"reason": reason})

    def later(self, seconds: float) -> list[str]:
        """Let time pass, and return what is written then."""
        self.now += seconds
        before = len(self.lines)
        self.events.sum_up()
        return self.lines[before:]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("anna@example.com", "anna@example.com"),
        ("jürgen@exämple.com", "jürgen@exämple.com"),
        (501, "501"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("it's", '"it\'s"'),
        ("back\\slash", r'"back\\slash"'),
        ("x\nlock account=root", r'"x\nlock account=root"'),
        ("x\r", r'"x\r"'),
        ("x\t", r'"x\t"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("\x7f\x85", r'"\u007f\u0085"'),
        ("a\u2028b", r'"a\u2028b"'),
        ("a\u2029b", r'"a\u2029b"'),
        ("a\u00a0b", r'"a\u00a0b"'),
        ("\x00", r'"\u0000"'),
    ],
)
def test_a_value_is_quoted_where_it_must_be(value: object, written: str) -> None:
    """Plain values stand as they are; all others as JSON, in ASCII."""
    assert line("refused", {"account": value, "limit": "x"}) == f"refused account={written} limit=x"


def test_what_is_not_known_is_not_written() -> None:
    """A field without a value is left out."""
    assert line("lock", {"account": "a", "limit": None, "count": None}) == "lock account=a"


@given(st.text(st.characters(exclude_categories=()) | st.sampled_from("\n\r\"'= \\\x1b\x7f\x85\u2028\u2029\udc80")))
def test_no_value_can_forge_a_line_or_a_field(value: str) -> None:
    """Any text, lone surrogates included, is one field of one line, holds no terminal codes, and can be read back."""
    text = line("refused", {"account": value, "limit": "x"})
    assert len(text.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    found = re.fullmatch(r'refused account=("(?:[^"\\]|\\.)*"|[^\s"\'=\\]+) limit=x', text)
    assert found is not None
    assert (json.loads(found[1]) if found[1].startswith('"') else found[1]) == value


def test_each_event_has_its_severity() -> None:
    """Errors and warnings stand out, orders and states are notices, refusals are information."""
    log = Log()
    for event in EVENTS:
        log.events.report(event, {"n": event})
    assert dict(zip((text.split()[0] for text in log.lines), log.severities, strict=True)) == EVENTS
    assert set(EVENTS.values()) == {logging.INFO, NOTICE, logging.WARNING, logging.ERROR}


def test_an_event_that_is_not_documented_cannot_be_reported() -> None:
    """The words are a closed set."""
    with pytest.raises(KeyError):
        Log().events.report("oops", {})


def test_every_word_that_is_reported_is_documented_and_the_other_way_round() -> None:
    """The table of events and the calls that report them say the same."""
    words: set[object] = {*_TOLD_AS.values(), "more-warnings", "lines-lost"}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "").lstrip("_") == "report":
                words |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    assert words == set(EVENTS)


def test_a_warning_that_repeats_is_summed_up() -> None:
    """It is written at once, and a minute later how often it has come again; then it is news again."""
    log = Log()
    log.complain("x", 500)
    assert log.lines == ["protocol-error reason=x"]
    assert log.later(SUM_UP - 0.001) == []
    assert log.later(0.001) == ["protocol-error reason=x repeated=499"]
    assert log.later(SUM_UP) == []
    log.complain("x")
    assert log.lines[-1] == "protocol-error reason=x"


def test_a_warning_that_comes_once_is_written_once() -> None:
    """Nothing is summed up of what did not repeat."""
    log = Log()
    log.complain("x")
    assert log.later(SUM_UP) == []


def test_a_sum_is_written_when_the_warning_comes_again_too() -> None:
    """The sum does not wait for the next look at the time."""
    log = Log()
    log.complain("x", 3)
    log.now += SUM_UP
    log.complain("x")
    assert log.lines == ["protocol-error reason=x", "protocol-error reason=x repeated=2", "protocol-error reason=x"]


def test_different_warnings_are_told_apart() -> None:
    """The sum is that of the very same line."""
    log = Log()
    for reason in ("x", "y", "x", "y", "y"):
        log.complain(reason)
    assert log.lines == ["protocol-error reason=x", "protocol-error reason=y"]
    assert log.later(SUM_UP) == ["protocol-error reason=x repeated=1", "protocol-error reason=y repeated=2"]


def test_what_is_no_warning_is_never_summed_up() -> None:
    """Every refusal, lock and order has its line."""
    log = Log()
    for _ in range(3):
        log.events.report("refused", {"account": "anna"})
        log.events.report("lock", {"account": "anna"})
    assert len(log.lines) == 6


@pytest.mark.parametrize("surplus", [1, 2, 1000])
def test_many_different_warnings_are_summed_up_too(surplus: int) -> None:
    """Beyond a hundred different ones in a minute, only their number is written, and nothing else grows."""
    log = Log()
    for n in range(MAX_WARNINGS + surplus):
        log.complain(n)
    assert len(log.lines) == MAX_WARNINGS
    assert len(log.events._repeats) <= MAX_WARNINGS + 1
    assert log.later(SUM_UP) == [f"more-warnings repeated={surplus}"]
    log.complain("news")
    assert log.lines[-1] == "protocol-error reason=news"


SCRIPT = """
from twisted.logger import Logger
from policyd.log import EventLog, start_logging
start_logging()
log = EventLog(lambda: 0.0)
for event in ("refused", "lock", "protocol-error", "internal-error"):
    log.report(event, {"n": "two\\nlines"})
Logger("twisted").error("first\\nsecond")
Logger("twisted").info("not worth a line")
"""


def written(stderr: Path, journal: bool) -> list[str]:
    """Return what a process logs to a file that is, or is not, said to be the journal."""
    with stderr.open("wb") as stream:
        found = os.fstat(stream.fileno())
        place = f"{found.st_dev}:{found.st_ino}" if journal else "1:1"
        environment = {**os.environ, "JOURNAL_STREAM": place, "PYTHONPATH": str(SOURCES[0].parent.parent)}
        subprocess.run([sys.executable, "-c", SCRIPT], stderr=stream, env=environment, check=True, timeout=60)
    return stderr.read_text().splitlines()


def test_lines_for_the_journal_have_priorities(tmp_path: Path) -> None:
    """Each line, also of a text of several, begins with the priority of sd-daemon(3), and has no time."""
    assert written(tmp_path / "stderr", journal=True) == [
        r'<6>refused n="two\nlines"',
        r'<5>lock n="two\nlines"',
        r'<4>protocol-error n="two\nlines"',
        r'<3>internal-error n="two\nlines"',
        "<3>first",
        "<3>second",
    ]


def test_lines_for_people_have_times(tmp_path: Path) -> None:
    """Anywhere else, each event begins with its time and its severity in words."""
    lines = written(tmp_path / "stderr", journal=False)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    assert [re.sub(f"^{time}", "", text) for text in lines] == [
        r'INFO refused n="two\nlines"',
        r'NOTICE lock n="two\nlines"',
        r'WARNING protocol-error n="two\nlines"',
        r'ERROR internal-error n="two\nlines"',
        "ERROR first",
        "second",
    ]
    assert all(re.match(time, text) for text in lines[:-1])


def test_a_closed_descriptor_is_no_journal(tmp_path: Path) -> None:
    """Neither a file that is not the journal nor what is closed leads there."""
    with (tmp_path / "closed").open("w") as stream:
        descriptor = stream.fileno()
        assert not is_journal(descriptor)
    assert not is_journal(descriptor)


STALLED = """
import os
from policyd.log import EventLog, start_logging
reader, writer = os.pipe()
start_logging(writer)
log = EventLog(lambda: 0.0)
for n in range(10_000):
    log.report("refused", {"n": n})
before = os.read(reader, 1 << 20).decode().splitlines()
log.report("refused", {"n": "room"})
log.report("refused", {"n": "more"})
after = os.read(reader, 1 << 20).decode().splitlines()
print(10_000 - len(before), *(line.split(" ", 3)[3] for line in after), sep="\\n")
"""


def test_a_log_that_nobody_reads_does_not_stop_the_mail() -> None:
    """Lines that a full pipe does not take are lost, and how many is told once there is room."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES[0].parent.parent)}
    command = [sys.executable, "-c", STALLED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    lost, *told = done.stdout.splitlines()
    assert 0 < int(lost) < 10_000
    assert told == [f"lines-lost number={lost}", "refused n=room", "refused n=more"]


def test_each_reload_that_fails_is_told() -> None:
    """Who tries the same bad file twice sees twice what is wrong with it."""
    log = Log()
    for _ in range(2):
        log.events.report("reload-failed", {"problem": "x"})
    assert log.lines == ["reload-failed problem=x"] * 2


def test_a_sum_is_as_severe_as_what_it_sums_up() -> None:
    """A bug that repeats is an error all the time."""
    log = Log()
    for _ in range(2):
        log.events.report("internal-error", {"traceback": "x"})
    assert log.later(SUM_UP) == ["internal-error traceback=x repeated=1"]
    assert log.severities == [logging.ERROR] * 2


def test_at_the_end_open_sums_are_written() -> None:
    """What was counted in the last minute is not lost."""
    log = Log()
    for _ in range(3):
        log.events.report("protocol-error", {"reason": "x"})
    log.events.sum_up(at_end=True)
    assert log.lines == ["protocol-error reason=x", "protocol-error reason=x repeated=2"]
