"""Lone surrogates, which JSON can escape but UTF-8 cannot encode, are found and replaced."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import InvalidRequest
from searchrl.platform.json_text import has_lone_surrogates, refuse_lone_surrogates, without_lone_surrogates

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_a_body_is_refused_exactly_if_it_holds_a_lone_surrogate(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
        is_whole = True
    except UnicodeEncodeError:
        is_whole = False
    if is_whole:
        refuse_lone_surrogates(value)
    else:
        with pytest.raises(InvalidRequest) as refused:
            refuse_lone_surrogates(value)
        str(refused.value).encode()


@given(st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010)))
def test_the_replacement_leaves_valid_text(text: str) -> None:
    assert has_lone_surrogates(text) == (text != without_lone_surrogates(text))
    without_lone_surrogates(text).encode()
