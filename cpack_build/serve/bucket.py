"""Results in S3-compatible storage: the files go to a bucket, and the caller is given links that work for a while.

boto3 finds the credentials as every AWS program does (variables, a role of the machine or the pod) and
``AWS_ENDPOINT_URL_S3`` names another provider. It blocks, so it runs in threads.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cpack_build.errors import RunError, ToolMissing, UsageError
from cpack_build.serve.exchange import Produced
from cpack_build.serve.kept import Result
from cpack_build.serve.media import disposition, media_type

if TYPE_CHECKING:
    from botocore.client import BaseClient

__all__ = ["Bucket"]

_LONGEST_LINK_SECONDS = 7 * 24 * 3600
"""What AWS Signature Version 4 allows a link."""


class Bucket:
    """The bucket and prefix that *url* (``s3://bucket/prefix``) names; links to it work for *seconds*."""

    def __init__(self, url: str, *, seconds: float, log: Callable[[str], None]) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.hostname or parts.query or parts.username or parts.port:
            raise UsageError(f"CPACK_OUTPUT_URL is {url!r}.", hint="Set it to s3://BUCKET or s3://BUCKET/PREFIX.")
        if importlib.util.find_spec("boto3") is None:
            raise ToolMissing("CPACK_OUTPUT_URL needs boto3.", hint="Install cpack-build[s3].")
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        self._seconds = int(min(seconds, _LONGEST_LINK_SECONDS))
        self._log = log
        self._client: BaseClient | None = None

    async def put(self, files: Sequence[Produced], names: Sequence[str]) -> Result:
        """Upload *files*; the result has links to them. Raises :class:`RunError` (502) when the storage refuses."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        key = uuid.uuid4().hex
        try:
            uploads = (
                asyncio.to_thread(self._upload, file, name, key) for file, name in zip(files, names, strict=True)
            )
            links = await asyncio.gather(*uploads)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            self._log(f"The outputs could not be put into s3://{self._bucket}: {_reason(error)}.")
            raise RunError(
                "The outputs were made, but could not be put into their storage.",
                hint="The service's log says why.",
                status=502,
            ) from None
        size = sum(file.path.stat().st_size for file in files)
        until = time.monotonic() + self._seconds
        return Result(key, tuple(files), tuple(names), size, until, tuple(links))

    def _upload(self, file: Produced, name: str, key: str) -> str:
        place = "/".join(filter(None, (self._prefix, key, name)))
        more = {"ContentType": media_type(file.path), "ContentDisposition": disposition(media_type(file.path), name)}
        client = self._connected()
        client.upload_file(str(file.path), self._bucket, place, ExtraArgs=more)
        link: str = client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": place}, ExpiresIn=self._seconds
        )
        return link

    def _connected(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            # A path works with every provider; a host name of the bucket's own needs its DNS.
            config = Config(
                s3={"addressing_style": "path"} if _has_endpoint() else {},
                signature_version="s3v4",
                connect_timeout=10,
                retries={"mode": "standard", "max_attempts": 3},
            )
            self._client = boto3.session.Session().client("s3", config=config)
        return self._client


def _has_endpoint() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


def _reason(error: Exception) -> str:
    """*error* without what the storage echoed, such as the name of a key."""
    from botocore.exceptions import ClientError

    cause = error.__cause__ or error.__context__ or error
    for found in (error, cause):
        if isinstance(found, ClientError):
            return str(found.response.get("Error", {}).get("Code") or "it refused")
    return type(cause).__name__
