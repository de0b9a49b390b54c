"""What the distribution spec documents, of a real registry and of ours that misbehaves when it is told to: a fault of
ours would prove nothing about a client if what is no fault were not the spec's.

Each test is named after a section of distribution-spec v1.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
import requests

from cpack_build.oci.types import MANIFEST
from tests.oci.images import small_image
from tests.oci.misbehaving import run_misbehaving

DATA = b"some bytes of a blob"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(params=["ours", "docker-registry"])
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """``http://HOST/v2/``."""
    if request.param == "ours":
        with run_misbehaving() as ours:
            yield f"http://{ours.host}/v2/"
    else:
        yield f"http://{request.getfixturevalue('registry').host}/v2/"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository for this test alone."""
    return "spec/" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def begin(base: str, name: str, query: str = "") -> str:
    """The address of an upload that has begun."""
    answer = requests.post(f"{base}{name}/blobs/uploads/{query}")
    assert answer.status_code == 202
    return urljoin(answer.url, answer.headers["Location"])


def put(url: str, digest: str, data: bytes = b"") -> requests.Response:
    return requests.put(url + ("&" if "?" in url else "?") + f"digest={digest}", data=data, headers=OCTETS)


def patch(url: str, start: int, data: bytes) -> requests.Response:
    told = {"Content-Range": f"{start}-{start + len(data) - 1}", **OCTETS}
    return requests.patch(url, data=data, headers=told)


def test_pushing_a_blob_monolithically_by_post_then_put(base: str, name: str) -> None:
    assert requests.head(f"{base}{name}/blobs/{DIGEST}").status_code == 404
    done = put(begin(base, name), DIGEST, DATA)
    assert done.status_code == 201
    assert done.headers["Location"]
    found = requests.head(f"{base}{name}/blobs/{DIGEST}")
    assert (found.status_code, found.headers["Content-Length"]) == (200, str(len(DATA)))
    assert requests.get(f"{base}{name}/blobs/{DIGEST}").content == DATA


def test_a_blob_with_another_digest_is_invalid(base: str, name: str) -> None:
    done = put(begin(base, name), "sha256:" + "0" * 64, DATA)
    assert done.status_code == 400
    assert done.json()["errors"][0]["code"] == "DIGEST_INVALID"


def test_pushing_a_blob_in_chunks_tells_each_time_where_to_go_on(base: str, name: str) -> None:
    first = patch(begin(base, name), 0, DATA[:7])
    assert (first.status_code, first.headers["Range"]) == (202, "0-6")
    url = urljoin(first.url, first.headers["Location"])
    status = requests.get(url)
    assert (status.status_code, status.headers["Range"]) == (204, "0-6")
    second = patch(urljoin(status.url, status.headers["Location"]), 7, DATA[7:])
    assert (second.status_code, second.headers["Range"]) == (202, f"0-{len(DATA) - 1}")
    assert put(urljoin(second.url, second.headers["Location"]), DIGEST).status_code == 201
    assert requests.get(f"{base}{name}/blobs/{DIGEST}").content == DATA


def test_a_chunk_out_of_order_is_answered_with_416(name: str) -> None:
    """By ours, as the spec has it; distribution 2.8 takes the chunk and refuses the blob at its end."""
    with run_misbehaving() as ours:
        first = patch(begin(f"http://{ours.host}/v2/", name), 0, DATA[:7])
        assert patch(urljoin(first.url, first.headers["Location"]), 9, DATA[9:]).status_code == 416


def test_an_upload_can_be_cancelled_and_is_unknown_then(base: str, name: str) -> None:
    url = begin(base, name)
    assert requests.delete(url).status_code == 204
    assert requests.get(url).status_code == 404


def test_mounting_a_blob_from_another_repository(base: str, name: str) -> None:
    put(begin(base, f"{name}/source"), DIGEST, DATA)
    done = requests.post(f"{base}{name}/blobs/uploads/?mount={DIGEST}&from={name}/source")
    assert done.status_code == 201
    assert requests.get(f"{base}{name}/blobs/{DIGEST}").content == DATA
    # What the source lacks becomes an ordinary upload.
    begin(base, name, f"?mount=sha256:{'0' * 64}&from={name}/source")


def test_part_of_a_blob(base: str, name: str) -> None:
    put(begin(base, name), DIGEST, DATA)
    url = f"{base}{name}/blobs/{DIGEST}"
    part = requests.get(url, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, DATA[5:10])
    assert part.headers["Content-Range"] == f"bytes 5-9/{len(DATA)}"
    # The body is not looked at: distribution 2.8 announces one and sends none.
    with requests.get(url, headers={"Range": f"bytes={len(DATA)}-"}, stream=True) as beyond:
        assert beyond.status_code == 416


def test_manifests_by_tag_and_by_digest_once_their_blobs_are_there(base: str, name: str) -> None:
    image = small_image(name)
    url, told = f"{base}{name}/manifests/", {"Content-Type": MANIFEST}
    accepted = {"Accept": MANIFEST}
    assert requests.head(f"{url}v1", headers=accepted).status_code == 404
    refused = requests.put(f"{url}v1", data=image.manifest.data, headers=told)
    assert 400 <= refused.status_code < 500
    assert refused.json()["errors"][0]["code"] in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")
    for blob in (image.config, *image.layers):
        assert put(begin(base, name), blob.descriptor.digest, b"".join(blob.chunks())).status_code == 201
    done = requests.put(f"{url}v1", data=image.manifest.data, headers=told)
    assert (done.status_code, done.headers["Docker-Content-Digest"]) == (201, image.digest)
    for version in ("v1", image.digest):
        found = requests.get(url + version, headers=accepted)
        assert (found.content, found.headers["Content-Type"]) == (image.manifest.data, MANIFEST)
        assert found.headers["Docker-Content-Digest"] == image.digest
        head = requests.head(url + version, headers=accepted)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(image.manifest.data)))


def test_without_the_referrers_api_it_is_404(base: str, name: str) -> None:
    """As of distribution 2.8; ours can have it as well."""
    assert requests.get(f"{base}{name}/referrers/{DIGEST}").status_code == 404
