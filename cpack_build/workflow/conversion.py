"""A workflow as ComfyUI's editor draws it → the API format, as its frontend would export it.

That is the frontend's ``graphToPrompt`` with the classes known from an ``object_info``: widget values are assigned to
inputs in declared order; muted nodes vanish; a bypassed node passes on the input that fits; reroutes, primitives and
Set/Get pairs are followed; subgraphs are laid flat under ids like ``12:3``. What the frontend does by code that only it
has (group nodes, dynamic inputs) cannot be told from the file: then the error names the node and says how to export the
API format instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cpack_build.errors import WorkflowError
from cpack_build.workflow.interface import HOW_TO_EXPORT

__all__ = ["Converted", "convert", "is_ui_format"]

_MUTED, _BYPASSED = 2, 4
"""LiteGraph's ``LGraphEventMode``."""
_SUBGRAPH_INPUT, _SUBGRAPH_OUTPUT = -10, -20
"""Ids of the two ends of a subgraph's inner links."""
_DECORATION = frozenset({"Note", "MarkdownNote"})
_VIRTUAL = frozenset({"Reroute", "PrimitiveNode", "SetNode", "GetNode"}) | _DECORATION
_CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
_WIDGETS: Mapping[str, tuple[type, ...]] = {
    "INT": (int, float),
    "FLOAT": (int, float),
    "STRING": (str, int, float),
    "BOOLEAN": (bool,),
    "COMBO": (str, int, float, bool, list),
    "COLOR": (str,),
}
_BY_CODE = ("COMFY_DYNAMIC", "COMFY_AUTOGROW", "COMFY_MATCHTYPE_DYNAMIC")
"""Inputs that come and go by a choice; their names are made by the frontend."""
_NESTING = 16


@dataclass(frozen=True)
class Converted:
    """The workflow in the API format, and what about it is not certain, one sentence each."""

    prompt: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Link:
    origin: int | str
    origin_slot: int
    target: int | str
    target_slot: int


@dataclass(frozen=True)
class _Slot:
    name: str
    type: str
    link: int | str | None
    widget: str | None


@dataclass(frozen=True)
class _Node:
    id: int | str
    type: str
    mode: int
    title: str | None
    inputs: tuple[_Slot, ...]
    outputs: tuple[str, ...]
    """The types of its results."""
    values: Any
    order: int
    proxies: tuple[tuple[str, str], ...]
    """Of a subgraph: the inner widgets it shows, as (inner node, widget)."""


@dataclass(frozen=True)
class _Graph:
    """One level: the workflow, or one use of a subgraph within *parent* by *instance*."""

    path: str
    nodes: Mapping[int | str, _Node]
    links: Mapping[int | str, _Link]
    parent: _Graph | None = None
    instance: _Node | None = None
    takes: tuple[str, ...] = ()
    """The names of a subgraph's inputs."""
    inner: dict[int | str, _Graph] = field(default_factory=dict)

    def id(self, node: _Node) -> str:
        return f"{self.path}{node.id}"


