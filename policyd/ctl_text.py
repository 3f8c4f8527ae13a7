"""What policyctl prints for people: the daemon's JSON in plain lines, without I/O."""

from __future__ import annotations

from policyd import ctl_cluster
from policyd.ctl_layout import (
    INDENT,
    Column,
    Json,
    Screen,
    account_word,
    ahead,
    counted,
    fields,
    moment,
    rows,
    shown,
    span,
    table,
    time_of,
    unlock_command,
    when,
)
from policyd.sizes import short_size


def status(value: Json, screen: Screen) -> list[str]:
    """Tell the daemon's state; what is wrong stands last, right above the shell's prompt."""
    locked = value["locked"]
    lines = [f"policyd {value['version']} is running"]
    lines += fields(
        ("up since", moment(value["started"], screen) + f" (for {span(value['uptime'])})"),
        ("requests", _sum(value["requests"])),
        ("answers", _sum(value["answers"])),
        ("accounts", value["accounts"]),
        ("locked", f"{locked} (policyctl locked shows them)" if locked else "none"),
        ("connections", value["connections"]),
        ("errors", _errors(value)),
        ("hooks seen", _hooks(value["hooks"])),
        ("store", value["store"]),
    )
    lines += ctl_cluster.state(value.get("cluster"), screen)
    if value["problems"]:
        lines += ["", "PROBLEMS", *(f"{INDENT}- {problem}" for problem in value["problems"])]
    return shown(lines)


def account(value: Json, screen: Screen) -> list[str]:
    """Tell all about one account: whether it is locked and how to free it, its limits, tallies and clients."""
    name, lock = value["account"], value["lock"]
    lines = []
    if lock:
        lines += [_lock_sentence(name, "is LOCKED", lock, screen), *_lock_fields(name, lock, screen)]
        lines += _evidence(value, screen)
    elif value["seen"]:
        lines += [f"{name} is not locked"]
    if not value["seen"]:
        lines += [f"{name}: no activity seen"]
    if value["limits"]:
        lines += ["", "limits", *_limits(value["limits"], screen), *_allowances(value["limits"], screen)]
    if value["seen"]:
        lines += ["", "tallies", *fields(*((label, value[key]) for key, label in TALLIES if key in value))]
    if value.get("clients"):
        clients = [(client["address"], when(client["last"], screen)) for client in value["clients"]]
        lines += ["", "recent clients", *rows((Column(""), Column("")), clients, screen)]
    return shown(lines + ctl_cluster.answered(value))


def _evidence(value: Json, screen: Screen) -> list[str]:
    """Tell what led to an account's lock, and what it has tried since."""
    evidence, since = value.get("evidence"), value["attempts_while_locked"]
    if not evidence:
        return []
    told: list[tuple[str, object]] = []
    if evidence["first"]:
        told += [("first", when(evidence["first"], screen))]
    if evidence["messages"]:
        sent = f"{counted(evidence['messages'], 'message')} to {counted(evidence['recipients'], 'recipient')}"
        told += [("sent", sent)]
    for key, each in (("clients", "address"), ("senders", "sender")):
        told += [(key, _most_frequent(evidence[key], each, evidence.get(f"distinct_{key}", 0)))]
    told += [("latest", " ".join(evidence["queue_ids"][:QUEUE_IDS])), ("since then", f"{since} attempts")]
    if evidence["messages"]:
        told += [(key, f"policyctl {key} {account_word(value['account'])}") for key in ("history", "queue")]
    return ["", "what led to it", *fields(*(field for field in told if field[1]))]


def _most_frequent(named: list[Json], key: str, number: int) -> str:
    """Tell those with most messages, and how many more there are."""
    text = ", ".join(f"{found[key]} ({found['messages']})" for found in named)
    more = number - len(named)
    return f"{number}: {text}, and {more} more" if more > 0 else text


QUEUE_IDS = 5
"""The latest queue ids that are shown; --json has more."""

TALLIES = (
    ("refused", "refused"),
    ("held", "held"),
    ("attempts_while_locked", "tried while locked"),
    ("observed", "observed, not refused"),
    ("warned", "warned, let pass"),
)
"""The tallies of an account, and what each is called."""


def accounts(value: Json, over: int | None, screen: Screen) -> list[str]:
    """Tell who sends most, one account a line; a column for each limit that has a window."""
    if not _list(value):
        return ["no account has sent anything" if over is None else f"no account is over {over}%"]
    limits = [{limit["name"]: limit for limit in each["limits"] if limit["per"] != "message"} for each in value]
    names = list(dict.fromkeys(name for each in limits for name in each))
    columns = [Column("account", least=16), Column("state"), *(Column(name, right=True) for name in names)]
    columns += [Column("refused", right=True), Column("held", right=True)]
    told = [
        (
            each["account"],
            "LOCKED" if each["locked"] else "free",
            *(_share(own[name]) if name in own else "-" for name in names),
            each["refused"],
            each["held"],
        )
        for each, own in zip(value, limits, strict=True)
    ]
    return shown(table(columns, told, screen))


def locked(value: Json, screen: Screen) -> list[str]:
    """Tell every lock, one a line."""
    if not _list(value):
        return ["no account is locked"]
    columns = [
        Column("account", least=16),
        Column("since"),
        Column("until"),
        Column("by", least=8),
        Column("answer"),
        Column("count", right=True),
        Column("limit, or reason given", least=16),
    ]
    told = [
        (
            lock["account"],
            when(lock["since"], screen),
            "unlocked" if lock["until"] is None else when(lock["until"], screen),
            lock["by"],
            lock["action"],
            "-" if lock["count"] is None else _number(lock, "count"),
            lock["reason"] if lock["limit"] is None else lock["limit"],
        )
        for lock in value
    ]
    return shown(table(columns, told, screen))


