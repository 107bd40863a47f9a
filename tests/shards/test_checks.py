import math
from types import SimpleNamespace

import pytest

from shards.checks import require_folder, require_range
from shards.errors import ConfigError


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "rule"),
    [
        ({"least": 1}, [1, 2.5], [0.999, -1], "must be at least 1"),
        ({"above": 0}, [1e-9], [0, -1], "must be above 0"),
        ({"least": 0, "most": 1}, [0, 1], [-0.1, 1.1], "is out of range [0, 1]"),
        ({"least": 0, "below": 1}, [0, 0.99], [1], "is out of range [0, 1)"),
        ({"above": 0, "most": 1}, [0.1, 1], [0, 2], "is out of range (0, 1]"),
    ],
)
def test_bounds_hold_and_the_rule_says_them(bounds, good, bad, rule):
    for value in good:
        require_range(SimpleNamespace(first=value, second=value), "first", "second", **bounds)
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            require_range(SimpleNamespace(first=good[0], second=value), "first", "second", **bounds)
        assert (caught.value.key, caught.value.rule) == ("second", rule)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_never_allowed(value):
    with pytest.raises(ConfigError, match=r"first: .* must be a finite number"):
        require_range(SimpleNamespace(first=value), "first", least=0)


def test_a_folder_is_no_url():
    require_folder(SimpleNamespace(output="runs/a", empty=""), "output", "empty")
    for url in ("s3://bucket/a", "file:///a"):
        with pytest.raises(ConfigError, match=r"output: .* must be a folder, not a URL"):
            require_folder(SimpleNamespace(output=url), "output")
