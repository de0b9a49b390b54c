"""Group nodes, which frontends before 2026 knew, as the subgraphs that today's frontends make of them.

A workflow keeps the inside of each in ``extra.groupNodes``. What a group node shows of it is told by the frontend's
``GroupNodeConfig``: the widgets and free inputs of its nodes in their declared order, those converted from widgets at
the end; a name that was met before has the inner node's title before it; the results that no link within uses. Where
the values that one has do not come out even with that, it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cpack_build.workflow.drawing import SUBGRAPH_INPUT, SUBGRAPH_OUTPUT, refuse
from cpack_build.workflow.widgets import Declared, Misfit, declared_inputs, read_values

__all__ = ["is_group_node", "without_group_nodes"]

_PREFIXES = ("workflow>", "workflow/")
_VIRTUAL = ("PrimitiveNode", "Reroute")


@dataclass
class _Group:
    """A group node's definition as a subgraph, and what it shows: widgets (exposed name, inner node, inner name)."""

    definition: dict[str, Any]
    widgets: list[tuple[Declared, int, str]] = field(default_factory=list)


def is_group_node(kind: str) -> bool:
    """Whether a node of that type is a group node."""
    return kind.startswith(_PREFIXES)


def without_group_nodes(document: Mapping[str, Any], info: Mapping[str, Any], *, name: str) -> Mapping[str, Any]:
    """*document* with subgraphs in place of group nodes. Raises :class:`WorkflowError` where that cannot be told."""
    nodes = document.get("nodes")
    extra = document.get("extra")
    kept = extra.get("groupNodes") if isinstance(extra, Mapping) else None
    if not isinstance(nodes, list) or not isinstance(kept, Mapping):
        return document
    groups: dict[str, _Group] = {}
    replaced = []
    for node in nodes:
        kind = node.get("type") if isinstance(node, Mapping) else None
        if not isinstance(kind, str) or not is_group_node(kind) or kind.split(kind[8], 1)[1] not in kept:
            replaced.append(node)
            continue
        if kind not in groups:
            groups[kind] = _Reading(kept[kind.split(kind[8], 1)[1]], info, kind, name).group()
        replaced.append(_instance(node, groups[kind], name))
    if not groups:
        return document
    definitions = document.get("definitions")
    listed = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    subgraphs = [*(listed if isinstance(listed, list) else []), *(group.definition for group in groups.values())]
    return {**document, "nodes": replaced, "definitions": {"subgraphs": subgraphs}}


def _instance(node: Mapping[str, Any], group: _Group, name: str) -> dict[str, Any]:
    """A group node as a use of its subgraph: each of its values goes to the inner widget that it shows."""
    try:
        read = read_values([item for item, _, _ in group.widgets], node.get("widgets_values"))
    except Misfit as misfit:
        refuse(name, f"has the group node {node.get('id')} {misfit}")
    if read.more:
        refuse(name, f"has the group node {node.get('id')} with {read.more} values more than its nodes show")
    shown = [
        (str(inner), key, read.values[item.name]) for item, inner, key in group.widgets if item.name in read.values
    ]
    return {
        **node,
        "type": group.definition["id"],
        "widgets_values": [value for _, _, value in shown],
        "properties": {"proxyWidgets": [[inner, key] for inner, key, _ in shown]},
    }


