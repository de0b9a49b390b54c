"""The OpenAPI document of the service, ``/docs.json``: every route that a caller may use, as it really is.

BentoML's own document knows neither JSON bodies nor the stream, the outputs or the errors, and its form encodings name
fields that no caller sees. The parameters come from the workflow's interface, so bounds, choices, defaults and
descriptions are the author's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpack_build import __version__
from cpack_build.workflow import FILE_TYPES, Interface, json_schema

__all__ = ["describe"]

_ERRORS = {
    400: "What is wrong with the request, parameter by parameter.",
    401: "The service's token is missing or wrong.",
    403: "A page of another site asked.",
    408: "The body took too long to come.",
    413: "The body is larger than the service takes.",
    422: "ComfyUI refuses the workflow with these values; the node is named.",
    429: "Too many requests are under way; see Retry-After.",
    499: "The caller went away.",
    500: "A node failed; it is named.",
    502: "ComfyUI was lost while it worked on the request.",
    503: "ComfyUI is not ready; see Retry-After.",
    504: "The run took longer than the service allows.",
    507: "There is no space left for the files.",
}
_KEY = {"name": "task_id", "in": "query", "required": True, "schema": {"type": "string", "minLength": 1}}
_TASK = {
    "type": "object",
    "required": ["task_id", "status"],
    "properties": {
        "task_id": {"type": "string"},
        "status": {"enum": ["pending", "in_progress", "completed", "failed", "canceled"]},
        "created_at": {"type": "string", "format": "date-time"},
        "executed_at": {"type": ["string", "null"], "format": "date-time"},
        "completed_at": {"type": ["string", "null"], "format": "date-time"},
        "progress": {"type": "object"},
        "result": {"$ref": "#/components/schemas/Result"},
        "error": {"type": "object"},
    },
}
_RESULT = {
    "type": "object",
    "required": ["id", "outputs"],
    "properties": {
        "id": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "output", "media_type", "size", "url"],
                "properties": {
                    "name": {"type": "string"},
                    "output": {"type": "string"},
                    "media_type": {"type": "string"},
                    "size": {"type": "integer", "description": "Bytes."},
                    "url": {"type": "string", "format": "uri-reference"},
                },
            },
        },
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string"},
        "type": {"type": "string"},
        "hint": {"type": "string"},
        "detail": {"type": "array", "items": {"type": "object"}},
        "node": {"type": "object"},
    },
}


def describe(interface: Interface, *, defaults: Mapping[str, object], token: bool) -> dict[str, Any]:
    """The document (OpenAPI 3.1.0) for *interface*.

    The files in *defaults*, by parameter name, need not be given; *token* tells whether one is asked for.
    """
    body = _body(interface, defaults)
    run = {"requestBody": body}
    ran = _answers(200, _files(interface), 400, 401, 403, 408, 413, 422, 429, 499, 500, 502, 503, 504, 507)
    streamed = {"text/event-stream": {"schema": {"type": "string"}}}
    hook = {
        "name": "X-CPack-Webhook",
        "in": "header",
        "description": "Who is told of the end, by a signed POST; its host must be in CPACK_URL_HOSTS.",
        "schema": {"type": "string", "format": "uri"},
    }
    names = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in ("id", "name")
    ]
    document = _answers(200, {"application/json": {"schema": {"type": "object"}}}, 401)
    paths = {
        "/generate": {"post": _operation("Run the workflow and answer with its files", run, ran)},
        "/generate/stream": {
            "post": _operation(
                "Run the workflow and tell what happens, as server-sent events",
                run,
                _answers(200, streamed, 400, 401, 403, 408, 413, 429, 499, 507),
            )
        },
        "/generate_task/submit": {
            "post": _operation(
                "Run the workflow for later",
                {**run, "parameters": [hook]},
                _answers(200, _json("Task"), 400, 401, 403, 408, 413, 429, 499, 507),
            )
        },
        "/generate_task/status": {
            "get": _operation("How a task stands", {"parameters": [_KEY]}, _answers(200, _json("Task"), 400, 401, 404))
        },
        "/generate_task/get": {
            "get": _operation(
                "What /generate would have answered",
                {"parameters": [_KEY]},
                _answers(200, _files(interface), *_ERRORS, 404, 410),
            )
        },
        "/generate_task/cancel": {
            "put": _operation(
                "Take a task back", {"parameters": [_KEY]}, _answers(200, _json("Task"), 400, 401, 403, 404)
            )
        },
        "/outputs/{id}/{name}": {
            "get": _operation(
                "A file of a result, for a limited time",
                {"parameters": names},
                _answers(200, {"*/*": {"schema": _BINARY}}, 401, 404),
            )
        },
        "/interface.json": {"get": _operation("The parameters, as a JSON Schema", {}, document)},
        "/workflow.json": {"get": _operation("The workflow, as ComfyUI's API has it", {}, document)},
        "/livez": {"get": _operation("Whether the service runs", {}, _answers(200, {}), open_=True)},
        "/readyz": {"get": _operation("Whether ComfyUI takes requests", {}, _answers(200, {}, 503), open_=True)},
        "/metrics": {
            "get": _operation(
                "Prometheus metrics", {}, _answers(200, {"text/plain": {"schema": {"type": "string"}}}, 401)
            )
        },
    }
    components: dict[str, Any] = {"schemas": {"Error": _ERROR, "Result": _RESULT, "Task": _TASK}}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "ComfyUI workflow",
            "version": __version__,
            "description": "Runs one ComfyUI workflow. Parameters and outputs are those of its interface nodes.",
        },
        "paths": paths,
        "components": components,
    }
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


_BINARY = {"type": "string", "format": "binary"}


def _operation(summary: str, more: Mapping[str, Any], responses: Mapping[str, Any], *, open_: bool = False) -> Any:
    return {"summary": summary, **more, "responses": responses, **({"security": []} if open_ else {})}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _answers(status: int, content: Mapping[str, Any], *errors: int) -> dict[str, Any]:
    well: dict[str, Any] = {"description": "It worked."}
    if content:
        well["content"] = content
    more = {404: "There is none such (any more).", 410: "It has no result (any more)."}
    found: dict[str, Any] = {str(status): well}
    for error in sorted(set(errors)):
        description = _ERRORS.get(error) or more[error]
        found[str(error)] = {"description": description, "content": _json("Error")}
    return found


def _body(interface: Interface, defaults: Mapping[str, object]) -> dict[str, Any]:
    schema = json_schema(interface)
    del schema["$schema"]
    required = [
        item.name
        for item in interface.inputs
        if (item.name not in defaults and not item.linked if item.type in FILE_TYPES else item.required)
    ]
    if required:
        schema["required"] = required
    else:
        schema.pop("required", None)
    text = {
        item.name: {
            **{key: value for key, value in schema["properties"][item.name].items() if key != "format"},
            "type": "string",
            "format": "uri",
            "description": " ".join(
                filter(None, (item.description, "The file as a data: URL, or by http(s) from an allowed host."))
            ),
        }
        for item in interface.inputs
        if item.type in FILE_TYPES
    }
    as_json = {**schema, "properties": {**schema["properties"], **text}}
    example = {
        item.name: item.default for item in interface.inputs if item.type not in FILE_TYPES and item.default is not None
    }
    return {
        "required": bool(required),
        "content": {
            "multipart/form-data": {"schema": schema},
            "application/json": {"schema": as_json, **({} if text.keys() & set(required) else {"example": example})},
        },
    }


def _files(interface: Interface) -> dict[str, Any]:
    if len(interface.outputs) == 1:
        return {"*/*": {"schema": _BINARY}}
    return {
        "application/zip": {"schema": _BINARY},
        "multipart/mixed": {"schema": _BINARY},
        "application/json": {"schema": {"type": "object", "description": "The files in base64, or links to them."}},
        "*/*": {"schema": _BINARY},
    }
