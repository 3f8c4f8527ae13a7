"""`policyctl doctor`: what is wrong between Postfix and policyd, and the lines that mend it.

What Postfix's configuration says is held against the daemon's state. Nothing is ever modified.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

from policyd import paths
from policyd.ctl_client import DONE, NOT_RUNNING, REFUSED, CtlError, Question
from policyd.ctl_layout import Json
from policyd.ctl_mending import Fault, IsOurs, Listening, Mending
from policyd.ctl_postconf import Postfix, Smtpd, World, read_postfix
from policyd.ctl_restrictions import PolicyService
from policyd.ctl_sockets import IN_QUEUE, START, Sockets
from policyd.ctl_sockets import World as Seen
from policyd.ctl_wiring import LISTS, WHY, InForce, Wiring, policy_services
from policyd.words import printable, shell_word

ENOUGH = 10
"""Requests from which on it is told that none of them names an account."""

QUIET = 600
"""Seconds without a single request after which it is a fault."""

NO_DATA = "no DATA requests seen"
"""How the daemon's own problem begins that has a fault of its own here."""

CLOSED = "permission denied"
"""How ctl_client begins to tell that a control socket is there, and closed to the caller."""

RESTART = "systemctl restart policyd"
LOG = "journalctl -u policyd -n 50"

WIDTH = 100
"""Columns of the sentences that tell why; lines that mend are never broken."""

Ask = Callable[[Question], Json]


def examine(args: Namespace, ask: Ask) -> Json:
    """Look at Postfix and at the daemon, and return what is wrong; raises CtlError where nothing can be looked at."""
    postfix = read_postfix(args.postfix_config)
    away: str | None = None
    status: Json = {}
    try:
        status = ask(Question("/status"))
    except CtlError as error:
        if error.status != NOT_RUNNING:
            raise
        away = error.lines[0].removeprefix("policyctl: ")
    options = "" if args.postfix_config is None else f"-c {shell_word(postfix.folder or args.postfix_config)}"
    try:
        return diagnosis(postfix, status, away, _endpoints(args, postfix, status), World(), options)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise CtlError(
            REFUSED, "the daemon's answer is not what this policyctl expects: is policyd of the same version?"
        ) from None


def diagnosis(
    postfix: Postfix, status: Json, away: str | None, endpoints: Iterable[str], world: Seen, options: str = ""
) -> Json:
    """Return what is wrong, from a configuration and the daemon's state; `away` tells why there is no state."""
    real = getattr(world, "real", str)
    listening = Listening(endpoints, postfix.value("queue_directory"), real)
    attributes = status.get("attributes", ["sasl_username"])
    is_ours = _recognise(postfix, listening, world)
    mending = Mending(postfix, listening, is_ours, options)
    concerned = _concerned(postfix, is_ours, attributes)
    wiring = Wiring(postfix, is_ours, mending)
    sockets = Sockets(postfix, listening, is_ours, mending, world, is_running=away is None)
    faults: list[Fault] = []
    is_closed = away is not None and away.startswith(CLOSED)
    if away is not None and not is_closed:
        why = "Postfix gives every request default_action, and nothing is limited."
        faults.append(Fault("not-running", away, why, (START if "not running" in away else RESTART,)))
    if not concerned:
        faults.append(_nobody_logs_in(postfix))
    faults += wiring.faults(concerned, _limits(status))
    faults += sockets.faults(postfix.smtpds)
    notes = [*wiring.notes, *sockets.notes, *postfix.warnings]
    if is_closed:
        notes.append(f"not seen: how policyd is: {away}")
    if away is None:
        faults += _daemon_faults(status, attributes)
        notes += _daemon_notes(status, attributes)
    return {
        "postfix": postfix.folder,
        "running": None if is_closed else away is None,
        "faults": [asdict(fault) for fault in faults],
        "notes": list(dict.fromkeys(notes)),
    }


def exit_status(value: Json) -> int:
    """Return the exit status for what was found."""
    return REFUSED if value["faults"] else DONE


def text(value: Json) -> list[str]:
    """Tell what is wrong: each fault with its place, its reason and its lines, then what else is to be known."""
    lines: list[str] = []
    mended: dict[tuple[str, ...], int] = {}
    for number, fault in enumerate(value["faults"], 1):
        lines += [f"{number}. {fault['what']}", *_place(fault), *_paragraph(fault["why"])]
        lines += [*_mending(tuple(fault["mend"]), mended, number), ""]
    lines += [f"note: {note}" for note in value["notes"]] + [""] * bool(value["notes"])
    found = len(value["faults"])
    if found:
        lines += [
            f"{found} fault{'' if found == 1 else 's'}; Postfix was read from {value['postfix']}. "
            "Lines that begin with # are for you to do. After each mending: postfix reload, and policyctl doctor again"
        ]
    else:
        lines += [f"no fault found: Postfix ({value['postfix']}) asks policyd as it should"]
    return [printable(line) for line in lines]


def _mending(mend: tuple[str, ...], mended: dict[tuple[str, ...], int], number: int) -> list[str]:
    """Return the lines that mend a fault; where they have been told of one before, that they mend this, too."""
    first = mended.setdefault(mend, number)
    if first == number or not all(line.startswith("postconf ") for line in mend):
        return [f"     {line}" for line in mend]
    what = "The line above mends" if len(mend) == 1 else "The lines above mend"
    return [f"   {what} this, too: see {first}."]