@dataclass(frozen=True)
class _Result:
    """A real node's result."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class _Value:
    """What a primitive holds."""

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
        return _Conversion(document, object_info, name).run()
    except RecursionError:
        raise WorkflowError(f"{name}: its links are nested too deeply.", hint=HOW_TO_EXPORT) from None


class _Conversion:
    def __init__(self, document: Mapping[str, Any], info: Mapping[str, Any], name: str) -> None:
        self._document = document
        self._info = info
        self._name = name
        self._notes: list[str] = []
        self._subgraphs = self._definitions()

    def run(self) -> Converted:
        top = self._graph(self._document, path="", parent=None, instance=None, depth=0)
        prompt: dict[str, Any] = {}
        for graph, node in self._real(top):
            prompt[graph.id(node)] = self._converted(graph, node)
        for node in prompt.values():
            kept = {
                key: value
                for key, value in node["inputs"].items()
                if not (isinstance(value, list) and value[0] not in prompt)
            }
            node["inputs"] = kept
        if not prompt:
            self._fail("has no nodes to run")
        return Converted(prompt, tuple(self._notes))

    # -- reading the drawing -------------------------------------------------------------------------------------------

    def _definitions(self) -> dict[str, Mapping[str, Any]]:
        definitions = self._document.get("definitions")
        listed = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
        found = {}
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, Mapping) and isinstance(item.get("id"), str):
                found[item["id"]] = item
        return found

    def _graph(
        self, document: Mapping[str, Any], *, path: str, parent: _Graph | None, instance: _Node | None, depth: int
    ) -> _Graph:
        if depth > _NESTING:
            self._fail("has subgraphs within subgraphs without end")
        raw_nodes, raw_links = document.get("nodes"), document.get("links", [])
        if not isinstance(raw_nodes, list) or not isinstance(raw_links, list | dict):
            self._fail("has no list of nodes and links")
        nodes = {node.id: node for node in map(self._node, raw_nodes)}
        values = raw_links.values() if isinstance(raw_links, dict) else raw_links
        links = dict(self._link(link) for link in values if link is not None)
        listed = document.get("inputs") if parent is not None else None
        takes = [item.get("name") if isinstance(item, Mapping) else None for item in listed or []]
        graph = _Graph(path, nodes, links, parent, instance, tuple(map(str, takes)))
        for node in nodes.values():
            if node.type in self._subgraphs and node.mode not in (_MUTED, _BYPASSED):
                graph.inner[node.id] = self._graph(
                    self._subgraphs[node.type],
                    path=f"{graph.id(node)}:",
                    parent=graph,
                    instance=node,
                    depth=depth + 1,
                )
        return graph

    def _node(self, raw: Any) -> _Node:
        if (
            not isinstance(raw, Mapping)
            or not isinstance(raw.get("id"), int | str)
            or not isinstance(raw.get("type"), str)
        ):
            self._fail("has a node without id or type")
        slots = []
        for slot in raw.get("inputs") or []:
            if not isinstance(slot, Mapping) or not isinstance(slot.get("name"), str):
                self._fail(f"has an input without name at node {raw['id']}")
            widget = slot.get("widget")
            widget_name = widget.get("name") if isinstance(widget, Mapping) else None
            link = slot.get("link")
            slots.append(
                _Slot(
                    slot["name"],
                    _type_name(slot.get("type")),
                    link if isinstance(link, int | str) else None,
                    widget_name if isinstance(widget_name, str) else None,
                )
            )
        outputs = [slot.get("type") if isinstance(slot, Mapping) else None for slot in raw.get("outputs") or []]
        properties = raw.get("properties")
        proxies = properties.get("proxyWidgets") if isinstance(properties, Mapping) else None
        mode, order, title = raw.get("mode", 0), raw.get("order", 0), raw.get("title")
        return _Node(
            id=raw["id"],
            type=raw["type"],
            mode=mode if isinstance(mode, int) else 0,
            title=title if isinstance(title, str) and title else None,
            inputs=tuple(slots),
            outputs=tuple(_type_name(output) for output in outputs),
            values=raw.get("widgets_values"),
            order=order if isinstance(order, int) else 0,
            proxies=tuple(
                (str(item[0]), str(item[1]))
                for item in (proxies if isinstance(proxies, list) else [])
                if isinstance(item, list) and len(item) >= 2
            ),
        )

    def _link(self, raw: Any) -> tuple[int | str, _Link]:
        if isinstance(raw, Mapping):
            keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
            parts = [raw.get(key) for key in keys]
        else:
            parts = list(raw[:5]) if isinstance(raw, list) else []
        if len(parts) < 5:
            self._fail("has a broken link")
        identity, origin, origin_slot, target, target_slot = parts
        if (
            not isinstance(identity, int | str)
            or not isinstance(origin, int | str)
            or not isinstance(target, int | str)
            or not isinstance(origin_slot, int)
            or not isinstance(target_slot, int)
        ):
            self._fail("has a broken link")
        return identity, _Link(origin, origin_slot, target, target_slot)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _real(self, graph: _Graph) -> Iterator[tuple[_Graph, _Node]]:
        """Every node that is run, in the drawing's order of execution."""
        for node in sorted(graph.nodes.values(), key=lambda node: node.order):
            if node.mode in (_MUTED, _BYPASSED):
                continue
            if (inner := graph.inner.get(node.id)) is not None:
                yield from self._real(inner)
            elif node.type not in _VIRTUAL:
                yield graph, node

    def _converted(self, graph: _Graph, node: _Node) -> dict[str, Any]:
        info = self._info.get(node.type)
        if not isinstance(info, Mapping):
            what = "a group node" if node.type.startswith(("workflow>", "workflow/")) else f"of class {node.type}"
            self._fail(f"has node {graph.id(node)} {what}, which the given object_info does not know")
        declared = self._declared(graph, node, info)
        linked = {slot.name for slot in node.inputs if slot.link is not None}
        inputs = self._widget_values(graph, node, declared, linked)
        meta: dict[str, Any] = {"title": node.title or info.get("display_name") or node.type}
        if node.type in ("CPackInputAny", "CPackInputFile"):
            # comfy-pack's own frontend code gives these the widget of the input they feed.
            values = node.values if isinstance(node.values, list) else []
            key = "input" if node.type == "CPackInputAny" else "path"
            if values and not linked:
                inputs = {key: values[0]}
            if node.type == "CPackInputAny" and (options := self._fed_options(graph, node)):
                meta["options"] = options
        for index, slot in enumerate(node.inputs):
            found = self._resolve_input(graph, node, index, slot.type, set())
            if isinstance(found, _Result):
                inputs[slot.name] = [found.node_id, found.slot]
            elif isinstance(found, _Value):
                inputs[slot.widget or slot.name] = _protected(found.value)
        return {"inputs": inputs, "class_type": node.type, "_meta": meta}

    def _declared(
        self, graph: _Graph, node: _Node, info: Mapping[str, Any]
    ) -> list[tuple[str, str, Mapping[str, Any]]]:
        """The inputs that ComfyUI declares, in order: name, type (``COMBO`` for a list), options."""
        groups = info.get("input")
        order = info.get("input_order")
        found: list[tuple[str, str, Mapping[str, Any]]] = []
        for group in ("required", "optional"):
            specs = groups.get(group) if isinstance(groups, Mapping) else None
            if not isinstance(specs, Mapping):
                continue
            listed = order.get(group) if isinstance(order, Mapping) else None
            names = [name for name in listed if name in specs] if isinstance(listed, list) else []
            for name in [*names, *(name for name in specs if name not in names)]:
                spec = specs[name]
                kind = spec[0] if isinstance(spec, list | tuple) and spec else spec
                options = spec[1] if isinstance(spec, list | tuple) and len(spec) > 1 else {}
                options = options if isinstance(options, Mapping) else {}
                if isinstance(kind, list | tuple):
                    kind, options = "COMBO", {"options": list(kind), **options}
                kind = str(options.get("widgetType", kind))
                if kind.startswith(_BY_CODE):
                    self._fail(f"has node {graph.id(node)} ({node.type}), whose inputs the frontend makes by code")
                found.append((str(name), kind, options))
            uploads = any(
                str(key).endswith("_upload") and options[key] is True for _, _, options in found for key in options
            )
            if group == "required" and uploads:
                found.append(("upload", "UPLOAD", {}))  # the button that the frontend adds has a value, too
        return found

    def _widget_values(
        self, graph: _Graph, node: _Node, declared: list[tuple[str, str, Mapping[str, Any]]], linked: set[str]
    ) -> dict[str, Any]:
        shown = self._shown_by_instance(graph, node)
        inputs: dict[str, Any] = {}
        values = node.values
        position = 0
        widgets = [
            (name, kind, options)
            for name, kind, options in declared
            if kind == "UPLOAD" or (kind in _WIDGETS and options.get("forceInput") is not True)
        ]
        following = [*(kind for _, kind, _ in widgets[1:]), ""]
        for (name, kind, options), after in zip(widgets, following[: len(widgets)], strict=True):
            if kind == "UPLOAD":
                position += 1
                continue
            value: Any = None
            if isinstance(values, Mapping):
                value = values.get(name)
            elif isinstance(values, list) and position < len(values):
                value = values[position]
                position += 1
                position += _controls(name, kind, options, values[position : position + 2], after)
            value = shown.get(name, value)
            if value is None:
                value = _default(kind, options)
            if value is None:
                continue
            if name not in linked and not _fits(value, kind):
                self._fail(
                    f"has node {graph.id(node)} ({node.type}) with {value!r:.60} where its input {name} is {kind}, "
                    "so its values cannot be told apart"
                )
            inputs[name] = _protected(value)
        if isinstance(values, list) and any(value not in (None, "") for value in values[position:]):
            dynamic = node.type.startswith("CPackInput")
            if not dynamic:
                self._notes.append(
                    f"{self._name}: node {graph.id(node)} ({node.type}) keeps {len(values) - position} values that "
                    "ComfyUI does not declare; they are left out."
                )
        return inputs

    def _shown_by_instance(self, graph: _Graph, node: _Node) -> dict[str, Any]:
        """Values of this inner node's widgets that the subgraph's own node holds for it."""
        instance = graph.instance
        if instance is None or graph.parent is None or not isinstance(instance.values, list) or not instance.values:
            return {}
        if len(instance.proxies) == len(instance.values):
            pairs = zip(instance.proxies, instance.values, strict=True)
            return {widget: value for (inner, widget), value in pairs if inner == str(node.id) and value is not None}
        # Without such a list they are those of the inputs that end in an inner widget, in their order.
        slots = sorted({link.origin_slot for link in graph.links.values() if self._ends_in_widget(graph, link)})
        if len(slots) != len(instance.values):
            self._fail(f"has the subgraph {graph.parent.id(instance)} with values that cannot be told apart")
        held = dict(zip(slots, instance.values, strict=True))
        found = {}
        for slot in node.inputs:
            link = graph.links.get(slot.link) if slot.link is not None else None
            if link is not None and link.origin == _SUBGRAPH_INPUT and held.get(link.origin_slot) is not None:
                found[slot.widget or slot.name] = held[link.origin_slot]
        return found

    def _ends_in_widget(self, graph: _Graph, link: _Link) -> bool:
        target = graph.nodes.get(link.target)
        if link.origin != _SUBGRAPH_INPUT or target is None or not 0 <= link.target_slot < len(target.inputs):
            return False
        return target.inputs[link.target_slot].widget is not None

    def _fed_options(self, graph: _Graph, node: _Node) -> dict[str, Any]:
        """What the first input that *node* feeds declares, as the frontend keeps a widget's options."""
        for link in graph.links.values():
            target = graph.nodes.get(link.target)
            if link.origin != node.id or target is None or not 0 <= link.target_slot < len(target.inputs):
                continue
            info = self._info.get(target.type)
            wanted = target.inputs[link.target_slot].name
            for name, kind, options in self._declared(graph, target, info) if isinstance(info, Mapping) else ():
                if name == wanted and kind == "COMBO" and isinstance(options.get("options"), list):
                    return {"values": list(options["options"])}
                if name == wanted and kind in ("INT", "FLOAT"):
                    kept = {key: options[key] for key in ("min", "max", "step", "round") if key in options}
                    return {**kept, "precision": 0 if kind == "INT" else 2}
        return {}

    # -- links ---------------------------------------------------------------------------------------------------------

    def _resolve_input(
        self, graph: _Graph, node: _Node, index: int, wanted: str, visited: set[tuple[str, str, int]]
    ) -> _Result | _Value | None:
        if not 0 <= index < len(node.inputs) or node.inputs[index].link is None:
            return None
        link = graph.links.get(node.inputs[index].link or 0)
        if link is None:
            return None
        return self._resolve_origin(graph, link, wanted, visited)

    def _resolve_origin(
        self, graph: _Graph, link: _Link, wanted: str, visited: set[tuple[str, str, int]]
    ) -> _Result | _Value | None:
        if link.origin == _SUBGRAPH_INPUT and graph.parent is not None and graph.instance is not None:
            # The instance lists its inputs in an order of its own, and not those that only show a widget.
            wanted_name = graph.takes[link.origin_slot] if 0 <= link.origin_slot < len(graph.takes) else ""
            named = [slot.name for slot in graph.instance.inputs]
            index = named.index(wanted_name) if wanted_name in named else link.origin_slot if not wanted_name else -1
            return self._resolve_input(graph.parent, graph.instance, index, wanted, visited)
        origin = graph.nodes.get(link.origin)
        return None if origin is None else self._resolve_output(graph, origin, link.origin_slot, wanted, visited)

    def _resolve_output(
        self, graph: _Graph, node: _Node, slot: int, wanted: str, visited: set[tuple[str, str, int]]
    ) -> _Result | _Value | None:
        """*wanted* is the type of the input that asks, whatever lies between."""
        step = (graph.path, str(node.id), slot)
        if step in visited:
            self._fail(f"has links in a circle at node {graph.id(node)}")
        visited.add(step)
        if node.mode == _MUTED:
            return None
        if node.mode == _BYPASSED:
            passed = _bypass(node, slot, wanted)
            return None if passed is None else self._resolve_input(graph, node, passed, wanted, visited)
        if (inner := graph.inner.get(node.id)) is not None:
            for link in inner.links.values():
                if link.target == _SUBGRAPH_OUTPUT and link.target_slot == slot:
                    return self._resolve_origin(inner, link, wanted, visited)
            return None
        if node.type == "PrimitiveNode":
            values = node.values
            return _Value(values[0]) if isinstance(values, list) and values else None
        if node.type == "GetNode":
            setter = self._setter(graph, node)
            return None if setter is None else self._resolve_input(graph, setter, 0, wanted, visited)
        if node.type in _VIRTUAL:
            return self._resolve_input(graph, node, slot, wanted, visited)
        return _Result(graph.id(node), slot)

    def _setter(self, graph: _Graph, node: _Node) -> _Node | None:
        named = node.values[0] if isinstance(node.values, list) and node.values else None
        for other in graph.nodes.values():
            if other.type == "SetNode" and isinstance(other.values, list) and other.values[:1] == [named]:
                return other
        return None

    def _fail(self, problem: str) -> NoReturn:
        raise WorkflowError(f"{self._name} {problem}; it cannot be converted.", hint=HOW_TO_EXPORT)


