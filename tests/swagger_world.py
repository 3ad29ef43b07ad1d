"""The Engine API's own description (swagger 1.51), and how an answer differs from it.

Swagger 2.0 knows no null, where Go writes one for an empty list, map or pointer: nulls are taken out before validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SWAGGER = Path("/work/shared/specs/docker-engine-api-1.51.yaml")
VERSION = "/v1.51"


def description() -> Any:
    """The description, parsed."""
    yaml = pytest.importorskip("yaml")
    return yaml.load(SWAGGER.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def faults(swagger: Any, schema: Any, document: Any) -> Iterator[str]:
    """Where ``document`` is not as ``schema`` says."""
    jsonschema = pytest.importorskip("jsonschema")
    resolver = jsonschema.RefResolver("", swagger)
    for error in jsonschema.Draft4Validator(schema, resolver=resolver).iter_errors(without_nulls(document)):
        place = "".join(f".{part}" for part in error.absolute_path)
        missing = re.match(r"'(\w+)' is a required property", error.message)
        if missing is None or _at(document, error.absolute_path).get(missing[1], ...) is not None:  # null is there, if empty
            yield f"{place}: {error.message[:200]}"


def _at(document: Any, path: Any) -> Any:
    for part in path:
        document = document[part]
    return document
