"""Stand-ins for the three clouds' object stores, that answer what s3fs, gcsfs and adlfs really ask about one bucket.

Each knows the objects of one bucket and the secret that opens it, and refuses in its cloud's own format: S3's XML
("REST error responses"), Google's JSON API, Azure's XML with ``x-ms-error-code``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import pytest

from tests.fetch.servers import Answer, Request

ACCESS = "AKIAEXAMPLE"
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
"""What no message may show; base64, as Azure's keys are."""
DATE = "Mon, 05 Jan 2026 10:00:00 GMT"


def part_of(body: bytes, request: Request, headers: Mapping[str, str], *, ask: str = "range") -> Answer:
    """*body* or the range of it that the header *ask* names (RFC 9110, section 14.2)."""
    wanted = request.headers.get(ask) or request.headers.get("range")
    if wanted is None:
        return Answer(200, body, {"Content-Length": str(len(body)), **headers})
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    begin, end = int(first), min(int(last or len(body)) + 1, len(body))
    return Answer(206, body[begin:end], {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}", **headers})


def s3(objects: Mapping[str, bytes], *, is_open: bool = True) -> Callable[[Request], Answer]:
    """Amazon S3's REST API, path style: HEAD and GET of objects, and the listing that follows on a missing one."""

    def refused(status: int, code: str) -> Answer:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        return Answer(status, text.encode(), {"Content-Type": "application/xml"})

    def answer(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if not is_open or ACCESS not in request.headers.get("authorization", ""):
            return refused(403, "AccessDenied")
        name = unquote(path).removeprefix("/bucket").removeprefix("/")
        if not name or "list-type" in query:
            return Answer(200, b"<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount></ListBucketResult>")
        if name not in objects:
            return refused(404, "NoSuchKey")
        return part_of(objects[name], request, {"ETag": '"1"', "Last-Modified": DATE, "Accept-Ranges": "bytes"})

    return answer


def gcs(objects: Mapping[str, bytes], *, is_open: bool = True) -> Callable[[Request], Answer]:
    """Google Cloud Storage's JSON API: an object's metadata, its media, a listing."""

    def refused(status: int, message: str) -> Answer:
        text = json.dumps({"error": {"code": status, "message": message, "errors": [{"message": message}]}})
        return Answer(status, text.encode(), {"Content-Type": "application/json"})

    def answer(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if not is_open:
            return refused(403, "Anonymous caller does not have storage.objects.get access, forbidden")
        _, _, name = unquote(path).partition("/b/bucket/o/")
        if not name:
            return Answer(body=b"{}", headers={"Content-Type": "application/json"})
        if name not in objects:
            return refused(404, "No such object")
        if "alt=media" in query or "/download/" in path:
            return part_of(objects[name], request, {})
        told = {"name": name, "bucket": "bucket", "size": str(len(objects[name])), "updated": "2026-01-05T10:00:00Z"}
        kind = {"timeCreated": "2026-01-05T10:00:00Z", "generation": "1", "contentType": "application/octet-stream"}
        return Answer(body=json.dumps({**told, **kind}).encode(), headers={"Content-Type": "application/json"})

    return answer


def azure(objects: Mapping[str, bytes], *, is_open: bool = True) -> Callable[[Request], Answer]:
    """Azure's Blob service, version 2019 and later: properties, bytes, a listing."""

    def refused(status: int, code: str) -> Answer:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        return Answer(status, text.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})

    def answer(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if not is_open or not request.headers.get("authorization", "").startswith(f"SharedKey {ACCESS}:"):
            return refused(403, "AuthorizationFailure")
        name = unquote(path).removeprefix(f"/{ACCESS}/bucket").removeprefix("/")
        if "comp=list" in query:
            return Answer(
                200,
                b"<?xml version='1.0'?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>",
                {"Content-Type": "application/xml"},
            )
        if name not in objects:
            return refused(404, "BlobNotFound" if name else "ContainerNotFound")
        headers = {"ETag": '"0x1"', "Last-Modified": DATE, "x-ms-blob-type": "BlockBlob", "x-ms-creation-time": DATE}
        return part_of(objects[name], request, headers, ask="x-ms-range")

    return answer


@dataclass(frozen=True)
class Cloud:
    """A cloud: its *scheme* in addresses, what is *needed* to read it, its *service*, and *settings* for a user."""

    scheme: str
    needed: str
    service: Callable[..., Callable[[Request], Answer]]
    settings: Callable[[str], dict[str, str]]

    def use(self, url: str, patch: pytest.MonkeyPatch) -> None:
        """Be a user of this cloud at *url*, as its documentation says that one becomes one."""
        for name, value in self.settings(url).items():
            patch.setenv(name, value)
        import fsspec  # gcsfs reads its environment when it is imported
        from fsspec.config import conf

        patch.setitem(conf, "gs", {"token": "anon"})
        fsspec.get_filesystem_class(self.scheme).clear_instance_cache()


CLOUDS = [
    Cloud(
        "s3",
        "s3fs",
        s3,
        lambda url: {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "1",
        },
    ),
    Cloud(
        "gs",
        "gcsfs",
        gcs,
        # Its experimental class asks Google itself, over gRPC, which kind of bucket it is, emulator or not.
        lambda url: {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
    ),
    Cloud(
        "az",
        "adlfs",
        azure,
        lambda url: {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;"
            f"AccountName={ACCESS};AccountKey={SECRET};BlobEndpoint={url}/{ACCESS};"
        },
    ),
]
