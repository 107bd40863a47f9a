"""Decoded JSON for hypothesis: of any kind, and of a known kind with one value in it changed."""

import copy
from typing import Any

from hypothesis import strategies as st

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, record: Any) -> Any:
    """`record` with one of its values, however deep, replaced by another or taken away."""
    record = copy.deepcopy(record)
    places = list(_places(record))
    container, key = draw(st.sampled_from(places))
    if draw(st.booleans()):
        container[key] = draw(json_values)
    else:
        del container[key]
    return record


def _places(value: Any) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
