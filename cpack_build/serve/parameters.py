"""The parameters of ``/generate``: a pydantic model made from the workflow's interface, and how a request is read.

The model is what BentoML shows in its schema and OpenAPI document. A request is read here, not by BentoML's own
parser, which would turn the text ``123`` of a form into a number before it is known that text is wanted, and would
load files whole. What is wrong with a request is handed to the service as a :class:`Refusal`: BentoML would write a
traceback with the caller's values into the log for each.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import json
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import FiniteFloat

from cpack_build.errors import RunError
from cpack_build.serve.exchange import safe_name
from cpack_build.serve.remote import Remote
from cpack_build.workflow import FILE_TYPES, Input, Interface

if TYPE_CHECKING:
    from bentoml import IODescriptor
    from starlette.requests import Request

__all__ = ["Parameters", "Refusal", "refusal", "request_folder"]

_TYPES: Mapping[str, Any] = {
    "image": Path,
    "file": Path,
    "string": str,
    "int": int,
    "float": FiniteFloat,
    "number": int | FiniteFloat,
    "boolean": bool,
    "any": Any,
}
_FOLDER = "cpack_request_folder"
_REFUSAL = "cpack_refusal"
_JSON_LIMIT = 256 << 20
"""Bytes of a JSON body, which is parsed in memory and takes several times its size there."""


@dataclass(frozen=True)
class Refusal:
    """Why a request was not taken: the HTTP *status*, and what is wrong with which parameter, as pydantic tells it."""

    status: int
    detail: tuple[Mapping[str, Any], ...]

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        told = "; ".join(": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in self.detail)
        return {"error": told, "detail": list(self.detail)}


def refusal(request: Request) -> Refusal | None:
    """What is wrong with *request*, if anything is."""
    return cast("Refusal | None", request.scope.get(_REFUSAL))


def request_folder(request: Request) -> Path | None:
    """Where the uploads of *request* were put, if it had any; to be removed after it."""
    return cast("Path | None", request.scope.get(_FOLDER))


class Parameters:
    """The parameters of *interface*; those in *defaults* are files that need not be given.

    Uploads are put into *scratch*; a request larger than *max_upload_mib* MiB is refused. Files that are given by URL
    are fetched by *remote*.
    """

    def __init__(
        self,
        interface: Interface,
        *,
        defaults: Mapping[str, Path],
        scratch: Path,
        max_upload_mib: int = 1024,
        remote: Remote | None = None,
    ) -> None:
        self._most = max_upload_mib << 20
        self._inputs = interface.inputs
        self._by_name = {item.name: item for item in interface.inputs}
        self.defaults = defaults
        self._scratch = scratch
        self._remote = remote
        # A parameter may be called anything; a field of a model may not. So fields are numbered and names are aliases.
        self._fields = {f"input_{number}": item for number, item in enumerate(interface.inputs)}
        self.model = self._model()

    @property
    def required(self) -> list[str]:
        """The names of the parameters that every request must give."""
        return [self._fields[name].name for name, field in self.model.model_fields.items() if field.is_required()]

    def values(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The values by parameter name that were given, from the model's *fields*."""
        return {self._fields[field].name: value for field, value in fields.items() if value is not _ABSENT}

    def _model(self) -> type[IODescriptor]:
        from bentoml import IODescriptor
        from pydantic import ConfigDict, create_model

        parameters = self

        class Generate(IODescriptor):  # type: ignore[misc]
            model_config = ConfigDict(extra="forbid", populate_by_name=False, arbitrary_types_allowed=True)

            @classmethod
            async def from_http_request(cls, request: Request, serde: object) -> IODescriptor:
                try:
                    values = cls.model_validate(await parameters._read(request))
                except BaseException as error:
                    if (folder := request_folder(request)) is not None:
                        shutil.rmtree(folder, ignore_errors=True)
                    request.scope[_REFUSAL] = _refused(error, names=[*parameters._by_name])
                    values = cls.model_construct()
                for field in cls.model_fields:
                    if field not in values.model_fields_set:
                        # Not given: the workflow's own value stays.
                        object.__setattr__(values, field, _ABSENT)
                return values

        fields: dict[str, Any] = {field: self._field(item) for field, item in self._fields.items()}
        return create_model("generate", __base__=Generate, **fields)

    def _field(self, item: Input) -> tuple[Any, Any]:
        from pydantic import Field
        from pydantic_core import PydanticUndefined

        options: dict[str, Any] = {"alias": item.name}
        if item.title and item.title != item.name:
            options["title"] = item.title
        if item.description:
            options["description"] = item.description
        if item.minimum is not None:
            options["ge"] = item.minimum
        if item.maximum is not None:
            options["le"] = item.maximum
        annotation = Literal[item.choices] if item.type == "choice" else _TYPES[item.type]
        if item.type == "number":
            from pydantic import WithJsonSchema

            annotation = Annotated[annotation, WithJsonSchema({"type": "number"})]
        default: Any = item.default
        if item.type in FILE_TYPES:
            required = item.name not in self.defaults and not item.linked
            default = None
            options["json_schema_extra"] = _drop_default
        else:
            required = item.required
            if default is None and not required:
                options["json_schema_extra"] = _drop_default
        return annotation, Field(default=PydanticUndefined if required else default, **options)

    # -- reading a request

    async def _read(self, request: Request) -> dict[str, Any]:
        from starlette.exceptions import HTTPException
        from starlette.formparsers import MultiPartException
        from starlette.requests import Request

        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_form = content_type in ("multipart/form-data", "application/x-www-form-urlencoded")
        most = self._most if is_form else min(self._most, _JSON_LIMIT)
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        bounded = Request(request.scope, _at_most(most, request.receive))
        if not is_form:
            return await self._read_json(bounded)
        try:
            return await self._read_form(bounded)
        except (HTTPException, MultiPartException) as error:  # the one in an application, the other in a mere route
            why = error.detail if isinstance(error, HTTPException) else error.message
            raise _Wrong((), f"The form cannot be read: {why}") from None

    async def _read_form(self, request: Request) -> dict[str, Any]:
        from starlette.datastructures import UploadFile

        given: dict[str, Any] = {}
        async with request.form() as form:
            for name, value in form.multi_items():
                item = self._by_name.get(name)
                if item is not None and item.type in FILE_TYPES:
                    if isinstance(value, UploadFile):
                        if value.filename or value.size:  # else a file field of a browser's form that was left empty
                            given[name] = await self._keep(request, value.filename or name, value)
                    elif value:
                        given[name] = await self._from_text(request, item, value)
                    continue
                text = value if isinstance(value, str) else (await value.read()).decode(errors="replace")
                if item is None:
                    given[name] = text  # the model refuses it by name
                elif text or item.type in ("string", "choice", "any") or item.required:
                    given[name] = _from_form(item, text)
        return given

    async def _read_json(self, request: Request) -> dict[str, Any]:
        body = bytearray()
        async for block in request.stream():
            body += block
        try:
            given = json.loads(body or b"{}", parse_constant=_no_constant)
            if b"\\ud" in body or b"\\uD" in body:
                json.dumps(given, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _Wrong((), "The body holds half a character (a surrogate without its other half)") from None
        except (ValueError, RecursionError):
            raise _Wrong((), "The body is not JSON; send JSON or a form (curl -F name=value)") from None
        if not isinstance(given, dict):
            raise _Wrong((), "The body is no JSON object with the parameters")
        for name, value in list(given.items()):
            item = self._by_name.get(name)
            if item is not None and item.type in FILE_TYPES:
                if value is None and name in self.defaults:
                    del given[name]
                else:
                    given[name] = await self._from_text(request, item, value)
        return given

    async def _from_text(self, request: Request, item: Input, value: object) -> Path:
        """A file that is given as text: a ``data:`` URL, or one that it is fetched from."""
        if isinstance(value, str) and self._remote is not None and re.match(r"https?://", value, re.IGNORECASE):
            path = self._place(request, self._remote.name(value) or item.name)
            try:
                await self._remote.fetch(value, path, most=self._most)
            except RunError as error:
                raise _Wrong((item.name,), str(error), status=error.status) from None
            return path
        match = re.fullmatch(r"data:([\w.+-]+/[\w.+-]+)?((?:;[^;,]*)*?)(;base64),(.*)", str(value), flags=re.DOTALL)
        if not isinstance(value, str) or match is None:
            raise _Wrong(
                (item.name,),
                f"A file is wanted: send it in a form (curl -F {item.name}=@FILE), or as a data: URL in base64",
            )
        try:
            data = base64.b64decode(match[4], validate=True)
        except (binascii.Error, ValueError):
            raise _Wrong((item.name,), "The data: URL is not base64") from None
        suffix = (match[1] or "").rpartition("/")[2].partition("+")[0]
        path = self._place(request, f"{item.name}.{suffix}" if suffix else item.name)
        await asyncio.to_thread(path.write_bytes, data)
        return path

    async def _keep(self, request: Request, filename: str, upload: Any) -> Path:
        path = self._place(request, filename)
        await asyncio.to_thread(_write, upload.file, path)
        return path

    def _place(self, request: Request, filename: str) -> Path:
        folder = request.scope.get(_FOLDER)
        if folder is None:
            folder = request.scope[_FOLDER] = self._scratch / uuid.uuid4().hex
        place = Path(folder) / uuid.uuid4().hex
        place.mkdir(parents=True)
        return place / safe_name(filename)


class _Absent:
    def __repr__(self) -> str:
        return "<not given>"


_ABSENT = _Absent()


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _write(source: Any, path: Path) -> None:
    source.seek(0)
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _from_form(item: Input, text: str) -> Any:
    """*text* of a form field as a value for *item*; numbers and booleans are left to the model.

    BentoML's clients send every field as JSON, a browser and curl send it as it is: a quoted string is taken for JSON.
    """
    if item.type == "string" or (item.type == "choice" and text in item.choices):
        if len(text) >= 2 and text[0] == text[-1] == '"':
            decoded = _json_or(text)
            return decoded if isinstance(decoded, str) else text
        return text
    if item.type in ("choice", "any"):
        return _json_or(text)
    return text.strip().strip('"')


def _json_or(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


class _Wrong(Exception):
    """The caller's mistake in the parameter at *location*; *status* is the HTTP status to answer."""

    def __init__(self, location: tuple[str, ...], message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.refusal = Refusal(status, ({"type": "cpack", "loc": location, "msg": message},))


def _too_large(most: int) -> _Wrong:
    return _Wrong((), f"The request is larger than {most >> 20} MiB (CPACK_MAX_UPLOAD_MIB)", status=413)


def _at_most(most: int, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """*receive*, but for the body's bytes beyond *most*: a request need not announce how long it is."""
    count = 0

    async def bounded() -> Any:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise _too_large(most)
        return message

    return bounded


def _refused(error: BaseException, *, names: Sequence[str]) -> Refusal:
    """What to answer for *error*, where there are parameters of these *names*; raises it again when it is none of the
    caller's or the disk's making."""
    from pydantic import ValidationError
    from starlette.requests import ClientDisconnect

    if isinstance(error, _Wrong):
        return error.refusal
    if isinstance(error, ValidationError):
        problems = [dict(item) for item in error.errors(include_url=False, include_context=False, include_input=False)]
        for problem in problems:
            if problem["type"] == "extra_forbidden":
                problem["msg"] = f"There is no such parameter; there are: {', '.join(names) or 'none'}"
        return Refusal(400, tuple(problems))
    if isinstance(error, ClientDisconnect):
        return _Wrong((), "The caller went away before the request was whole", status=499).refusal
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _Wrong((), "There is no space left here for the request's files", status=507).refusal
    raise error
