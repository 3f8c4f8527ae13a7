"""What policyctl prints about notices."""

from __future__ import annotations

from policyd.ctl_client import REFUSED, CtlError
from policyd.ctl_layout import Json
from policyd.words import printable

INDENT = "  "


def notices(value: Json) -> list[str]:
    """Tell how each channel does."""
    if not value["channels"]:
        return ["nobody is told of anything: the config has no `notify` section"]
    lines = []
    for channel in value["channels"]:
        lines.append(
            f"{channel['channel']}: {channel['sent']} sent, {channel['waiting']} waiting, {channel['lost']} lost"
        )
        if channel["failing_since"]:
            lines.append(f"{INDENT}FAILS since {channel['failing_since']}: {channel['reason']}")
    return [printable(line) for line in lines]


def tested(value: Json) -> list[str]:
    """Tell what came of a test notice by each channel.

    Raises CtlError where not every channel has taken it.
    """
    if not value["channels"]:
        return ["nobody is told of anything: the config has no `notify` section"]
    lines = [
        printable(
            f"{test['channel']}: {'sent' if test['sent'] else 'NOT SENT'} ({test['said']}, {test['seconds']:.1f} s)"
        )
        for test in value["channels"]
    ]
    if not all(test["sent"] for test in value["channels"]):
        raise CtlError(REFUSED, "not every channel has taken the test", lines)
    return lines
