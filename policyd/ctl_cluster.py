"""What policyctl says of the nodes that share a store; nothing, where there is none."""

from __future__ import annotations

from policyd.ctl_layout import Column, Json, Screen, counted, fields, moment, rows, when

SCRIPT = 7
"""Characters of a script's digest that are shown."""


def state(cluster: Json | None, screen: Screen) -> list[str]:
    """Tell where the store is and how it does, and each node, a line for each."""
    if not cluster:
        return []
    since = "" if cluster["since"] is None else f" since {when(cluster['since'], screen)}"
    waiting, lost = cluster["unshared"]["waiting"], cluster["unshared"]["lost"]
    orders = cluster["orders"]["waiting"]
    told = [("store", f"{cluster['store']}, {'here' if cluster['here'] else 'AWAY'}{since}")]
    if waiting or lost or orders:
        unshared = f"{counted(waiting, 'message')} and {counted(orders, 'order')} wait"
        told += [("unshared", unshared + (f", {counted(lost, 'message')} lost" if lost else ""))]
    cells = [_node(node, cluster["node"], screen) for node in cluster["nodes"]]
    columns = (Column("", least=8), *(Column(""),) * 3, Column("", least=16))
    return ["", "cluster", *fields(*told), *(rows(columns, cells, screen) if cells else [])]


def _node(node: Json, own: str, screen: Screen) -> tuple[str, ...]:
    name = f"{node['node']} (this one)" if node["node"] == own else node["node"]
    silent = f"SILENT since {moment(node['heard'], screen)}" if node["silent"] else "here"
    return name, f"policyd {node['version']}", f"script {node['script'][:SCRIPT]}", silent, " ".join(node["listen"])


def answered(value: Json) -> list[str]:
    """Tell whether an answer is all nodes' own."""
    cluster = value.get("cluster")
    if not cluster:
        return []
    if not cluster["here"]:
        return ["", f"the store is away: this is what {cluster['node']} alone knows"]
    if cluster["silent"]:
        return ["", f"no answer from {', '.join(cluster['silent'])}: what only that has seen is missing"]
    return []


def shared(value: Json) -> list[str]:
    """Tell whether the other nodes know of an order by now."""
    if value.get("shared") is False:
        return ["the store does not know yet: the other nodes are told when the store is back"]
    return []
