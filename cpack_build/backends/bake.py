"""What ``docker buildx bake`` needs besides the Dockerfile, and the SBOM that a build attaches to its image.

BuildKit makes an SBOM by running a scanner, an image that only the user can pin (BuildKit, "SBOM scanner
protocol"). The lock has the answer already; so the target ``sbom-scanner`` is an image that gives it, for this lock's
image alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cpack_build.lock.bill import parts_of
from cpack_build.lock.sbom import spdx
from cpack_build.lock.schema import Lock

__all__ = ["OWN_DRIVER", "SCANNER", "bake_command", "bake_file", "bake_readme", "scan", "statement"]

OWN_DRIVER = (
    "The driver `docker` (dockerd's own BuildKit) does not rewrite the times of an image that it keeps "
    '("conflicts with unpack"): with it set REWRITE_TIMESTAMP=false.'
)
SCANNER = "sbom-scanner"
"""The target and its stage in the Dockerfile."""


def bake_file(lock: Lock, *, secrets: Sequence[str], contexts: Mapping[str, str]) -> str:
    """``docker-bake.json``, with the names of the Dockerfile's *secrets* and the named *contexts* that it takes."""
    common: dict[str, Any] = {
        "context": ".",
        "dockerfile": "Dockerfile",
        "platforms": [lock.platform],
        "args": {"SOURCE_DATE_EPOCH": str(lock.source_date_epoch)},
        "output": ["type=image,rewrite-timestamp=${REWRITE_TIMESTAMP},oci-mediatypes=true"],
        **({"contexts": dict(contexts)} if contexts else {}),
    }
    image = {
        **common,
        "tags": [],
        "attest": [
            "type=provenance,mode=max",
            '${SBOM_GENERATOR == "" ? "type=sbom,disabled=true" : "type=sbom,generator=${SBOM_GENERATOR}"}',
        ],
        "cache-from": ['${CACHE == "" ? "" : "type=registry,ref=${CACHE}"}'],
        "cache-to": ['${CACHE == "" ? "" : "type=registry,ref=${CACHE},mode=max"}'],
        **({"secret": [f"id={name},env={name}" for name in secrets]} if secrets else {}),
    }
    scanner = {**common, "target": SCANNER, "attest": ["type=provenance,disabled=true"]}
    # the driver `docker` unpacks what it makes, and does not rewrite what it unpacks
    variables = {"SBOM_GENERATOR": "", "CACHE": "", "REWRITE_TIMESTAMP": "true"}
    document = {
        "variable": {name: {"default": default} for name, default in variables.items()},
        "group": {"default": {"targets": ["image"]}},
        "target": {"image": image, SCANNER: scanner},
    }
    return json.dumps(document, indent=2) + "\n"


def bake_command(driver: str | None) -> str:
    """What builds there, by a builder with that *driver* of buildx; ``None`` where nobody knows it."""
    variable = "REWRITE_TIMESTAMP=false " if driver == "docker" else ""
    return f"{variable}docker buildx bake --set image.tags=NAME --push"


def bake_readme(command: str) -> str:
    """What who finds the folder should know."""
    return f"""# An image, to be built by BuildKit

Made by cpack-build from a lock; `Dockerfile` names all by hash.

    {command}

{OWN_DRIVER}
`CACHE=REF` takes and leaves a build cache in a registry. `SBOM_GENERATOR=REF@sha256:…` names a scanner; the target
`{SCANNER}` is one, for this image alone.
"""


def statement(lock: Lock) -> str:
    """The SBOM of *lock* as a scanner leaves it: an in-toto statement, whose subject BuildKit fills in."""
    document = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://spdx.dev/Document",
        "subject": [],
        "predicate": json.loads(spdx(lock, parts_of(lock))),
    }
    return json.dumps(document, sort_keys=True) + "\n"


def scan(lock: Lock) -> str:
    """The scanner's shell script: it sees that the image before it carries *lock*, and gives the statement."""
    carried = f"{lock.carried.sha256}  $BUILDKIT_SCAN_SOURCE/app/cpack/cpack.lock"
    return f'echo "{carried}" | sha256sum -c && cp /sbom.spdx.json "$BUILDKIT_SCAN_DESTINATION/"'