class _Reading:
    """One group node's inside, gone through as the frontend does."""

    def __init__(self, data: Any, info: Mapping[str, Any], kind: str, name: str) -> None:
        if not isinstance(data, Mapping) or not isinstance(data.get("nodes"), list):
            refuse(name, f"has the group node {kind} without its nodes")
        self._name, self._kind, self._info = name, kind, info
        self._nodes = [dict(node) if isinstance(node, Mapping) else {} for node in data["nodes"]]
        for node in self._nodes:
            slots = node.get("inputs")
            sound = [slot for slot in (slots if isinstance(slots, list) else []) if isinstance(slot, Mapping)]
            node["inputs"] = [{**slot, "link": None} for slot in sound]
        self._links = [link for link in self._list(data.get("links")) if self._is_inner(link)]
        self._into = {(link[2], link[3]): link for link in self._links}
        self._from = {(link[0], link[1]) for link in self._links}
        external = [item for item in self._list(data.get("external")) if isinstance(item, list) and len(item) > 2]
        self._external = {(item[0], item[1]): item[2] for item in external}
        config = data.get("config")
        self._config: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
        self._seen: dict[str, int] = {}
        self._made: list[list[Any]] = []
        self._takes: list[dict[str, Any]] = []
        self._late: list[tuple[int, Declared]] = []
        self._group = _Group({})

    def group(self) -> _Group:
        for origin, slot, target, target_slot, *_ in self._links:
            self._link(origin, slot, target, target_slot)
        results = 0
        for index, node in enumerate(self._nodes):
            node |= {"id": index, "mode": node.get("mode", 0), "order": index}
            declared, outputs = self._class(index, node)
            self._widgets_and_inputs(index, node, declared)
            for slot in range(outputs):
                visible = self._setting(index, "output", str(slot)).get("visible")
                hidden = (index, slot) in self._from and not self._external.get((index, slot))
                if visible if isinstance(visible, bool) else not hidden:
                    self._link(index, slot, SUBGRAPH_OUTPUT, results)
                    results += 1
        for index, item in self._late:
            exposed = self._exposed(index, item)
            # such a widget kept its value, and its place among the others
            self._group.widgets.append((exposed, index, item.name))
            self._input(index, item, exposed.name)
        self._group.definition = {
            "id": self._kind, "nodes": self._nodes, "links": self._made, "inputs": self._takes,
        }  # fmt: skip
        return self._group

    def _widgets_and_inputs(self, index: int, node: dict[str, Any], declared: list[Declared]) -> None:
        converted = {
            slot.get("name")
            for slot in node["inputs"]
            if isinstance(slot.get("widget"), Mapping) and slot["widget"].get("name") == slot.get("name")
        }
        for item in declared:
            if not item.is_widget:
                continue
            if item.name not in converted:
                self._group.widgets.append((self._exposed(index, item), index, item.name))
        for position, item in enumerate(item for item in declared if not item.is_widget):
            slot = self._slot(node, item.name, position)
            if (index, slot) in self._into:
                continue
            exposed = self._exposed(index, item)
            if self._setting(index, "input", item.name).get("visible") is not False:
                self._input(index, item, exposed.name)
        for slot, drawn in enumerate(node["inputs"]):
            wanted = next((item for item in declared if item.is_widget and item.name == drawn.get("name")), None)
            if wanted is not None and wanted.name in converted and (index, slot) not in self._into:
                self._late.append((index, wanted))

    def _class(self, index: int, node: Mapping[str, Any]) -> tuple[list[Declared], int]:
        """The inputs of an inner node, and how many results it has."""
        kind = node.get("type")
        info = self._info.get(kind) if isinstance(kind, str) else None
        if isinstance(info, Mapping):
            outputs = info.get("output")
            return declared_inputs(info), len(outputs) if isinstance(outputs, list) else 0
        if kind not in _VIRTUAL:
            return [], 0
        fed = [link for link in self._links if link[0] == index]
        types = [link[5] for link in fed if len(link) > 5 and isinstance(link[5], str)]
        if kind == "PrimitiveNode":
            if not fed:
                return [], 0
            # numbers have a control after them, as their targets' own widgets would
            primitive = {"control_after_generate": True} if types[:1] in (["INT"], ["FLOAT"], ["COMBO"]) else {}
            return [Declared("value", types[0] if types else "*", primitive)], 1
        if (index, 0) in self._into and fed and not self._external.get((index, 0)):
            return [], 0
        given = self._external.get((index, 0))
        return [Declared(types[0] if types else given if isinstance(given, str) else "*", "*", {})], 1

    def _exposed(self, index: int, item: Declared) -> Declared:
        """*item* under the name that the group node shows it by (``GroupNodeConfig.getInputConfig``)."""
        node = self._nodes[index]
        told = self._setting(index, "input", item.name).get("name")
        label = next((slot.get("label") for slot in node["inputs"] if slot.get("name") == item.name), None)
        name = key = str(told or label or item.name)
        title = node.get("title")
        if (node.get("type") == "PrimitiveNode" and title) or name in self._seen:
            prefix = f"{title or node.get('type')} "
            name = key = prefix + item.name
            if name in self._seen:
                name = f"{prefix}{self._seen[name]} {item.name}"
        self._seen[key] = self._seen.get(key, 1) + 1
        options = dict(item.options)
        if item.name in ("seed", "noise_seed"):
            options.setdefault("control_after_generate", True)
        return Declared(name, item.kind, options)

    def _input(self, index: int, item: Declared, name: str) -> None:
        node = self._nodes[index]
        names = [slot.get("name") for slot in node["inputs"]]
        if node.get("type") == "Reroute":
            slot = 0 if names else -1
        else:
            slot = names.index(item.name) if item.name in names else -1
        if slot < 0:
            widget = {"widget": {"name": item.name}} if item.is_widget else {}
            node["inputs"].append({"name": item.name, "type": item.kind, "link": None, **widget})
            slot = len(node["inputs"]) - 1
        self._takes.append({"name": name})
        self._link(SUBGRAPH_INPUT, len(self._takes) - 1, index, slot)

    def _link(self, origin: int, slot: int, target: int, target_slot: int) -> None:
        identity = len(self._made) + 1
        self._made.append([identity, origin, slot, target, target_slot])
        if target >= 0 and target_slot < len(self._nodes[target]["inputs"]):
            self._nodes[target]["inputs"][target_slot]["link"] = identity

    @staticmethod
    def _slot(node: Mapping[str, Any], name: str, position: int) -> int:
        names = [slot.get("name") for slot in node["inputs"]]
        return names.index(name) if name in names else position

    def _setting(self, index: int, side: str, key: str) -> Mapping[str, Any]:
        """What a person set for one input or output of an inner node: another name, or that it be hidden."""
        of_node = self._config.get(str(index))
        of_side = of_node.get(side) if isinstance(of_node, Mapping) else None
        found = of_side.get(key) if isinstance(of_side, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def _is_inner(self, link: Any) -> bool:
        whole = isinstance(link, list) and len(link) >= 4 and all(isinstance(part, int) for part in link[:4])
        return whole and 0 <= link[0] < len(self._nodes) and 0 <= link[2] < len(self._nodes)

    @staticmethod
    def _list(value: Any) -> list[Any]:
        return value if isinstance(value, list) else []