def _type_name(value: object) -> str:
    # Combos of old frontends have their whole list as type.
    return value if isinstance(value, str) else "COMBO" if isinstance(value, list) else "*"


def _bypass(node: _Node, slot: int, wanted: str) -> int | None:
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


def _controls(name: str, kind: str, options: Mapping[str, Any], following: list[Any], after: str) -> int:
    """How many values after this one are those of its ``control_after_generate`` (a combo's has a filter, too).

    *after* is the type of the next input: where that could not be such a word, the word is a control whatever is
    declared, for declarations change and drawings stay. The first frontends wrote true or false.
    """
    controlled = options.get("control_after_generate")
    if controlled is None:
        controlled = kind == "INT" and name in ("seed", "noise_seed")
    if not following:
        return 0
    if isinstance(following[0], bool):
        return int(bool(controlled) and kind == "INT" and after != "BOOLEAN")
    if following[0] not in tuple(_CONTROLS) or not (controlled or (kind == "INT" and after in ("INT", "FLOAT", ""))):
        return 0
    return 2 if kind == "COMBO" and len(following) > 1 and isinstance(following[1], str) else 1


def _default(kind: str, options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    listed = options.get("options")
    if kind == "COMBO":
        return listed[0] if isinstance(listed, list) and listed else None
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(kind)


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind in ("BOOLEAN", "COMBO")
    return isinstance(value, _WIDGETS[kind])


def _protected(value: Any) -> Any:
    """A list would be taken for a link."""
    return {"__value__": value} if isinstance(value, list) else value
