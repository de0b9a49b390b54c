"""Validates prompts, queues them, and runs them one after another, reusing the results of unchanged nodes."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import comfy.model_management as model_management
import nodes

MAXIMUM_HISTORY_SIZE = 10000
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _error(kind: str, message: str, details: str, **extra: Any) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _declared(node_class: Any) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Input name → type, options, and whether it is required."""
    found = {}
    kinds = node_class.INPUT_TYPES()
    for category in ("required", "optional"):
        for name, entry in kinds.get(category, {}).items():
            found[name] = (entry[0], entry[1] if len(entry) > 1 else {}, category == "required")
    return found


def validate_prompt(prompt: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str], dict[str, Any]]:
    """The error of the whole prompt (or None), the outputs that can run, and the errors of nodes, as in ComfyUI."""
    outputs = []
    for node_id, node in prompt.items():
        if "class_type" not in node:
            message = "Cannot execute because a node is missing the class_type property."
            return _error("invalid_prompt", message, f"Node ID '#{node_id}'"), [], {}
        node_class = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
        if node_class is None:
            message = f"Cannot execute because node {node['class_type']} does not exist."
            return _error("invalid_prompt", message, f"Node ID '#{node_id}'"), [], {}
        if getattr(node_class, "OUTPUT_NODE", False):
            outputs.append(node_id)
    if not outputs:
        return _error("prompt_no_outputs", "Prompt has no outputs", ""), [], {}

    good, node_errors, all_errors = [], {}, []
    validated: dict[str, tuple[bool, list[dict[str, Any]]]] = {}
    for node_id in outputs:
        if _validate_node(prompt, node_id, validated)[0]:
            good.append(node_id)
            continue
        logging.error("Failed to validate prompt for output %s:", node_id)
        for other, (valid, errors) in validated.items():
            if not valid and errors:
                class_type = prompt[other]["class_type"]
                entry = {"errors": errors, "dependent_outputs": [], "class_type": class_type}
                node_errors.setdefault(other, entry)["dependent_outputs"].append(node_id)
                all_errors += [f"{error['message']}: {error['details']}" for error in errors]
    if not good:
        details = "\n".join(dict.fromkeys(all_errors))
        error = _error("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
        return error, [], node_errors
    return None, good, node_errors


def _validate_node(prompt: dict, node_id: str, validated: dict) -> tuple[bool, list[dict[str, Any]]]:
    if node_id in validated:
        return validated[node_id]
    node = prompt[node_id]
    inputs, node_class = node["inputs"], nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
    check = getattr(node_class, "VALIDATE_INPUTS", None)
    checked = set(inspect.signature(check).parameters) if check else set()
    errors: list[dict[str, Any]] = []
    valid = True
    for name, (kind, options, required) in _declared(node_class).items():
        if name not in inputs:
            if required:
                errors.append(_error("required_input_missing", "Required input is missing", name, input_name=name))
            continue
        value = inputs[name]
        if isinstance(value, list):
            if len(value) != 2:
                message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
                errors.append(_error("bad_linked_input", message, name, input_name=name, received_value=value))
                continue
            source = nodes.NODE_CLASS_MAPPINGS[prompt[value[0]]["class_type"]]
            received = source.RETURN_TYPES[value[1]]
            expected = "COMBO" if isinstance(kind, list) else kind
            if received != expected and kind != "*" and not (isinstance(kind, list) and received == "*"):
                details = f"{name}, received_type({received}) mismatch input_type({kind})"
                message = "Return type mismatch between linked nodes"
                errors.append(_error("return_type_mismatch", message, details, input_name=name))
                continue
            valid = _validate_node(prompt, value[0], validated)[0] and valid
            continue
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        if kind in _CONVERSIONS if isinstance(kind, str) else False:
            try:
                value = inputs[name] = _CONVERSIONS[kind](value)
            except (ValueError, TypeError) as error:
                message = f"Failed to convert an input value to a {kind} value"
                details = f"{name}, {value}, {error}"
                errors.append(_error("invalid_input_type", message, details, input_name=name, received_value=value))
                continue
        if name in checked:
            continue
        if "min" in options and value < options["min"]:
            message = f"Value {value} smaller than min of {options['min']}"
            errors.append(_error("value_smaller_than_min", message, name, input_name=name, received_value=value))
        elif "max" in options and value > options["max"]:
            message = f"Value {value} bigger than max of {options['max']}"
            errors.append(_error("value_bigger_than_max", message, name, input_name=name, received_value=value))
        elif isinstance(kind, list) and value not in kind:
            listed = f"(list of length {len(kind)})" if len(kind) > 20 else str(kind)
            details = f"{name}: '{value}' not in {listed}"
            errors.append(
                _error("value_not_in_list", "Value not in list", details, input_name=name, received_value=value)
            )
    if check and not errors:
        plain = {name: value for name, value in inputs.items() if name in checked and not is_link(value)}
        answer = check(**plain) if set(plain) or not checked else True
        if answer is not True:
            name = next(iter(plain), "")
            details = f"{name} - {answer}" if answer is not False else name
            message = "Custom validation failed for node"
            errors.append(_error("custom_validation_failed", message, details, input_name=name))
    validated[node_id] = (valid and not errors, errors)
    return validated[node_id]


class PromptQueue:
    """What waits, what runs, and what has run."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._condition = threading.Condition()
        self._waiting: list[tuple] = []
        self._running: list[tuple] = []
        self._history: dict[str, Any] = {}

    def put(self, item: tuple) -> None:
        with self._condition:
            self._waiting.append(item)
            self._waiting.sort(key=lambda entry: entry[0])
            self._condition.notify()
        self._changed()

    def get(self) -> tuple:
        with self._condition:
            while not self._waiting:
                self._condition.wait()
            item = self._waiting.pop(0)
            self._running.append(copy.deepcopy(item))
        self._changed()
        return item

    def task_done(self, item: tuple, result: dict[str, Any]) -> None:
        with self._condition:
            self._running.clear()
            if len(self._history) > MAXIMUM_HISTORY_SIZE:
                self._history.pop(next(iter(self._history)))
            self._history[item[1]] = {"prompt": item, **result}
        self._changed()

    def current(self) -> tuple[list[tuple], list[tuple]]:
        with self._condition:
            return list(self._running), list(self._waiting)

    def remaining(self) -> int:
        with self._condition:
            return len(self._running) + len(self._waiting)

    def delete(self, prompt_id: str | None) -> None:
        """Remove *prompt_id* from what waits; all if None."""
        with self._condition:
            self._waiting = [item for item in self._waiting if prompt_id is not None and item[1] != prompt_id]
        self._changed()

    def get_history(self, prompt_id: str | None = None, max_items: int | None = None) -> dict[str, Any]:
        with self._condition:
            if prompt_id is not None:
                return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
            ids = list(self._history)[-max_items if max_items else 0 :]
            return {key: self._history[key] for key in ids}

    def forget(self, prompt_id: str | None) -> None:
        with self._condition:
            if prompt_id is None:
                self._history.clear()
            else:
                self._history.pop(prompt_id, None)


class PromptExecutor:
    """Runs prompts; keeps the results of the last one's nodes, and uses them again where nothing changed."""

    def __init__(self, send: Callable[[str, Any, str | None], None]) -> None:
        self._send = send
        self._cache: dict[str, tuple[tuple, dict[str, Any]]] = {}
        self.client_id: str | None = None
        self.node_id: str | None = None

    def execute(self, prompt: dict, prompt_id: str, extra_data: dict, outputs: list[str]) -> dict[str, Any]:
        """Run *outputs* and what they need; returns what goes into the history."""
        model_management.interrupt_current_processing(False)
        self.client_id = extra_data.get("client_id")
        messages: list[tuple[str, dict]] = []
        reported: dict[str, Any] = {}
        meta: dict[str, Any] = {}

        def tell(event: str, data: dict[str, Any], *, everyone: bool = False) -> None:
            data = {**data, "prompt_id": prompt_id, "timestamp": int(time.time() * 1000)}
            messages.append((event, data))
            if self.client_id is not None or everyone:
                self._send(event, data, None if everyone else self.client_id)

        tell("execution_start", {})
        signatures: dict[str, str] = {}
        for node_id in prompt:
            self._signature(prompt, node_id, signatures)
        self._cache = {key: value for key, value in self._cache.items() if key in set(signatures.values())}
        tell("execution_cached", {"nodes": [key for key in prompt if signatures[key] in self._cache]})

        results: dict[str, tuple] = {}
        executed: list[str] = []
        error = None
        for node_id in _order(prompt, outputs):
            node = prompt[node_id]
            signature = signatures[node_id]
            if signature in self._cache:
                results[node_id], ui = self._cache[signature]
                self._report(prompt_id, node_id, ui or None)
            else:
                self.node_id = node_id
                if self.client_id is not None:
                    data = {"node": node_id, "display_node": node_id, "prompt_id": prompt_id}
                    self._send("executing", data, self.client_id)
                arguments: dict[str, Any] = {}
                try:
                    arguments = self._arguments(prompt, node_id, results, extra_data)
                    model_management.throw_exception_if_processing_interrupted()
                    results[node_id], ui = _call(node["class_type"], arguments)
                except model_management.InterruptProcessingException:
                    logging.info("Processing interrupted")
                    data = {"node_id": node_id, "node_type": node["class_type"], "executed": executed}
                    tell("execution_interrupted", data, everyone=True)
                    error = "interrupted"
                    break
                except Exception as caught:
                    logging.error("!!! Exception during processing !!! %s\n%s", caught, traceback.format_exc())
                    kind = type(caught)
                    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
                    data = {
                        "node_id": node_id,
                        "node_type": node["class_type"],
                        "executed": executed,
                        "exception_message": f"{caught}\n",
                        "exception_type": f"{module}{kind.__qualname__}",
                        "traceback": traceback.format_tb(caught.__traceback__),
                        "current_inputs": {name: [repr(value)[:200]] for name, value in arguments.items()},
                        "current_outputs": list(results),
                    }
                    tell("execution_error", data)
                    error = str(caught)
                    break
                self._cache[signature] = (results[node_id], ui)
                if ui:
                    self._report(prompt_id, node_id, ui)
            if ui:
                reported[node_id] = ui
                meta[node_id] = {
                    "node_id": node_id,
                    "display_node": node_id,
                    "parent_node": None,
                    "real_node_id": node_id,
                }
            executed.append(node_id)
        else:
            tell("execution_success", {})
        self.node_id = None
        status = {
            "status_str": "success" if error is None else "error",
            "completed": error is None,
            "messages": messages,
        }
        return {"outputs": reported, "status": status, "meta": meta}

    def _report(self, prompt_id: str, node_id: str, ui: dict | None) -> None:
        if self.client_id is not None:
            data = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": prompt_id}
            self._send("executed", data, self.client_id)

    def _signature(self, prompt: dict, node_id: str, known: dict[str, str]) -> str:
        if node_id not in known:
            node = prompt[node_id]
            parts = []
            for name, value in sorted(node["inputs"].items()):
                if is_link(value):
                    parts.append([name, "from", self._signature(prompt, value[0], known), value[1]])
                else:
                    parts.append([name, "is", value])
            changed = None
            node_class = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
            if hasattr(node_class, "IS_CHANGED"):
                plain = {name: value for name, value in node["inputs"].items() if not is_link(value)}
                try:
                    changed = node_class.IS_CHANGED(**plain)
                except Exception as error:
                    changed = f"failed: {error} at {time.monotonic()}"
            known[node_id] = json.dumps([node["class_type"], parts, changed], default=repr)
        return known[node_id]

    def _arguments(self, prompt: dict, node_id: str, results: dict, extra_data: dict) -> dict[str, Any]:
        node = prompt[node_id]
        node_class = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
        declared = _declared(node_class)
        arguments = {}
        for name, value in node["inputs"].items():
            if is_link(value):
                arguments[name] = results[value[0]][value[1]]
            elif name in declared:
                arguments[name] = value
        hidden = node_class.INPUT_TYPES().get("hidden", {})
        for name, kind in hidden.items():
            known = {"PROMPT": prompt, "EXTRA_PNGINFO": extra_data.get("extra_pnginfo"), "UNIQUE_ID": node_id}
            arguments[name] = known.get(kind)
        return arguments


def _call(class_type: str, arguments: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    node = nodes.NODE_CLASS_MAPPINGS[class_type]()
    returned = getattr(node, node.FUNCTION)(**arguments)
    if isinstance(returned, dict):
        return tuple(returned.get("result", ())), returned.get("ui", {})
    return tuple(returned), {}


def _order(prompt: dict, outputs: list[str]) -> list[str]:
    """The nodes that *outputs* need, each after those that it needs."""
    found: dict[str, None] = {}

    def visit(node_id: str, above: tuple[str, ...]) -> None:
        if node_id in above:
            raise RecursionError(f"Dependency cycle detected at node {node_id}")
        for value in prompt[node_id]["inputs"].values():
            if is_link(value):
                visit(value[0], (*above, node_id))
        found.setdefault(node_id)

    for output in outputs:
        visit(output, ())
    return list(found)
