"""Messages as `rosbags` holds them: made by name, and serialized."""

from __future__ import annotations

from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from nav_common.bag_writer import typestore


def make(type_name: str, **fields: Any) -> Any:
    """A message as `rosbags` holds it, fields not given at their zero."""
    return _make(typestore(), type_name, fields)


def _make(store: Typestore, type_name: str, given: dict[str, Any]) -> Any:
    fields = dict(store.fielddefs[type_name][1])
    if unknown := set(given) - set(fields):
        raise TypeError(f"{type_name} has no field {', '.join(sorted(unknown))}")

    def zero(description: Any) -> Any:
        kind, detail = description
        if kind == Nodetype.BASE:
            name = detail[0]
            return "" if name == "string" else False if name == "bool" else 0.0 if "float" in name else 0
        if kind == Nodetype.NAME:
            return _make(store, detail, {})
        element, length = detail
        count = length if kind == Nodetype.ARRAY else 0
        if element[0] == Nodetype.BASE and element[1][0] != "string":
            return np.zeros(count, dtype="uint8" if element[1][0] in ("octet", "byte") else element[1][0])
        return [zero(element) for _ in range(count)]

    values = {name: given[name] if name in given else zero(field) for name, field in fields.items()}
    return store.types[type_name](**values)


def serialize(message: Any) -> bytes:
    """CDR of a message made by `make` or read from a bag."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))
