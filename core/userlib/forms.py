"""The form of an interface: what two versions of its class must agree upon to work together.

Clients hold rights by operation number and encode fields by place, so a server with changed code
fits the running system only if the operations that are known already have kept their numbers,
parameters and replies. A form is plain text and lists, so it can be compared with one that another
process has made of the same class in another version.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import msgspec
import msgspec.inspect

from .interface import Interface, Operation

_OBJECTS: Final = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.TypedDictType,
)
_STRUCT_TRAITS: Final = ("tag_field", "tag", "array_like", "forbid_unknown_fields")


class OperationForm(msgspec.Struct, frozen=True, array_like=True):
    """What an operation is to those who call it.

    Attributes:
        request, reply: as they would be written in Python, with every type spelled out.
        traits: whether its handler may wait, and the like.
    """

    name: str
    request: str
    reply: str
    traits: list[str]


def forms_of(interface: type[Interface]) -> list[OperationForm]:
    """Return the forms of an interface's operations, by number."""
    return [_form(spec) for spec in interface.OPERATIONS]


def _form(spec: Operation) -> OperationForm:
    types = [*map(type_text, spec.field_types), *["bulk"] * spec.bulk]
    types += ["right"] * spec.rights + ["descriptor"] * spec.descriptors
    names = [parameter.name for parameter in spec.parameters]
    request = ", ".join(f"{name}: {text}" for name, text in zip(names, types, strict=True))
    reply = [type_text(spec.reply_type)] if spec.reply_has_field else []
    traits = [trait for trait in ("waits", "idempotent") if getattr(spec, trait)]
    if spec.room is not None:
        traits.append(f"room={spec.room}")
    return OperationForm(spec.name, request, ", ".join([*reply, *spec.reply_carried]), traits)


def type_text(annotation: Any) -> str:
    """Return a type as text, with the fields of every structure in it."""
    return _text(msgspec.inspect.type_info(annotation), frozenset())


def _text(node: Any, above: frozenset[type]) -> str:
    if isinstance(node, _OBJECTS):
        return _object_text(node, above)
    if isinstance(node, msgspec.inspect.EnumType):
        members = ", ".join(f"{member.name}={member.value!r}" for member in node.cls)
        return f"{node.cls.__qualname__}({members})"
    if not isinstance(node, msgspec.inspect.Type):
        if isinstance(node, tuple):
            return " | ".join(sorted(_text(each, above) for each in node))
        return node.__qualname__ if isinstance(node, type) else repr(node)
    name = type(node).__name__.removesuffix("Type").lower()
    if isinstance(node, msgspec.inspect.TupleType):
        return f"{name}({', '.join(_text(each, above) for each in node.item_types)})"
    values = [getattr(node, field) for field in node.__struct_fields__]
    inner = ", ".join(_text(value, above) for value in values if value is not None)
    return f"{name}({inner})" if inner else name


def _object_text(node: Any, above: frozenset[type]) -> str:
    name: str = node.cls.__qualname__
    if node.cls in above:
        return name  # it contains itself
    above |= {node.cls}
    parts = [_field_text(field, above) for field in node.fields]
    for trait in _STRUCT_TRAITS:
        value = getattr(node, trait, None)
        if value:
            parts.append(trait if value is True else f"{trait}={value!r}")
    return f"{name}({', '.join(parts)})"


def _field_text(field: Any, above: frozenset[type]) -> str:
    text = f"{field.name}: {_text(field.type, above)}"
    if field.encode_name != field.name:
        text += f" as {field.encode_name}"
    return text if field.required else text + " ="


def constants_of(module: ModuleType) -> dict[str, str]:
    """Return the constants and enumerations that a module defines, as text."""
    found: dict[str, str] = {}
    for name, value in vars(module).items():
        if isinstance(value, int) and name.isupper():
            found[name] = str(int(value))
        elif isinstance(value, struct.Struct):
            found[name] = value.format
        elif isinstance(value, type) and issubclass(value, enum.Enum) and list(value):
            found[name] = type_text(value)
    return found


def interfaces() -> dict[str, type[Interface]]:
    """Return all interfaces that are loaded here, by `module:Class`."""
    found: dict[str, type[Interface]] = {}
    todo = Interface.__subclasses__()
    while todo:
        cls = todo.pop()
        if "OPERATIONS" in vars(cls):  # which a stub only inherits
            todo += cls.__subclasses__()
            found[f"{cls.__module__}:{cls.__qualname__}"] = cls
    return found


def difference(
    known: Sequence[OperationForm], new: Sequence[OperationForm], *, may_grow: bool
) -> str:
    """Say in what a new version of an interface does not fit the known one; "" if it fits.

    Args:
        may_grow: operations that follow all known ones do no harm.
    """
    for index, old in enumerate(known):
        if index >= len(new):
            return f"operation {old.name} is gone"
        now = new[index]
        if now.name != old.name:
            return f"operation {index} was {old.name} and is {now.name}"
        if now.request != old.request:
            return f"operation {old.name} took ({old.request}) and takes ({now.request})"
        if now.reply != old.reply:
            return f"operation {old.name} returned {old.reply} and returns {now.reply}"
        if now.traits != old.traits:
            before, after = (", ".join(each.traits) or "no word" for each in (old, now))
            return f"operation {old.name} was declared with {before} and is with {after}"
    if len(new) > len(known) and not may_grow:
        return f"operation {new[len(known)].name} is new"
    return ""
