"""The JSON documents that stages leave for each other: reading them, and what they may hold."""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shards.errors import UserError


def parse_json_object(
    content: bytes | str, name: str, remedy: str, required: Mapping[str, type] = MappingProxyType({})
) -> dict[str, Any]:
    """The object that a document holds. Raises UserError, with the document's `name`, if it holds none.

    So too if it lacks one of the `required` keys, or has it with a value of another type than theirs.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON: {error}", remedy) from error
    if not isinstance(document, dict):
        raise UserError(f"{name}: holds no JSON object", remedy)
    for key, kind in required.items():
        if not isinstance(document.get(key), kind):
            raise UserError(f"{name}: {key}: missing, or no {kind.__name__}", remedy)
    return document


def without_nan(value: Any) -> Any:
    """The value with null for what is no finite number, however deep: strict readers of JSON know no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
