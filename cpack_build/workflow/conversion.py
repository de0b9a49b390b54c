"""A workflow as ComfyUI's editor draws it → the API format, as its frontend would export it.

That is the frontend's ``graphToPrompt`` with the classes known from an ``object_info``: widget values are assigned to
inputs in declared order; muted nodes vanish; a bypassed node passes on the input that fits; reroutes, primitives and
Set/Get pairs are followed; subgraphs and group nodes are laid flat under ids like ``12:3``. What the frontend does by
code that only it has cannot be told from the file: then the error names the node and says how to export the API format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cpack_build.errors import WorkflowError
from cpack_build.workflow.drawing import (
    BYPASSED,
    MUTED,
    SUBGRAPH_INPUT,
    SUBGRAPH_OUTPUT,
    Graph,
    Link,
    Node,
    read_drawing,
    refuse,
)
from cpack_build.workflow.groupnodes import is_group_node, without_group_nodes
from cpack_build.workflow.interface import HOW_TO_EXPORT, VALUE_KEYS
from cpack_build.workflow.widgets import Declared, Misfit, declared_inputs, protected, read_values

__all__ = ["Converted", "convert", "is_ui_format"]

_DECORATION = frozenset({"Note", "MarkdownNote"}) | frozenset(
    f"{name} (rgthree)"
    for name in (
        "Bookmark", "Fast Actions Button", "Fast Bypasser", "Fast Groups Bypasser", "Fast Groups Muter", "Fast Muter",
        "Label", "Mute / Bypass Relay", "Mute / Bypass Repeater", "Node Collector", "Random Unmuter",
    )
)  # fmt: skip
"""Nodes for the person at the editor; what they switched is in the modes of the others."""
_VIRTUAL = frozenset({"Reroute", "Reroute (rgthree)", "PrimitiveNode", "SetNode", "GetNode"}) | _DECORATION
_ANY_WIDGET = ("CPackInputAny", "CPackInputFile")
_BY_CODE = ("Anything Everywhere", "Prompts Everywhere", "Seed Everywhere")
"""Nodes that the frontend links to others only when it runs the workflow."""
_HOST = "-1"
"""In a subgraph's list of shown widgets: the widget of one of its own inputs."""


@dataclass(frozen=True)
class Converted:
    """The workflow in the API format, and what about it is not certain, one sentence each."""

    prompt: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Result:
    """A real node's result."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class _Value:
    """What a primitive holds, or a subgraph's own input."""

    value: Any


def is_ui_format(document: Mapping[str, Any]) -> bool:
    """Whether *document* is a drawing of a workflow rather than what to run."""
    return "last_node_id" in document or isinstance(document.get("nodes"), list)


def convert(document: Mapping[str, Any], object_info: Mapping[str, Any] | None, *, name: str) -> Converted:
    """The workflow *document* of the editor in the API format; *name* is what messages call it.

    *object_info* is the answer of the ComfyUI that it runs on to ``GET /object_info``; without it nobody knows which
    value belongs to which input. Raises :class:`WorkflowError`, which says how to export the API format, whenever it
    cannot be converted with certainty of every node.
    """
    if object_info is None:
        raise WorkflowError(
            f"{name} is in the UI format, which holds the drawing of a workflow rather than what to run.",
            hint=f"{HOW_TO_EXPORT} Or give the answer of that ComfyUI's /object_info, to convert it.",
        )
    try:
        drawing = read_drawing(without_group_nodes(document, object_info, name=name), name=name)
        return _Conversion(drawing, object_info, name).run()
    except RecursionError:
        raise WorkflowError(f"{name}: its links are nested too deeply.", hint=HOW_TO_EXPORT) from None


