"""What an image consists of, as CycloneDX, SPDX and SLSA provenance: valid, complete, and always the same bytes."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.store import Store
from cpack_build.lock.bill import Part, parts_of, with_licences
from cpack_build.lock.provenance import CLAIMED, provenance
from cpack_build.lock.sbom import cyclonedx, spdx
from cpack_build.lock.schema import BaseImage, GitTree, Lock, Model, RegistryNode
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sources import open_source
from tests.cli.calling import Caller
from tests.cli.test_receipts import Scene
from tests.engines import Registry
from tests.image.golden.building import LOCK, golden_lock
from tests.making import make_wheel
from tests.oci.images import image_of, text_layer

HOME = "https://github.com/cpack-build/cpack-build"
COMMIT, SHA256 = "c" * 40, "5" * 64


@pytest.fixture
def scene(call: Caller, tmp_path: Path) -> Scene:
    return Scene(tmp_path, call)


def full_lock() -> Lock:
    """The golden lock with one of everything besides, and a token where a careless person may have put one."""
    hub = "https://huggingface.co/org/repo/resolve/v1/a%20b/x.safetensors"
    model = Model(path="models/vae/x y.safetensors", sha256=SHA256, size=7, layer_digest=f"sha256:{'6' * 64}",
                  sources=(hub, "https://user:s3cret@files.example/x?token=s3cret&v=1"))  # fmt: skip
    nodes = GitTree(name="Node", url="https://github.com/some/Node.git", commit=COMMIT, tree_sha256="7" * 64,
                    committed_at=1, patch_sha256="8" * 64)  # fmt: skip
    registry = RegistryNode(name="other", version="1.2", url="https://cdn.example/other.zip", sha256="9" * 64, size=3,
                            tree_sha256="a" * 64)  # fmt: skip
    base = BaseImage(reference="registry.example/debian:12", digest=f"sha256:{'b' * 64}")
    lock = golden_lock()
    return lock.model_copy(
        update={"base": base, "models": (*lock.models, model), "nodes": (nodes,), "registry_nodes": (registry,)}
    )


def hashes_in(lock: Lock) -> set[str]:
    """Every sha256 and commit of a thing that is in the image, as the lock's own JSON and pylocks have them."""
    document = json.loads(lock.to_bytes())
    texts = [document["service"]["pylock"], document["python"]["pylock"]]
    found = {sha256 for text in texts for sha256 in re.findall(r'sha256 ?= ?"([0-9a-f]{64})"', text)}
    for part in (*document["system"], *document["interpreter"]["packages"], *document["models"]):
        found.add(part["sha256"])
    for tree in (document["comfyui"], *document["nodes"], *document.get("registry_nodes", ())):
        found |= {tree.get("commit") or tree["sha256"], tree["tree_sha256"]}
    return found | {document["base"].get("digest", "").removeprefix("sha256:"), document["service_code"]["tree_sha256"]}


@pytest.mark.parametrize("lock", [golden_lock(), full_lock()], ids=["golden", "full"])
@pytest.mark.parametrize("kind", ["cyclonedx", "spdx", "provenance"])
def test_everything_is_in_it_and_no_token(lock: Lock, kind: str) -> None:
    data = written(lock, kind)
    assert data == written(Lock.model_validate_json(lock.to_bytes()), kind)
    text = data.decode()
    assert not [one for one in hashes_in(lock) if one not in text]
    assert "s3cret" not in text
    parts = parts_of(lock)
    assert len({part.ref for part in parts}) == len(parts)
    assert all(part.purl in text for part in parts)


def written(lock: Lock, kind: str) -> bytes:
    parts = parts_of(lock)
    if kind == "provenance":
        return provenance(lock, parts, name="x", digest=f"sha256:{'0' * 64}", built_here=True)
    return cyclonedx(lock, parts) if kind == "cyclonedx" else spdx(lock, parts)


def test_cyclonedx_is_what_its_schema_says() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    for lock in (golden_lock(), full_lock()):
        told = licensed(parts_of(lock))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the validator's own
            problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(cyclonedx(lock, told).decode())
        assert problem is None, problem
    components = {one["name"]: one for one in json.loads(cyclonedx(full_lock(), parts_of(full_lock())))["components"]}
    assert components["x y.safetensors"]["purl"] == "pkg:huggingface/org/repo@v1"
    assert components["Node"]["purl"] == f"pkg:github/some/node@{COMMIT}"
    assert components["x y.safetensors"]["type"] == "machine-learning-model"


