"""``cpack.yaml`` says what the image is; a mistake in it is named, and a pack's own may not point into this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpack_build.cpack.settings import Settings, load_settings, parse_settings, settings_for
from cpack_build.errors import BadSettings, UnsafeInput


def test_every_key_has_a_default() -> None:
    assert parse_settings("", name="cpack.yaml") == Settings()


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(BadSettings, match="'pyhton'") as caught:
        parse_settings("pyhton: {}", name="cpack.yaml")
    assert caught.value.hint == "Did you mean 'python'?"
    with pytest.raises(BadSettings, match=r"'python\.pakages'") as caught:
        parse_settings("python: {pakages: [a]}", name="cpack.yaml")
    assert caught.value.hint == "Did you mean 'packages'?"
    with pytest.raises(BadSettings, match="'zzz'") as caught:
        parse_settings("zzz: 1", name="cpack.yaml")
    assert "base" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("base: 3", "base:"),
        ("python: 3", "python:"),
        ("platform: windows/amd64", "platform:"),
        ("interpreter: {url: x, sha256: short}", "sha256"),
        ("!!python/object/apply:os.system [id]", "is not YAML"),
        ("a: !!timestamp x", "not of the type"),
        ("a: !!bool foo", "not of the type"),
        ('a: !!int ""', "not of the type"),
    ],
)
def test_a_wrong_value_is_named(text: str, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        parse_settings(text, name="cpack.yaml")


def test_flags_override_values_and_come_before_lists() -> None:
    text = "base: scratch\npython: {packages: [a], index_url: 'https://one.example/'}\nmirrors: {x: /a, y: /b}"
    overrides: dict[str, Any] = {
        "base": "debian:12",
        "python": {"packages": ["b"], "index_url": "https://two.example/"},
        "mirrors": {"x": "/c"},
    }
    found = parse_settings(text, name="cpack.yaml", overrides=overrides)
    assert found.base == "debian:12"
    assert found.python.packages == ("b", "a")
    assert found.python.index_url == "https://two.example/"
    assert found.mirrors == {"x": "/c", "y": "/b"}


def test_a_flag_does_not_hide_a_section_that_is_none() -> None:
    with pytest.raises(BadSettings, match="python:"):
        parse_settings("python: 3", name="cpack.yaml", overrides={"python": {"packages": ["a"]}})


def test_only_what_shapes_the_image_is_in_the_digest() -> None:
    plain = Settings().digest()
    local = {"mirrors": {"a": "/b"}, "models": ["/m"], "python": {"find_links": ["/w"]}}
    assert Settings.model_validate(local).digest() == plain
    for shaping in ({"base": "debian:12"}, {"python": {"packages": ["a"]}}, {"environment": {"A": "1"}}):
        assert Settings.model_validate(shaping).digest() != plain


def test_the_settings_nearest_to_the_person_count(tmp_path: Path) -> None:
    pack = tmp_path / "upscale.cpack.zip"
    inside = "base: inside.example/x"
    assert settings_for(pack, inside=None).base == "scratch"
    assert settings_for(pack, inside=inside).base == "inside.example/x"
    (tmp_path / "upscale.cpack.yaml").write_text("base: beside.example/x")
    assert settings_for(pack, inside=inside).base == "beside.example/x"
    (tmp_path / "other.yaml").write_text("base: named.example/x")
    assert settings_for(pack, inside=inside, config=tmp_path / "other.yaml").base == "named.example/x"
    assert settings_for(pack, inside=inside, overrides={"base": "scratch"}).base == "scratch"


@pytest.mark.parametrize(
    "text",
    ["mirrors: {'https://hub.example/': /etc/}", "models: [/]", "python: {find_links: [/tmp]}", "base: oci:/srv/x"],
)
def test_settings_in_a_pack_do_not_reach_into_this_machine(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnsafeInput, match="a pack must not"):
        settings_for(tmp_path / "x.cpack.zip", inside=text)
    # the same flag is the user's own word
    (tmp_path / "mine.yaml").write_text(text)
    settings_for(tmp_path / "x.cpack.zip", inside=None, config=tmp_path / "mine.yaml")


ARCHIVE = f"interpreter: {{url: 'https://evil.example/python.tar.gz', sha256: {'a' * 64}}}"


@pytest.mark.parametrize("text", ["base: evil.example/base", ARCHIVE, f"{ARCHIVE}\nbytecode: auto"])
def test_no_python_that_a_pack_chooses_is_run_on_this_machine(tmp_path: Path, text: str) -> None:
    """Bytecode is compiled by the image's own interpreter, here; a stranger's pack must not name that program."""
    pack = tmp_path / "x.cpack.zip"
    assert settings_for(pack, inside=text).bytecode == "none"
    # what the user names, or takes over, the user trusts
    overrides = {"base": "mine.example/base", "interpreter": "auto"}
    assert settings_for(pack, inside=text, overrides=overrides).bytecode == "auto"
    (tmp_path / "mine.yaml").write_text(text)
    assert settings_for(pack, inside=None, config=tmp_path / "mine.yaml").bytecode == "auto"
    assert settings_for(pack, inside="system: {packages: [git]}").bytecode == "auto"


def test_no_python_out_of_sources_that_a_pack_chooses_is_run_on_this_machine(tmp_path: Path) -> None:
    """The system's Python is then whatever that archive calls so; flags only add to its sources."""
    pack = tmp_path / "x.cpack.zip"
    text = "system: {sources: ['deb https://evil.example/debian stable main']}"
    assert settings_for(pack, inside=text).bytecode == "none"
    for overrides in ({"system": {"packages": ["git"]}}, {"system": {"sources": ["deb https://mine.example x main"]}}):
        found = settings_for(pack, inside=text, overrides=overrides)
        assert (found.bytecode, "evil" in found.system.sources[-1]) == ("none", True)
    (tmp_path / "mine.yaml").write_text(text)
    assert settings_for(pack, inside=None, config=tmp_path / "mine.yaml").bytecode == "auto"


@pytest.mark.parametrize("options", ["signed-by=/store/blobs/x", "arch=amd64 Signed-By+=/x", "signed-by=AB,/x"])
def test_a_pack_does_not_say_which_file_of_this_machine_is_a_key(tmp_path: Path, options: str) -> None:
    text = f"system: {{sources: ['deb [{options}] https://evil.example/debian stable main']}}"
    with pytest.raises(UnsafeInput, match=r"system\.sources names a place on this machine"):
        settings_for(tmp_path / "x.cpack.zip", inside=text)
    (tmp_path / "mine.yaml").write_text(text)
    assert settings_for(tmp_path / "x.cpack.zip", inside=None, config=tmp_path / "mine.yaml").system.sources


def test_paths_in_a_file_are_meant_from_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "cpack.yaml"
    path.write_text(
        "mirrors: {'https://hub.example/': ./clones/}\nmodels: [../models, /srv/m]\npython: {find_links: [./w]}"
    )
    found = load_settings(path, overrides={"models": ["/flag"]})
    assert found.mirrors == {"https://hub.example/": f"{tmp_path}/clones/"}
    assert found.models == ("/flag", f"{tmp_path.parent}/models", "/srv/m")
    assert found.python.find_links == (f"{tmp_path}/w",)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"absent\.yaml cannot be read: no such file"):
        load_settings(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"base: \xff")
    with pytest.raises(BadSettings, match="not UTF-8"):
        load_settings(tmp_path / "binary.yaml")
