"""What a task says of its own fault, as evidence of how its incarnation ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from core.userlib.line import Packet

from .attempts import printable
from .endings import Evidence
from .tasks import State

if TYPE_CHECKING:
    from .tasks import KernelTask

_LINE_LIMIT: Final = 1000
_decode_text: Final = msgspec.msgpack.Decoder(str).decode


def note_fault(task: KernelTask, evidence: Evidence, packet: Packet) -> None:
    """Note a report of a fault; nothing in it is believed but that there was one."""
    try:
        lines = _decode_text(packet.fields).split("\n")
        evidence.fault = "\n".join(printable(line, _LINE_LIMIT) for line in lines) or "unknown"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        evidence.fault = "a fault report that cannot be read"
    port = task.main_port
    request = port.in_flight.get(packet.request) if port is not None else None
    if request is not None:
        evidence.guilty, evidence.where = request.id, f"in {request.spec}"
    elif task.state is State.STARTING:
        evidence.where = "while starting"