class _Conversion:
    def __init__(self, drawing: Graph, info: Mapping[str, Any], name: str) -> None:
        self._drawing = drawing
        self._info = info
        self._name = name
        self._notes: list[str] = []

    def run(self) -> Converted:
        prompt: dict[str, Any] = {}
        for graph, node in self._drawing.running():
            if node.type.startswith(_BY_CODE):
                refuse(self._name, f"has node {graph.id(node)} ({node.type}), which the frontend links by code")
            if node.type not in _VIRTUAL:
                prompt[graph.id(node)] = self._converted(graph, node)
        for identity, node in prompt.items():
            kept = {
                key: value
                for key, value in node["inputs"].items()
                if not (isinstance(value, list) and value[0] not in prompt)
            }
            node["inputs"] = kept
            self._note_missing(identity, node)
        if not prompt:
            refuse(self._name, "has no nodes to run")
        return Converted(prompt, tuple(self._notes))

    def _note_missing(self, identity: str, node: Mapping[str, Any]) -> None:
        declared = declared_inputs(self._info[node["class_type"]])
        wanted = [item.name for item in declared if item.required and not item.is_widget and item.kind != "*"]
        lacking = [name for name in wanted if not any(key.split(".")[0] == name for key in node["inputs"])]
        if lacking and not node["class_type"].startswith("CPack"):
            self._notes.append(
                f"{self._name}: nothing is linked to {', '.join(lacking)} of node {identity} ({node['class_type']}), "
                "which ComfyUI will refuse."
            )

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _converted(self, graph: Graph, node: Node) -> dict[str, Any]:
        info = self._info.get(node.type)
        if not isinstance(info, Mapping):
            what = "a group node" if is_group_node(node.type) else f"of class {node.type}"
            refuse(self._name, f"has node {graph.id(node)} {what}, which the given object_info does not know")
        declared = declared_inputs(info)
        linked = {slot.name for slot in node.inputs if slot.link is not None}
        if node.type in _ANY_WIDGET and node.listed:
            # Frontend code gives these the widget of the input they feed, whatever that is.
            declared = [
                replace(item, kind="COMBO") if item.name == VALUE_KEYS[node.type] else item for item in declared
            ]
        inputs = self._widget_values(graph, node, declared, linked)
        meta: dict[str, Any] = {"title": node.title or info.get("display_name") or node.type}
        if node.type in _ANY_WIDGET:
            key = VALUE_KEYS[node.type]
            if node.named is not None and key not in node.named and node.listed and not linked:
                inputs = {key: node.listed[0]}  # comfy-pack's code names the widget after that input, too
            if node.type == "CPackInputAny" and (options := self._fed_options(graph, node)):
                meta["options"] = options
        for index, slot in enumerate(node.inputs):
            found = self._resolve_input(graph, node, index, slot.type, set())
            if isinstance(found, _Result):
                inputs[slot.name] = [found.node_id, found.slot]
            elif isinstance(found, _Value):
                inputs[slot.widget or slot.name] = protected(found.value)
        return {"inputs": inputs, "class_type": node.type, "_meta": meta}

    def _widget_values(self, graph: Graph, node: Node, declared: list[Declared], linked: set[str]) -> dict[str, Any]:
        shown = {widget: value for (inner, widget), value in self._shown(graph) if inner == str(node.id)}
        try:
            read = read_values(declared, node.values, linked=linked)
        except Misfit as misfit:
            refuse(self._name, f"has node {graph.id(node)} ({node.type}) {misfit}")
        if read.more and not node.type.startswith("CPackInput"):
            self._notes.append(
                f"{self._name}: node {graph.id(node)} ({node.type}) keeps {read.more} values that ComfyUI does not "
                "declare; they are left out."
            )
        return {name: protected(shown.get(name, value)) for name, value in read.values.items()}

    def _shown(self, graph: Graph) -> list[tuple[tuple[str, str], Any]]:
        """What the subgraph's own node holds for inner widgets that it shows: (inner node, widget) and value.

        A subgraph within another may show a widget on, and then the outer one's value counts.
        """
        instance = graph.instance
        if instance is None or graph.parent is None or instance.named is not None or not instance.listed:
            return []
        if len(instance.proxies) != len(instance.listed):
            self._held_inputs(graph)
            return []
        above = {widget: value for (inner, widget), value in self._shown(graph.parent) if inner == str(instance.id)}
        pairs = zip(instance.proxies, instance.listed, strict=True)
        held = [(pair, above.get(pair[1], value)) for pair, value in pairs]
        return [(pair, value) for pair, value in held if value is not None]

    def _held(self, graph: Graph, name: str) -> Any:
        """What the subgraph's own node holds for its input *name*, where nothing is linked to that; or ``None``."""
        instance = graph.instance
        if instance is None or graph.parent is None or not instance.listed:
            return None
        if instance.named is not None:
            return instance.named.get(name)
        if len(instance.proxies) == len(instance.listed):
            return next((value for (inner, key), value in self._shown(graph) if (inner, key) == (_HOST, name)), None)
        pairs = zip(self._held_inputs(graph), instance.listed, strict=False)
        return next((value for slot, value in pairs if _taken(graph, slot) == name), None)

    def _held_inputs(self, graph: Graph) -> list[int]:
        """Which of a subgraph's inputs its own node holds values for, where it does not say whose they are: those that
        end in an inner widget, in their order."""
        slots = sorted({link.origin_slot for link in graph.links.values() if _ends_in_widget(graph, link)})
        if graph.instance is not None and graph.parent is not None and len(slots) != len(graph.instance.listed):
            identity = graph.parent.id(graph.instance)
            refuse(self._name, f"has the subgraph {identity} with values that cannot be told apart")
        return slots

    def _fed_options(self, graph: Graph, node: Node) -> dict[str, Any]:
        """What the first input that *node* feeds declares, as the frontend keeps a widget's options."""
        for link in graph.links.values():
            target = graph.nodes.get(link.target)
            if link.origin != node.id or target is None or not 0 <= link.target_slot < len(target.inputs):
                continue
            info = self._info.get(target.type)
            wanted = target.inputs[link.target_slot].name
            for item in declared_inputs(info) if isinstance(info, Mapping) else ():
                if item.name != wanted:
                    continue
                if item.kind == "COMBO" and isinstance(item.options.get("options"), list):
                    return {"values": list(item.options["options"])}
                if item.kind in ("INT", "FLOAT"):
                    kept = {key: item.options[key] for key in ("min", "max", "step", "round") if key in item.options}
                    return {**kept, "precision": 0 if item.kind == "INT" else 2}
        return {}

    # -- links ---------------------------------------------------------------------------------------------------------

    def _resolve_input(
        self, graph: Graph, node: Node, index: int, wanted: str, visited: set[tuple[str, str, int]]
    ) -> _Result | _Value | None:
        if not 0 <= index < len(node.inputs) or node.inputs[index].link is None:
            return None
        link = graph.links.get(node.inputs[index].link or 0)
        if link is None:
            return None
        return self._resolve_origin(graph, link, wanted, visited)

    def _resolve_origin(
        self, graph: Graph, link: Link, wanted: str, visited: set[tuple[str, str, int]]
    ) -> _Result | _Value | None:
        if link.origin == SUBGRAPH_INPUT and graph.parent is not None and graph.instance is not None:
            # The instance lists its inputs in an order of its own, and not those that only show a widget.
            name = _taken(graph, link.origin_slot)
            names = [slot.name for slot in graph.instance.inputs]
            index = names.index(name) if name in names else link.origin_slot if not graph.takes else -1
            found = self._resolve_input(graph.parent, graph.instance, index, wanted, visited)
            is_linked = 0 <= index < len(names) and graph.instance.inputs[index].link is not None
            if found is None and not is_linked and (held := self._held(graph, name)) is not None:
                return _Value(held)
            return found
        origin = graph.nodes.get(link.origin)
        return None if origin is None else self._resolve_output(graph, origin, link.origin_slot, wanted, visited)

    def _resolve_output(
        self, graph: Graph, node: Node, slot: int, wanted: str, visited: set[tuple[str, str, int]]
    ) -> _Result | _Value | None:
        """*wanted* is the type of the input that asks, whatever lies between."""
        step = (graph.path, str(node.id), slot)
        if step in visited:
            refuse(self._name, f"has links in a circle at node {graph.id(node)}")
        visited.add(step)
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            passed = _bypass(node, slot, wanted)
            return None if passed is None else self._resolve_input(graph, node, passed, wanted, visited)
        if (inner := graph.inner.get(node.id)) is not None:
            for link in inner.links.values():
                if link.target == SUBGRAPH_OUTPUT and link.target_slot == slot:
                    return self._resolve_origin(inner, link, wanted, visited)
            return None
        if node.type == "PrimitiveNode":
            shown = (value for pair, value in self._shown(graph) if pair == (str(node.id), "value"))
            return next((_Value(value) for value in (*shown, *node.listed[:1])), None)
        if node.type == "GetNode":
            setter = _setter(graph, node)
            return None if setter is None else self._resolve_input(graph, setter, 0, wanted, visited)
        if node.type in _VIRTUAL:
            return self._resolve_input(graph, node, slot, wanted, visited)
        return _Result(graph.id(node), slot)