def _paragraph(sentences: str) -> list[str]:
    import textwrap  # noqa: PLC0415 -- needed for this command alone

    indent = "   "
    return textwrap.wrap(sentences, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _place(fault: Json) -> list[str]:
    if not fault["parameter"]:
        return []
    services = ", ".join(fault["services"])
    return [f"   {fault['file']}: {fault['parameter']}" + (f" ({services})" if services else "")]


def _endpoints(args: Namespace, postfix: Postfix, status: Json) -> list[str]:
    """Return where policyd listens; where it does not say so, where its config or its defaults have it listen."""
    if status:
        return list(status.get("listen", ()))
    from policyd.config import DEFAULT_LISTEN, ConfigError, read_config  # noqa: PLC0415 -- YAML is slow to load, and seldom needed

    in_queue = f"unix:{postfix.value('queue_directory')}/{IN_QUEUE}"
    try:
        return [*read_config(args.config or paths.CONFIG).listen, in_queue]
    except ConfigError:
        return [*DEFAULT_LISTEN, in_queue]


def _recognise(postfix: Postfix, listening: Listening, world: Seen) -> IsOurs:
    """Return what tells policyd among policy services.

    Where none is policyd, but some are where nobody listens, it is those that mean it.
    """
    named: dict[str, PolicyService] = {}
    for smtpd in postfix.smtpds:
        for name in (*LISTS, *smtpd.classes):
            named |= {hook.service.server: hook.service for hook in policy_services(smtpd, name)}
    if any(map(listening.is_ours, named.values())):
        return listening.is_ours
    dead = {
        server
        for server, service in list(named.items())[:20]
        if service.kind == "inet" and world.connects("inet", service.host_and_port)
    }
    return lambda service: listening.is_ours(service) or service.server in dead


def _concerned(postfix: Postfix, is_ours: IsOurs, attributes: Sequence[str]) -> list[Smtpd]:
    """Return the services that have to ask policyd: where clients log in; where logins do not count, what names it."""
    if "sasl_username" in attributes:
        logins = ("smtpd_sasl_auth_enable", "smtpd_authorized_xclient_hosts")
        return [smtpd for smtpd in postfix.smtpds if smtpd.is_on(logins[0]) or smtpd.value(logins[1])]
    asking = [
        smtpd
        for smtpd in postfix.smtpds
        if any(is_ours(hook.service) for name in LISTS for hook in policy_services(smtpd, name))
    ]
    return asking or list(postfix.smtpds)


def _nobody_logs_in(postfix: Postfix) -> Fault:
    line = next((smtpd.name for smtpd in postfix.smtpds if smtpd.name.startswith("submission")), None)
    mend = (
        f"postconf -P {line}/smtpd_sasl_auth_enable=yes"
        if line
        else "# in master.cf, the service submission with -o smtpd_sasl_auth_enable=yes (see main.cf.example)"
    )
    what = "smtpd_sasl_auth_enable is no for every smtpd of master.cf: no client can log in"
    return Fault("no-auth", what, WHY["no-auth"], (mend,), "smtpd_sasl_auth_enable", "master.cf")


def _limits(status: Json) -> list[InForce]:
    """Return the limits that are in force, and act."""
    return [
        InForce(
            limit["name"],
            int(limit["max"]) if limit["per"] == "message" and limit["max"] is not None else 0,
            limit["action"],
        )
        for limit in status.get("limits", ())
        if not limit["observe"]
    ]


def _daemon_faults(status: Json, attributes: Sequence[str]) -> Iterator[Fault]:
    """Find what the daemon's state tells of the wiring."""
    hooks: Mapping[str, bool] = status["hooks"]
    asked, unnamed = sum(status["requests"].values()), status.get("requests_without_account", 0)
    if hooks.get("RCPT") and not (hooks.get("DATA") or hooks.get("END-OF-MESSAGE")):
        what = "requests at RCPT have come in, and none at DATA"
        yield Fault("no-data-seen", what, WHY["no-data-hook"], ("postfix reload",), LISTS[5])
    if not asked and status["uptime"] >= QUIET:
        what = f"not one request has come in for {status['uptime'] / 60:.0f} minutes, since policyd started"
        why = "Either nobody has sent mail, or Postfix does not ask: a changed main.cf counts after a reload."
        yield Fault("never-asked", what, why, ("postfix reload",))
    if asked == unnamed >= ENOUGH and "sasl_username" in attributes:
        what = f"none of {asked} requests names an account"
        why = "Only who has logged in is counted: the services that ask are those where nobody does."
        yield Fault("no-account", what, why, ("postconf -P submission/inet/smtpd_sasl_auth_enable=yes",))
    if errors := status["protocol_errors"]:
        what = f"protocol errors, {errors} so far: what connects does not speak Postfix's policy protocol"
        why = "The log names each peer: something else than smtpd asks there, or the address is for something else."
        yield Fault("protocol-errors", what, why, ("journalctl -u policyd --grep protocol-error",))
    for problem in status["problems"]:
        if not problem.startswith(NO_DATA):
            yield Fault("problem", problem, "policyd itself reports this.", (LOG,))


def _daemon_notes(status: Json, attributes: Sequence[str]) -> Iterator[str]:
    asked, unnamed = sum(status["requests"].values()), status.get("requests_without_account", 0)
    if "listen" not in status:
        yield "policyd does not say where it listens: it is of an older version than policyctl"
    if status.get("observe"):
        yield "policyd only observes (`observe: true` in its config): nothing is refused, held or locked"
    if not asked and status["uptime"] < QUIET:
        yield "no request has come in since policyd started"
    if ENOUGH <= asked < 2 * unnamed < 2 * asked and "sasl_username" in attributes:
        yield f"{unnamed} of {asked} requests name no account: a service asks policyd where clients do not log in"
