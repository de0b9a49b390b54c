"""The OCI image spec's own JSON schemas, from Debian's ``golang-github-opencontainers-image-spec-dev``.

Taken from the system so that none of their text is in this repository; ``CPACK_TEST_OCI_SCHEMAS`` names another folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from tests import need

_DEBIAN = "/usr/share/gocode/src/github.com/opencontainers/image-spec/schema"


def check(document: bytes, schema: str) -> Any:
    """Validate JSON text by the schema in the file *schema*; the parsed document."""
    folder = Path(os.environ.get("CPACK_TEST_OCI_SCHEMAS", _DEBIAN))
    if not (folder / schema).is_file():
        need.missing("the OCI image spec's schemas (Debian: golang-github-opencontainers-image-spec-dev)")
    schemas = {path.name: json.loads(path.read_bytes()) for path in folder.glob("*.json")}
    # References between the files are relative to their ids below opencontainers.org, or bare file names.
    resources = [(name, DRAFT4.create_resource(text)) for name, text in schemas.items()]
    below = [(f"https://opencontainers.org/schema/{part}{name}", r) for part in ("", "image/") for name, r in resources]
    registry: Registry[Any] = Registry().with_resources([*resources, *below])
    parsed = json.loads(document)
    Draft4Validator(schemas[schema], registry=registry).validate(parsed)
    return parsed


def check_layout(files: dict[str, bytes]) -> None:
    """Validate a whole layout, given as its small files by path, with all that its index leads to."""
    check(files["oci-layout"], "image-layout-schema.json")
    index = check(files["index.json"], "image-index-schema.json")
    for entry in index["manifests"]:
        manifest = check(files[_path(entry)], "image-manifest-schema.json")
        check(files[_path(manifest["config"])], "config-schema.json")
        for layer in manifest["layers"]:
            assert _path(layer) in files


def _path(descriptor: dict[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")
