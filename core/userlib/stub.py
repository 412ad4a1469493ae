"""Client stubs, derived from interfaces.

A stub is a subclass of the interface, made once, whose methods make the call. The source of each
method is generated from the operation's signature, as dataclasses does for `__init__`, because this
is the hottest path of the system: when the server runs in the same process and need not wait, the
stub checks the right and the types of the arguments and calls the handler directly, on the caller's
turn (*hand-off*). Everything else goes through `Task.call`.

What makes hand-off possible is `Right.port.direct`, which the kernel sets while the server of a
port is co-located, running and idle, and takes away otherwise. A task in an address space of its
own never sees one.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from core.errors import AtollError, BadMessageError

from .interface import Bulk, Interface, Operation

InterfaceT = TypeVar("InterfaceT", bound=Interface)

_PLAIN: typing.Final = (int, str, bytes, bool, float)

_METHOD = """\
async def {name}(_self{parameters}):
    {check}
    _right = _self._right
    _direct = _right.port.direct
    if _direct is not None and _right.mask >> {index} & 1:
        _handler = _direct.handlers[{index}]
        if _handler is not None:
            _request = _direct.request
            _request.id = _direct.next_id()
            _request.badge = _right.badge
            _request.port = 1
            _request.redelivered = False
            try:
                return _handler({arguments})
            except _AtollError:
                raise
            except Exception as _fault:
                _tuple = ({arguments_tuple})
                return await _direct.fault(_right, _spec, _tuple, _request.id, _fault)
    return await _self._task.call(_right, _spec, ({arguments_tuple}))
"""


def _condition(name: str, annotation: Any, scope: dict[str, Any]) -> str:
    """Return a Python expression that is true when the argument has the declared type."""
    if annotation == Bulk:
        return f"isinstance({name}, (bytes, bytearray, memoryview))"
    if annotation is float:
        return f"type({name}) in (float, int)"
    if annotation in _PLAIN:
        return f"type({name}) is {annotation.__name__}"
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        scope[f"_type_{name}"] = annotation
        return f"type({name}) is _type_{name}"
    scope[f"_fits_{name}"] = _structural_check(annotation)
    return f"_fits_{name}({name})"


def _structural_check(annotation: Any) -> Callable[[Any], bool]:
    """Return a check for containers and unions: as strict as the codec, and as slow."""

    def fits(value: Any) -> bool:
        try:
            msgspec.convert(value, annotation, strict=True)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False
        return True

    return fits


def _method(spec: Operation) -> Callable[..., Any]:
    def refuse(**values: Any) -> None:
        shown = ", ".join(f"{name}: {type(value).__name__}" for name, value in values.items())
        raise BadMessageError(f"{spec}: wrong types of arguments ({shown})")

    hints = typing.get_type_hints(spec.function)
    scope: dict[str, Any] = {"_spec": spec, "_AtollError": AtollError, "_refuse": refuse}
    names: list[str] = []
    parameters: list[str] = []
    conditions: list[str] = []
    for parameter in spec.parameters:
        names.append(parameter.name)
        default = ""
        if parameter.default is not inspect.Parameter.empty:
            scope[f"_default_{parameter.name}"] = parameter.default
            default = f"=_default_{parameter.name}"
        parameters.append(f", {parameter.name}{default}")
        conditions.append(_condition(parameter.name, hints[parameter.name], scope))
    shown = ", ".join(f"{name}={name}" for name in names)
    check = f"if not ({' and '.join(conditions)}): _refuse({shown})" if conditions else "pass"
    source = _METHOD.format(
        name=spec.name,
        parameters="".join(parameters),
        index=spec.index,
        check=check,
        arguments=", ".join(names),
        arguments_tuple="".join(f"{name}, " for name in names),
    )
    exec(source, scope)  # noqa: S102 - the source is made from our own declarations, nothing else
    method = scope[spec.name]
    method.__doc__ = spec.function.__doc__
    method.__qualname__ = f"{spec.interface}.{spec.name}"
    return typing.cast("Callable[..., Any]", method)


class _Hurried:
    """Stands for the task in a stub whose calls have a deadline."""

    __slots__ = ("_deadline_s", "_task")

    def __init__(self, task: Any, deadline_s: float) -> None:
        self._task = task
        self._deadline_s = deadline_s

    async def call(self, right: Any, spec: Operation, arguments: tuple[Any, ...]) -> Any:
        return await self._task.call(right, spec, arguments, self._deadline_s)


def with_deadline(stub: InterfaceT, deadline_s: float) -> InterfaceT:
    """Return a stub for the same right whose every call fails with DeadlineError after a time.

    The server is told to abort. A hand-off, which runs on the caller's own turn, does not wait and
    so never meets its deadline.

    Args:
        deadline_s: seconds that each call may take.
    """
    hurried: Any = stub
    task = hurried._task  # noqa: SLF001 - this is the stub's own module
    if isinstance(task, _Hurried):
        task = task._task  # noqa: SLF001
    return stub_class(type(stub).__bases__[0])(_Hurried(task, deadline_s), hurried.right)


@functools.cache
def _derive(interface: type[Interface]) -> type[Interface]:
    def fill(namespace: dict[str, Any]) -> None:
        def initialise(self: Any, task: Any, right: Any) -> None:
            self._task = task
            self._right = right

        namespace["__slots__"] = ("_right", "_task")
        namespace["__init__"] = initialise
        namespace["__module__"] = interface.__module__
        namespace["right"] = property(lambda self: self._right, doc="The right behind the stub.")
        for spec in interface.OPERATIONS:
            namespace[spec.name] = _method(spec)

    return types.new_class(f"{interface.__name__}Client", (interface,), {"stub": True}, fill)


def derive_all() -> None:
    """Derive the stubs of every interface that is loaded, so that nobody waits for it later.

    A stub costs milliseconds. The process that all tasks are forked from pays them once.
    """
    found: list[type[Interface]] = Interface.__subclasses__()
    while found:
        interface = found.pop()
        if "OPERATIONS" in vars(interface):  # which a stub only inherits
            found += interface.__subclasses__()
            stub_class(interface)


def stub_class(interface: type[InterfaceT]) -> Callable[[Any, Any], InterfaceT]:
    """Return the class of `interface`'s client stubs: `(task, right) -> stub`."""
    return typing.cast("Callable[[Any, Any], InterfaceT]", _derive(interface))  # type: ignore[arg-type]  # a class is hashable