def _taken(graph: Graph, slot: int) -> str:
    """The name of a subgraph's input, by its place."""
    return graph.takes[slot] if 0 <= slot < len(graph.takes) else ""


def _ends_in_widget(graph: Graph, link: Link) -> bool:
    """Whether a link from the subgraph's edge leads to a widget, also through subgraphs within."""
    target = graph.nodes.get(link.target)
    if link.origin != SUBGRAPH_INPUT or target is None or not 0 <= link.target_slot < len(target.inputs):
        return False
    slot = target.inputs[link.target_slot]
    if slot.widget is not None:
        return True
    inner = graph.inner.get(target.id)
    return inner is not None and any(
        _ends_in_widget(inner, below) for below in inner.links.values() if _taken(inner, below.origin_slot) == slot.name
    )


def _setter(graph: Graph, node: Node) -> Node | None:
    def others() -> Iterator[Node]:
        yield from (other for other in graph.nodes.values() if other.type == "SetNode")

    return next((other for other in others() if other.listed[:1] == node.listed[:1] != []), None)


def _bypass(node: Node, slot: int, wanted: str) -> int | None:
    """Which input a bypassed node hands on (the frontend's ``_getBypassSlotIndex``)."""
    types = [item.type for item in node.inputs]
    if wanted in ("*", ""):
        return (slot if slot < len(types) else 0) if types else None
    given = node.outputs[slot] if 0 <= slot < len(node.outputs) else wanted
    if slot < len(types) and _compatible(types[slot], given) and _compatible(types[slot], wanted):
        return slot
    if wanted in types:
        return types.index(wanted)
    fitting = (i for i, kind in enumerate(types) if _compatible(kind, given) and _compatible(kind, wanted))
    return next(fitting, None)


def _compatible(one: str, other: str) -> bool:
    """LiteGraph's ``isValidConnection``: ``*`` fits all, and of lists by commas one is enough."""
    if one in ("*", "") or other in ("*", ""):
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))
