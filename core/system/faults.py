"""The fault log: what is known of every end of an incarnation, in memory and as a file.

The last records stay in memory. The file, if there is one, has a line of JSON for each event, and
begins anew, with the full one put aside, when it has grown too large:

    {"event": "fault", "number": 7, "server": "fs", "cause": "segmentation fault (SIGSEGV)", ...}
    {"event": "decided", "number": 7, "decision": "started again at once"}
    {"event": "serving", "number": 7, "restart_s": 0.011}

So what was known survives the system, and a reader can follow it. `read_faults` puts the events of
a file together again.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from core.kernel.endings import Death
from core.kernel.requests import Request
from core.kernel.tasks import KernelTask, Message

RECORDS_LIMIT: Final = 256
"""Records in memory."""
FILE_LIMIT: Final = 1 << 20
"""Octets of the file, after which it is put aside; there are never more than two."""
MESSAGES_LIMIT: Final = 32
"""Messages in one record, and as many that were in flight."""
DETAIL_LIMIT: Final = 16_000


class FaultMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message that an incarnation had been given.

    Attributes:
        id: the request's id, the same in every delivery.
        client: who sent it, by its task's name.
        badge: of the right that it came through.
        age_s: from its delivery to the incarnation's end.
        state: "answered", "in flight", "suspect", "blamed" or "poison".
        deaths: how many deaths are counted against it.
        octets: of fields and bulk; 0 when it is not known any more.
    """

    id: int
    operation: str
    client: str
    badge: int
    age_s: float
    state: str
    deaths: int = 0
    octets: int = 0


class FaultRecord(msgspec.Struct, array_like=True):
    """One end of an incarnation.

    Attributes:
        time: of the end, in seconds since the epoch.
        orderly: it was told to end, and did: no fault.
        messages: what it was given last, oldest first, and all that it had not answered.
        decision: what the supervisor decided; empty until it has.
        restart_s: seconds from this end until the next incarnation served; None until it does.
    """

    number: int
    time: float
    server: str
    generation: int
    cause: str
    detail: str
    orderly: bool
    messages: list[FaultMessage]
    decision: str = ""
    restart_s: float | None = None


class FaultCount(msgspec.Struct, frozen=True, array_like=True):
    """One line about a server: how often its incarnations ended, and the last end."""

    server: str
    state: str
    ends: int
    last_time: float
    last_cause: str
    last_decision: str


class FaultLog:
    """Takes records and keeps the last of them.

    Args:
        path: the file; None: there is none.
        clock: returns the present, monotonic, in seconds; the same that messages are stamped with.
    """

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = path
        self._clock = clock
        self._records: collections.OrderedDict[int, FaultRecord] = collections.OrderedDict()
        self._ends: collections.Counter[str] = collections.Counter()
        self._number = 0
        self._open: dict[str, tuple[int, float]] = {}

    def fault(self, death: Death) -> int:
        """Enter an end; return its number."""
        now = self._clock()
        self._number += 1
        name = death.task.name
        record = FaultRecord(
            self._number,
            _wall(),
            name,
            death.generation,
            death.ending.cause,
            death.ending.detail[-DETAIL_LIMIT:],
            death.ending.orderly,
            _messages(death, now),
        )
        self._records[record.number] = record
        if len(self._records) > RECORDS_LIMIT:
            self._records.popitem(last=False)
        self._ends[name] += 1
        self._open[name] = (record.number, now)
        self._write({"event": "fault", **named(record)})
        return record.number

    def decided(self, number: int, decision: str) -> None:
        """Enter what the supervisor decided."""
        record = self._records.get(number)
        if record is not None:
            record.decision = decision
        self._write({"event": "decided", "number": number, "decision": decision})

    def serving(self, task: KernelTask) -> None:
        """A task serves: its last end is mended."""
        number, since = self._open.pop(task.name, (0, 0.0))
        if number:
            restart_s = round(self._clock() - since, 6)
            record = self._records.get(number)
            if record is not None:
                record.restart_s = restart_s
            self._write({"event": "serving", "number": number, "restart_s": restart_s})

    def numbers(self, server: str = "") -> list[int]:
        """Return which records there are, of one server or of all, oldest first."""
        return [record.number for record in self._records.values() if server in ("", record.server)]

    def record(self, number: int) -> FaultRecord | None:
        """Return a record, None if it is there no longer."""
        return self._records.get(number)

    def counts(self, tasks: Iterable[KernelTask]) -> list[FaultCount]:
        """Return a line for each of these tasks."""
        last = {record.server: record for record in self._records.values()}
        found: list[FaultCount] = []
        for task in tasks:
            record = last.get(task.name)
            found.append(
                FaultCount(
                    task.name,
                    task.state.value,
                    self._ends[task.name],
                    record.time if record else 0.0,
                    record.cause[:300] if record else "",
                    record.decision[:300] if record else "",
                )
            )
        return found

    def _write(self, event: dict[str, Any]) -> None:
        """Append an event to the file; a full disk must not cost the system its supervision."""
        if self.path is None:
            return
        line = msgspec.json.encode(event) + b"\n"
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_size + len(line) > FILE_LIMIT:
                    self.path.replace(aside(self.path))
            with self.path.open("ab") as file:
                file.write(line)