def locked_lately(value: Json, screen: Screen) -> list[str]:
    """Tell locks in short, one a line: for how long, by whom and why."""
    if not _list(value):
        return ["no account is locked"]
    columns = [
        Column("account", least=16),
        Column("locked", right=True),
        Column("by", least=8),
        Column("why", least=16),
    ]
    told = [
        (
            lock["account"],
            f"{span((screen.now - time_of(lock['since'], screen)).total_seconds())} ago",
            lock["by"],
            lock["reason"] if lock["limit"] is None else lock["limit"],
        )
        for lock in value
    ]
    return shown(table(columns, told, screen))


def lock_made(value: Json, screen: Screen) -> list[str]:
    """Tell that an account has been locked by hand."""
    return shown([_lock_sentence(value["account"], "locked", value, screen), *ctl_cluster.shared(value)])


def unlocked(value: Json) -> list[str]:
    """Tell for each account whether it has been freed or was free."""
    freed = []
    held = frozenset(value.get("held", ()))
    for name in value["unlocked"]:
        freed += [f"{name} unlocked; its windows start anew"]
        if name in held:
            freed += [f"{INDENT}what was held stays on hold: policyctl queue --queue hold {account_word(name)}"]
    return shown([*freed, *(f"{name} was not locked" for name in value["free"]), *ctl_cluster.shared(value)])


def counts_reset(value: Json) -> list[str]:
    """Tell that an account's counts are forgotten."""
    done = "its counts are forgotten" if value["seen"] else "no activity seen, there was nothing to forget"
    return shown([f"{value['account']}: {done}", *ctl_cluster.shared(value)])


def reloaded(value: Json) -> list[str]:
    """Tell what has changed in the config, and what of it waits for a restart."""
    lines = [*value["changed"]]
    if value["needs_restart"]:
        lines += [f"in force only after a restart (systemctl restart policyd): {', '.join(value['needs_restart'])}"]
    return shown(lines or ["nothing changed"])


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _lock_sentence(name: str, state: str, lock: Json, screen: Screen) -> str:
    until = "unlocked" if lock["until"] is None else when(lock["until"], screen)
    held = ", its mail is held" if lock["action"] == "HOLD" else ""
    return f"{name} {state} until {until}{held}: {lock['reason']}"


def _lock_fields(name: str, lock: Json, screen: Screen) -> list[str]:
    cause = "by hand" if lock["limit"] is None else f"limit {lock['limit']}"
    count = "" if lock["count"] is None else f" at {_number(lock, 'count')}"
    return fields(
        ("since", when(lock["since"], screen)),
        ("by", f"{lock['by']}, {cause}{count}"),
        ("answer", lock["action"]),
        ("to unlock", unlock_command(name)),
    )


def _limits(limits: Json, screen: Screen) -> list[str]:
    told = [(limit["name"], *_limit(limit)) for limit in limits]
    return rows((Column("", least=16), Column(""), Column("", right=True), Column("")), told, screen)


def _allowances(limits: Json, screen: Screen) -> list[str]:
    """Return which maxima are a person's allowance, for how long, and what they are without."""
    allowed = [(limit, limit["allowance"]) for limit in limits if limit.get("allowance")]
    told = (
        (
            limit["name"],
            f"{_number(limit, 'max')} until {when(given['until'], screen)}, "
            f"else {_number({**limit, **given}, 'usual_max')}; by {given['by']}"
            + (f": {given['reason']}" if given["reason"] else ""),
        )
        for limit, given in allowed
    )
    return ["", "allowances", *fields(*told)] if allowed else []


def _limit(limit: Json) -> tuple[str, str, str]:
    """Return what is counted, the share of the maximum, and when the count will fall."""
    maximum, count = limit["max"], limit["count"]
    if limit["per"] == "message":
        return f"{_number(limit, 'max')} in one message", "", ""
    resets = "" if limit["resets_in"] is None else f"oldest leaves {ahead(limit['resets_in'])}"
    if maximum is None:
        return "unlimited" if count is None else f"{_number(limit, 'count')} in {limit['per']}, unlimited", "", resets
    told = f"{_number(limit, 'count')} of {_number(limit, 'max')} in {limit['per']}"
    return told, _percent(count, maximum), resets


def _share(limit: Json) -> str:
    if limit["max"] is None:
        return "unlimited" if limit["count"] is None else f"{_number(limit, 'count')} (unlimited)"
    return f"{_number(limit, 'count')}/{_number(limit, 'max')} {_percent(limit['count'], limit['max']):>4}"


def _number(value: Json, key: str) -> str:
    """Return a number of what is counted; one of bytes as a size."""
    number = value[key]
    if number is None:
        return "unlimited"
    return short_size(number) if value.get("counts") == "bytes" else str(number)


def _percent(count: int, maximum: int) -> str:
    """Return the share, rounded down: 100% is said only of a limit that is reached."""
    return f"{100 * count // maximum}%"


def _sum(counts: dict[str, int]) -> str:
    detail = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())} ({detail})" if detail else "none"


def _errors(value: Json) -> str:
    told = [
        _counted(value["protocol_errors"], "protocol error"),
        _counted(value["internal_errors"], "internal error", " (please report: the log has the traceback)"),
    ]
    return ", ".join(filter(None, told)) or "none"


def _counted(number: int, noun: str, remark: str = "") -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}{remark}" if number else ""


def _hooks(hooks: dict[str, bool]) -> str:
    seen = ", ".join(name for name, is_seen in hooks.items() if is_seen) or "none"
    unseen = ", ".join(name for name, is_seen in hooks.items() if not is_seen)
    return f"{seen} (not seen: {unseen})" if unseen else seen
