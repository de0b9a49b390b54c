"""Documents read and written piece by piece are those that Python's own reader and writer would give."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpack_build.nodes import piecewise

PADDING = {"padding": "x" * (32 << 10)}
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), _values), st.sampled_from([None, 1]))
def test_reading_gives_what_json_gives(document: dict[str, Any], indent: int | None) -> None:
    text = json.dumps({**document, **PADDING}, indent=indent)
    assert piecewise.read(text) == json.loads(text)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), _values))
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    assert json.loads(piecewise.written(document)) == document


@pytest.mark.parametrize(
    "text",
    ["{%s", "{%s}x", "{%s,}", '{%s,"a"}', '{%s,"a":}', '{%s,"a":[1,]}', '{%s,"a":[1 2]}', '{%s,"a":[1}', "{%s,1:2}",
     "{%s}{}", '{%s "a":1}', '{%s,"a":[,1]}', '{,%s}', '{%s,,"a":1}', '{%s,"a":nonsense}'],
)  # fmt: skip
def test_what_is_no_json_is_refused(text: str) -> None:
    text = text.replace("%s", json.dumps(PADDING)[1:-1])
    with pytest.raises(ValueError):  # noqa: PT011 - as json.loads, of which it takes the place
        json.loads(text)
    with pytest.raises(ValueError):  # noqa: PT011
        piecewise.read(text)


def test_short_texts_and_others_than_objects_are_read_too() -> None:
    assert piecewise.read("{}") == {}
    assert piecewise.read("[1]") == [1]
    assert piecewise.read(json.dumps(["x" * 40_000])) == ["x" * 40_000]