def _wall() -> float:
    """Return the present for people to read; nothing is decided by it."""
    return time.time()  # noqa: TID251


def aside(path: Path) -> Path:
    """Return where a full file is put."""
    return path.with_name(path.name + ".1")


def named(info: Any) -> dict[str, Any]:
    """Return a record with its fields' names, which it has not on the line."""
    found = {name: getattr(info, name) for name in info.__struct_fields__}
    if "messages" in found:
        found["messages"] = [named(message) for message in found["messages"]]
    return found


def _messages(death: Death, now: float) -> list[FaultMessage]:
    unanswered = {request.id: request for request in death.in_flight}
    recent = {message[0]: message for message in death.recent}
    found = [_message(message, unanswered, death, now) for message in recent.values()]
    older = [request for request in death.in_flight if request.id not in recent]
    for request in older[: MESSAGES_LIMIT - len(found)]:
        name = request.client.name if request.client is not None else ""
        message = (request.id, request.spec, name, request.badge, now)
        found.append(_message(message, unanswered, death, now))
    return sorted(found, key=lambda message: message.id)[-MESSAGES_LIMIT:]


def _message(
    message: Message, unanswered: dict[int, Request], death: Death, now: float
) -> FaultMessage:
    number, spec, name, badge, since = message
    request = unanswered.get(number)
    age_s = round(max(0.0, now - since), 6)
    if request is None:
        return FaultMessage(number, repr(spec), name, badge, age_s, "answered")
    state = _state(request, death)
    octets = len(request.fields) + len(request.bulk)
    return FaultMessage(number, repr(spec), name, badge, age_s, state, request.deaths, octets)


def _state(request: Request, death: Death) -> str:
    if request in death.withdrawn:
        return "poison"
    if request in death.blamed:
        return "blamed"
    return "suspect" if request.suspect else "in flight"


def read_faults(path: Path) -> list[FaultRecord]:
    """Return the records of a file and of the one before it; what cannot be read is left out."""
    found: dict[int, FaultRecord] = {}
    for part in (aside(path), path):
        with contextlib.suppress(OSError):
            for line in part.read_bytes().splitlines():
                with contextlib.suppress(msgspec.MsgspecError, KeyError, TypeError, ValueError):
                    _replay(found, msgspec.json.decode(line))
    return [found[number] for number in sorted(found)]


def _replay(found: dict[int, FaultRecord], event: dict[str, Any]) -> None:
    kind, number = event.pop("event"), event["number"]
    if kind == "fault":
        event["messages"] = [FaultMessage(**message) for message in event["messages"]]
        found[number] = FaultRecord(**event)
    elif number in found and kind == "decided":
        found[number].decision = str(event["decision"])
    elif number in found and kind == "serving":
        found[number].restart_s = float(event["restart_s"])
