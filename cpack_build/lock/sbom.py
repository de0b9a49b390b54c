"""The parts of a lock as an SBOM: CycloneDX 1.6 or SPDX 2.3, as JSON, always the same bytes for the same lock.

Time and number of the document come from the lock. CycloneDX is written by its own library; SPDX, whose JSON is as
simple, by hand (docs/decisions/027-sbom-and-provenance.md).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Literal

from cpack_build import __version__
from cpack_build.lock.bill import Part
from cpack_build.lock.schema import Lock

__all__ = ["Format", "cyclonedx", "spdx"]

Format = Literal["cyclonedx", "spdx"]
_HOME = "https://github.com/cpack-build/cpack-build"


def cyclonedx(lock: Lock, parts: Sequence[Part]) -> bytes:
    """CycloneDX 1.6, JSON (https://cyclonedx.org/docs/1.6/json/)."""
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    kinds = {
        "base": ComponentType.CONTAINER, "model": ComponentType.MACHINE_LEARNING_MODEL,
        "interpreter": ComponentType.PLATFORM, "source": ComponentType.APPLICATION,
        "program": ComponentType.APPLICATION,
    }  # fmt: skip

    def component(part: Part) -> Component:
        facts = {"kind": part.kind, **part.facts, **({"size": str(part.size)} if part.size is not None else {})}
        where = ExternalReferenceType.VCS if part.commit else ExternalReferenceType.DISTRIBUTION
        licences: tuple[License, ...] = ()
        if part.licence is not None:
            licences = (
                LicenseExpression(part.licence) if part.is_expression else DisjunctiveLicense(name=part.licence),
            )
        return Component(
            bom_ref=part.ref,
            type=kinds.get(part.kind, ComponentType.LIBRARY),
            name=part.name,
            version=part.version,
            purl=PackageURL.from_string(part.purl),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else (),
            external_references=[ExternalReference(type=where, url=XsUri(part.url))] if part.url else (),
            licenses=licences,
            properties=[Property(name=f"cpack:{name}", value=value) for name, value in sorted(facts.items())],
        )

    about = {
        "platform": lock.platform,
        "target": lock.target,
        "lock-sha256": lock.carried.sha256,
        "pack-sha256": lock.inputs.pack,
    }
    root = Component(
        bom_ref="image",
        type=ComponentType.CONTAINER,
        name="ComfyUI workflow",
        version=_number(lock),
        properties=[Property(name=f"cpack:{name}", value=value) for name, value in about.items()],
    )
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{_HOME}#{_number(lock)}"))
    bom.metadata.timestamp = datetime.fromtimestamp(lock.source_date_epoch, timezone.utc)
    bom.metadata.component = root
    bom.metadata.tools.components.add(
        Component(type=ComponentType.APPLICATION, name="cpack-build", version=__version__)
    )
    components = [component(part) for part in parts]
    bom.components.update(components)
    bom.register_dependency(root, components)
    return f"{JsonV1Dot6(bom).output_as_string(indent=1)}\n".encode()


def spdx(lock: Lock, parts: Sequence[Part]) -> bytes:
    """SPDX 2.3, JSON (https://spdx.github.io/spdx-spec/v2.3/)."""
    purposes = {"base": "CONTAINER", "model": "FILE", "source": "SOURCE", "program": "APPLICATION"}

    def package(part: Part) -> dict[str, Any]:
        found: dict[str, Any] = {
            "SPDXID": _identifier(part.ref),
            "name": part.name,
            "versionInfo": part.version,
            "downloadLocation": _location(part),
            "filesAnalyzed": False,
            "copyrightText": "NOASSERTION",
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": part.licence if part.licence and part.is_expression else "NOASSERTION",
            "primaryPackagePurpose": purposes.get(part.kind, "LIBRARY"),
            "externalRefs": [
                {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": part.purl}
            ],
            "comment": "; ".join(
                f"{name}: {value}" for name, value in sorted({"kind": part.kind, **part.facts}.items())
            ),
        }
        if part.licence and not part.is_expression:
            found["licenseComments"] = f"The package calls its licence: {part.licence}"
        if part.sha256:
            found["checksums"] = [{"algorithm": "SHA256", "checksumValue": part.sha256}]
        return found

    created = datetime.fromtimestamp(lock.source_date_epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    root = {
        "SPDXID": "SPDXRef-image", "name": "ComfyUI workflow", "versionInfo": _number(lock), "filesAnalyzed": False,
        "downloadLocation": "NOASSERTION", "copyrightText": "NOASSERTION", "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION", "primaryPackagePurpose": "CONTAINER",
        "comment": f"platform: {lock.platform}; target: {lock.target}; pack: sha256:{lock.inputs.pack}",
    }  # fmt: skip
    contains = [
        {"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": _identifier(part.ref)}
        for part in parts
    ]
    described = {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES",
                 "relatedSpdxElement": "SPDXRef-image"}  # fmt: skip
    document = {
        "spdxVersion": "SPDX-2.3",
        "SPDXID": "SPDXRef-DOCUMENT",
        "dataLicense": "CC0-1.0",
        "name": f"ComfyUI workflow {_number(lock)}",
        "documentNamespace": f"{_HOME}/sbom/{lock.carried.sha256}/{_of(parts)}",
        "creationInfo": {"created": created, "creators": [f"Tool: cpack-build-{__version__}"]},
        "packages": [root, *map(package, parts)],
        "relationships": [described, *contains],
    }
    return f"{json.dumps(document, indent=1, ensure_ascii=False)}\n".encode()


def _number(lock: Lock) -> str:
    """By the lock as an image carries it, so that an image and the lock that made it have one SBOM."""
    return f"sha256:{lock.carried.sha256}"


def _location(part: Part) -> str:
    """SPDX 2.3, 7.7. Readers know a repository that is named with a commit by its ``.git`` alone."""
    if part.commit and part.url and part.url.endswith(".git"):
        return f"git+{part.url}@{part.commit}"
    return part.url or "NOASSERTION"


def _of(parts: Sequence[Part]) -> str:
    """SPDX wants one name for one document, and licences are no part of the lock."""
    return hashlib.sha256(repr([(part.ref, part.licence) for part in parts]).encode()).hexdigest()[:16]


def _identifier(ref: str) -> str:
    """SPDX 2.3, 7.2: letters, digits, ``.`` and ``-``; unlike names must not become like ones."""
    return f"SPDXRef-{ref.partition(':')[0]}-{hashlib.sha256(ref.encode()).hexdigest()[:20]}"
