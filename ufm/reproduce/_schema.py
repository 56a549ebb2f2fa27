"""The schema of report.json, and a check of it that needs no other package."""

from __future__ import annotations

from typing import Any

#: raised with every change of the fields or of what they mean
VERSION = 2
NAME = "ufm-reproduce"

_TEXT, _NUMBER, _COUNT, _YES = (
    {"type": "string"},
    {"type": "number"},
    {"type": "integer"},
    {"type": "boolean"},
)
_VERDICT = {"enum": ["holds", "holds with a correction", "fails", "error", "unfinished"]}


def _record(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


_INSTANCE = _record(
    what=_TEXT,
    config={"type": "object"},
    deviation={"type": ["number", "null"]},
    tolerance=_NUMBER,
    about={"enum": ["paper", "ours"]},
    details={"type": "object"},
    holds=_YES,
)
_MAYBE = {"anyOf": [_INSTANCE, {"type": "null"}]}
_TABLE = _record(title=_TEXT, header=_list(_TEXT), rows=_list(_list(_TEXT)))
_FIGURE = _record(name=_TEXT, caption=_TEXT, png=_TEXT, pdf=_TEXT)
_ROW = _record(
    id=_TEXT,
    title=_TEXT,
    section=_TEXT,
    paper=_TEXT,
    formulas=_list(_TEXT),
    measured=_TEXT,
    correction=_TEXT,
    remark=_TEXT,
    verdict=_VERDICT,
    known=_VERDICT,
    consistent=_YES,
    count=_COUNT,
    missing=_COUNT,
    worst=_MAYBE,
    counterexample=_MAYBE,
    command=_TEXT,
    seconds=_NUMBER,
    figures=_list(_FIGURE),
    tables=_list(_TABLE),
    errors=_list(_record(job=_TEXT, traceback=_TEXT)),
    instances=_list(_INSTANCE),
)
#: JSON Schema, draft 2020-12
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "report of ufm reproduce",
    **_record(
        schema={"enum": [NAME]},
        version={"enum": [VERSION]},
        level={"enum": ["quick", "full"]},
        created=_TEXT,
        command=_TEXT,
        seconds=_NUMBER,
        complete=_YES,
        consistent=_YES,
        counts={"type": "object"},
        machine={"type": "object"},
        rows=_list(_ROW),
        deep=_list(_FIGURE),
        unmeasured=_list(_record(what=_TEXT, why=_TEXT)),
    ),
}

_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool,
    "null": type(None),
}  # fmt: skip


def validate(data: Any) -> None:
    """Check a report against `SCHEMA`.

    Raises:
        ValueError: with the path to what is wrong.
    """
    _check(data, SCHEMA, "report")


def _check(data: Any, schema: dict[str, Any], at: str) -> None:
    if "anyOf" in schema:
        return _any_of(data, schema["anyOf"], at)
    if "enum" in schema and data not in schema["enum"]:
        raise ValueError(f"{at}: expected one of {schema['enum']}, got {data!r}")
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(_is(data, name) for name in names):
        raise ValueError(f"{at}: expected {' or '.join(names)}, got {type(data).__name__}")
    if isinstance(data, dict) and "properties" in schema:
        _check_fields(data, schema, at)
    if isinstance(data, list):
        for i, item in enumerate(data):
            _check(item, schema.get("items", {}), f"{at}[{i}]")
    return None


def _any_of(data: Any, options: list[dict[str, Any]], at: str) -> None:
    reasons = []
    for option in options:
        try:
            return _check(data, option, at)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def _is(data: Any, name: str) -> bool:
    if isinstance(data, bool) and name != "boolean":  # a bool is an int to Python
        return False
    return isinstance(data, _TYPES[name])


def _check_fields(data: dict[str, Any], schema: dict[str, Any], at: str) -> None:
    fields = schema["properties"]
    for name in schema["required"]:
        if name not in data:
            raise ValueError(f"{at}: expected the field {name}, got {', '.join(data)}")
    for name, value in data.items():
        if name not in fields:
            raise ValueError(f"{at}: expected no field {name}")
        _check(value, fields[name], f"{at}.{name}")
