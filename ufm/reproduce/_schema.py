"""The schema of report.json, which report.schema.json holds, and the check of a report against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

#: JSON Schema, draft 2020-12. Its version is raised with every change of the fields or of their meaning.
SCHEMA: dict[str, Any] = json.loads(
    Path(__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)
NAME: str = SCHEMA["properties"]["schema"]["const"]
VERSION: int = SCHEMA["properties"]["version"]["const"]

_VALIDATOR = Draft202012Validator(SCHEMA)


def validate(data: object) -> None:
    """Check a report against `SCHEMA`.

    Raises:
        ValueError: the report does not match; the message has the path to the first mismatch.
    """
    error = best_match(_VALIDATOR.iter_errors(data))
    if error is not None:
        raise ValueError(f"{error.json_path.replace('$', 'report', 1)}: {error.message}")
