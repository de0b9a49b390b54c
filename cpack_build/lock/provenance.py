"""How an image came about, as an in-toto statement with SLSA's provenance: what was asked for, and every input.

It says what the lock in the image says, which is all that a build reads. Only of an image that this very run built it
names cpack-build as the builder; of any other it says no more than that its lock claims so, which `cpack-build verify`
proves by building again. It is not signed: `cosign attest` or whoever runs the build does that.

Specification: in-toto Statement v1, https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cpack_build.lock.bill import Part
from cpack_build.lock.schema import Lock
from cpack_build.oci.types import canonical_json

__all__ = ["CLAIMED", "provenance"]

_HOME = "https://github.com/cpack-build/cpack-build"
CLAIMED = f"{_HOME}/claimed-by-the-lock"
"""The builder's name where nobody saw the build: a policy that asks for cpack-build's own takes none of these."""


def provenance(lock: Lock, parts: Sequence[Part], *, name: str, digest: str, built_here: bool) -> bytes:
    """The statement about the image *name* whose manifest has that *digest* (``sha256:<hex>``), and which this program
    made just now of that *lock* if it was *built_here*."""
    algorithm, _, value = digest.partition(":")
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {algorithm: value}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{_HOME}/image-format/{lock.image_revision}",
                "externalParameters": {
                    "pack": {"digest": {"sha256": lock.inputs.pack}},
                    "settings": {"digest": {"sha256": lock.inputs.settings}},
                    "platform": lock.platform,
                    "target": lock.target,
                },
                "internalParameters": {"lock": {"digest": {"sha256": lock.carried.sha256}}},
                "resolvedDependencies": [_dependency(part) for part in parts],
            },
            "runDetails": {
                "builder": {
                    "id": _HOME if built_here else CLAIMED,
                    "version": {"cpack-build": lock.service_code.version},
                }
            },
        },
    }
    return canonical_json(statement) + b"\n"


def _dependency(part: Part) -> dict[str, Any]:
    """A ResourceDescriptor (in-toto attestation, v1)."""
    digest = {}
    if part.sha256:
        digest["sha256"] = part.sha256
    if part.commit:
        digest["gitCommit"] = part.commit
    if tree := part.facts.get("tree-sha256"):
        digest["cpackTree"] = tree
    found: dict[str, Any] = {"name": part.facts.get("place", part.name), "uri": part.purl, "digest": digest}
    if part.url:
        found["downloadLocation"] = part.url
    return found
