"""A workflow as ComfyUI's editor keeps it, read: nodes, links, and subgraphs used within one another.

Everything in it may be missing or of another type than it should; what cannot be done without is an error that says how
to export the API format instead, all else is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cpack_build.errors import WorkflowError
from cpack_build.workflow.interface import HOW_TO_EXPORT

__all__ = [
    "BYPASSED",
    "MUTED",
    "SUBGRAPH_INPUT",
    "SUBGRAPH_OUTPUT",
    "Graph",
    "Link",
    "Node",
    "Slot",
    "read_drawing",
    "refuse",
]

MUTED, BYPASSED = 2, 4
"""LiteGraph's ``LGraphEventMode``."""
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20
"""Ids of the two ends of a subgraph's inner links."""
_NESTING = 16


@dataclass(frozen=True)
class Link:
    """From a node's result to a node's input, each by place."""

    origin: int | str
    origin_slot: int
    target: int | str
    target_slot: int


@dataclass(frozen=True)
class Slot:
    """An input of a node as it is drawn; *widget* names the widget that it is another way into."""

    name: str
    type: str
    link: int | str | None
    widget: str | None


@dataclass(frozen=True)
class Node:
    """A node of one level. *outputs* are the types of its results, *values* those of its widgets: in their order, or
    by name. *proxies* are, of a subgraph, the inner widgets that it shows: (inner node, widget)."""

    id: int | str
    type: str
    mode: int
    title: str | None
    inputs: tuple[Slot, ...]
    outputs: tuple[str, ...]
    values: Any
    order: int
    proxies: tuple[tuple[str, str], ...]

    @property
    def is_off(self) -> bool:
        """Whether it is muted or bypassed."""
        return self.mode in (MUTED, BYPASSED)

    @property
    def named(self) -> Mapping[str, Any] | None:
        """Values of its widgets by name, where they are kept so."""
        return self.values if isinstance(self.values, Mapping) else None

    @property
    def listed(self) -> list[Any]:
        """Values of its widgets in their order."""
        if isinstance(self.values, Mapping):
            return list(self.values.values())
        return self.values if isinstance(self.values, list) else []


@dataclass(frozen=True)
class Graph:
    """One level: the workflow, or one use of a subgraph within *parent* by *instance*; *takes* names its inputs."""

    path: str
    nodes: Mapping[int | str, Node]
    links: Mapping[int | str, Link]
    parent: Graph | None = None
    instance: Node | None = None
    takes: tuple[str, ...] = ()
    inner: dict[int | str, Graph] = field(default_factory=dict)

    def id(self, node: Node) -> str:
        """The node's id in the whole: ``12:3`` within the subgraph 12."""
        return f"{self.path}{node.id}"

    def running(self) -> Iterator[tuple[Graph, Node]]:
        """Every node that is neither muted nor bypassed, with its level, in the drawing's order of execution."""
        for node in sorted(self.nodes.values(), key=lambda node: node.order):
            if node.is_off:
                continue
            if (inner := self.inner.get(node.id)) is not None:
                yield from inner.running()
            else:
                yield self, node


def refuse(name: str, problem: str) -> NoReturn:
    """Raise :class:`WorkflowError`: the workflow *name* cannot be converted, for it *problem*."""
    raise WorkflowError(f"{name} {problem}; it cannot be converted.", hint=HOW_TO_EXPORT)


def read_drawing(document: Mapping[str, Any], *, name: str) -> Graph:
    """The drawing in *document*, which messages call *name*. Raises :class:`WorkflowError`."""
    definitions = document.get("definitions")
    listed = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    subgraphs = {
        item["id"]: item for item in _list(listed) if isinstance(item, Mapping) and isinstance(item.get("id"), str)
    }

    def level(document: Mapping[str, Any], path: str, parent: Graph | None, instance: Node | None, depth: int) -> Graph:
        if depth > _NESTING:
            refuse(name, "has subgraphs within subgraphs without end")
        raw_nodes, raw_links = document.get("nodes"), document.get("links", [])
        if not isinstance(raw_nodes, list) or not isinstance(raw_links, list | dict):
            refuse(name, "has no list of nodes and links")
        nodes = {node.id: node for node in (_node(raw, name) for raw in raw_nodes)}
        values = raw_links.values() if isinstance(raw_links, dict) else raw_links
        links = dict(_link(link, name) for link in values if link is not None)
        inputs = _list(document.get("inputs")) if parent is not None else []
        takes = [item.get("name") if isinstance(item, Mapping) else None for item in inputs]
        graph = Graph(path, nodes, links, parent, instance, tuple(map(str, takes)))
        for node in nodes.values():
            if node.type in subgraphs and not node.is_off:
                graph.inner[node.id] = level(subgraphs[node.type], f"{graph.id(node)}:", graph, node, depth + 1)
        return graph

    return level(document, "", None, None, 0)


def _node(raw: Any, name: str) -> Node:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("id"), int | str) or not isinstance(raw.get("type"), str):
        refuse(name, "has a node without id or type")
    slots = []
    for slot in _list(raw.get("inputs")):
        if not isinstance(slot, Mapping) or not isinstance(slot.get("name"), str):
            refuse(name, f"has an input without name at node {raw['id']}")
        widget = slot.get("widget")
        widget_name = widget.get("name") if isinstance(widget, Mapping) else None
        link = slot.get("link")
        slots.append(
            Slot(
                slot["name"],
                _type_name(slot.get("type")),
                link if isinstance(link, int | str) else None,
                widget_name if isinstance(widget_name, str) else None,
            )
        )
    outputs = [slot.get("type") if isinstance(slot, Mapping) else None for slot in _list(raw.get("outputs"))]
    properties = raw.get("properties")
    proxies = properties.get("proxyWidgets") if isinstance(properties, Mapping) else None
    mode, order, title = raw.get("mode", 0), raw.get("order", 0), raw.get("title")
    # Frontends of 2026 keep the names of the widgets beside their values.
    named = raw.get("widgets_values_named")
    return Node(
        id=raw["id"],
        type=raw["type"],
        mode=mode if isinstance(mode, int) else 0,
        title=title if isinstance(title, str) and title else None,
        inputs=tuple(slots),
        outputs=tuple(_type_name(output) for output in outputs),
        values=named if isinstance(named, Mapping) and named else raw.get("widgets_values"),
        order=order if isinstance(order, int) else 0,
        proxies=tuple(
            (str(item[0]), str(item[1])) for item in _list(proxies) if isinstance(item, list) and len(item) >= 2
        ),
    )


def _link(raw: Any, name: str) -> tuple[int | str, Link]:
    if isinstance(raw, Mapping):
        parts = [raw.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        parts = list(raw[:5]) if isinstance(raw, list) else []
    if len(parts) < 5:
        refuse(name, "has a broken link")
    identity, origin, origin_slot, target, target_slot = parts
    if (
        not isinstance(identity, int | str)
        or not isinstance(origin, int | str)
        or not isinstance(target, int | str)
        or not isinstance(origin_slot, int)
        or not isinstance(target_slot, int)
    ):
        refuse(name, "has a broken link")
    return identity, Link(origin, origin_slot, target, target_slot)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_name(value: object) -> str:
    # Combos of old frontends have their whole list as type.
    return value if isinstance(value, str) else "COMBO" if isinstance(value, list) else "*"