def test_spdx_is_what_its_own_validator_says(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        from spdx_tools.spdx.parser.parse_anything import parse_file
        from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    lock = full_lock()
    path = tmp_path / "x.spdx.json"
    path.write_bytes(spdx(lock, licensed(parts_of(lock))))
    document = parse_file(str(path))
    assert validate_full_spdx_document(document) == []
    assert len(document.packages) == len(parts_of(lock)) + 1


def licensed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """As if the wheels had told their licences, in both ways."""
    return tuple(
        replace(part, licence="Apache-2.0 OR MIT" if number % 2 else "Some License", is_expression=bool(number % 2))
        for number, part in enumerate(parts)
    )


def test_provenance_is_an_in_toto_statement_with_slsa_s_predicate() -> None:
    from google.protobuf.json_format import Parse, ParseDict
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement_pb2 import Statement

    lock = full_lock()
    data = written(lock, "provenance")
    statement = Parse(data, Statement())  # an unknown field is an error
    assert (statement.type, statement.predicate_type) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    assert statement.subject[0].digest == {"sha256": "0" * 64}
    predicate = ParseDict(json.loads(data)["predicate"], Provenance())
    assert len(predicate.build_definition.resolved_dependencies) == len(parts_of(lock))
    assert all(one.digest and one.uri for one in predicate.build_definition.resolved_dependencies)


def test_image_pack_and_lock_have_one_sbom(scene: Scene, call: Caller, tmp_path: Path) -> None:
    scene.build()
    layout = f"oci:{scene.layout}"
    for kind in ("cyclonedx", "spdx"):
        said = [call("sbom", source, "--format", kind) for source in (scene.pack, scene.lock, layout)]
        assert [done.code for done in said] == [0, 0, 0], [done.err for done in said]
        assert len({done.out for done in said}) == 1
    done = call("sbom", scene.lock, "-o", tmp_path / "x.json", "--json")
    assert (tmp_path / "x.json").read_text() == call("sbom", scene.lock).out
    assert done.document["parts"] == len(json.loads((tmp_path / "x.json").read_bytes())["components"])
    statement = json.loads(call("sbom", layout, "--format", "provenance").out)
    [entry] = json.loads((scene.layout / "index.json").read_bytes())["manifests"]
    assert f"sha256:{statement['subject'][0]['digest']['sha256']}" == entry["digest"]
    assert call("sbom", scene.lock, "--format", "provenance").code == 2


def test_a_push_attaches_them_to_what_it_pushed(scene: Scene, call: Caller, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/papers/scene:v1"
    done = call(*scene.words, "--push", name, "--sbom", "--provenance", "--json")
    assert done.code == 0, done.err
    assert call("pull", name, "--attached", tmp_path / "papers").code == 0
    assert {path.name for path in (tmp_path / "papers").iterdir()} == {"sbom.cdx.json", "provenance.intoto.json"}
    statement = json.loads((tmp_path / "papers/provenance.intoto.json").read_bytes())
    assert f"sha256:{statement['subject'][0]['digest']['sha256']}" == open_source(parse_reference(name)).digest
    # zstd in the registry, plain in the folder: the manifest differs, the parts do not
    assert (tmp_path / "papers/sbom.cdx.json").read_text() == call("sbom", scene.lock).out
    assert builder_of(statement) == HOME
    # An image that was there may be anybody's, whatever lock lies in it.
    other = f"{registry.host}/papers/other:v1"
    again = call("push", f"oci:{scene.layout}", other, "--sbom", "--provenance", "--json")
    assert again.code == 0, again.err
    assert call("pull", other, "--attached", tmp_path / "others").code == 0
    claimed = json.loads((tmp_path / "others/provenance.intoto.json").read_bytes())
    assert builder_of(claimed) == CLAIMED
    assert builder_of(json.loads(call("sbom", f"oci:{scene.layout}", "--format", "provenance").out)) == CLAIMED


def builder_of(statement: dict[str, Any]) -> str:
    return str(statement["predicate"]["runDetails"]["builder"]["id"])


def test_what_has_no_lock_has_no_sbom(call: Caller, registry: Registry, scene: Scene, tmp_path: Path) -> None:
    write_layout(image_of([text_layer({"x": "y"})]), tmp_path / "other.oci")
    done = call("sbom", f"oci:{tmp_path}/other.oci")
    assert (done.code, "carries no lock" in done.err) == (3, True)
    assert call("push", scene.pack, f"{registry.host}/papers/pack:v1", "--sbom").code == 2
    assert call(*scene.words, "--sbom").code == 2
    assert call("sbom", tmp_path / "none").code == 2


def test_licences_are_the_wheels_own_words_or_none(call: Caller, tmp_path: Path) -> None:
    done = call("sbom", LOCK, "--licences")
    assert (done.code, "cpack-build fetch" in done.err) == (4, True), done.err
    store = Store(tmp_path / "licences")
    parts = []
    for name, lines in {
        "new": "License-Expression: Apache-2.0 OR MIT\n",
        "old": "License: BSD\nClassifier: License :: OSI Approved :: BSD License\n",
        "classified": "Classifier: License :: OSI Approved :: MIT License\nClassifier: Topic :: X\n",
        "long": f"License: {'whole text ' * 50}\n",
        "silent": "",
    }.items():
        wheel = make_wheel(tmp_path / "wheels", name, {f"{name}/__init__.py": b""}, metadata=lines)
        parts.append(Part("wheel", name, "1.0", f"pkg:pypi/{name}@1.0", store.adopt(wheel.path).sha256,
                          facts={"file": name}))  # fmt: skip
    told = {part.name: (part.licence, part.is_expression) for part in with_licences(tuple(parts), store)}
    assert told == {
        "new": ("Apache-2.0 OR MIT", True), "old": ("BSD", False), "classified": ("MIT License", False),
        "long": (None, False), "silent": (None, False),
    }  # fmt: skip
