"""Deaths at every store write: the volume is as before the operation or as after it.

A process that dies leaves all that it had written. So for every event of every step, and for the
points right before and right after it, the volume is put back to how it was and opened by a new
incarnation, together with what the kernel kept. Large writes are also cut in the middle, at a page,
where a kill can end them. Then

1. `fsck` finds nothing, and what is seen is the model before the step or after it. One thing is
   counted apart (`torn`): a file's octets that the operation overwrites in place, some of them new
   while all metadata are still those before. Clients cannot see that as long as the kernel lives,
   because it delivers the request again before any other; who sees it is the next boot, if kernel
   and server end together, and then the operation was never acknowledged. All else is `between`.
2. On the same files, the request is delivered again: reply, state, and counts of opens are exactly
   those after the step. That is what clients see. And the server knows then which blocks are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fs_server.check import check_volume
from fs_server.interface import FileSystem
from fs_server.layout import BLOCK_SIZE
from tests.fs_server.images import Images, apply, copied, store
from tests.fs_server.support import assert_free_blocks_known

from .history import OWN_WORK, STEP_NS
from .looking import Seen, expected
from .model import perform
from .recorded import Memory, Recorded
from .served import Incarnation, Machine, life
from .table import Table

Point = tuple[str, Images, Memory]


class WritePoints:
    """The enumeration over a recorded history.

    Args:
        replay: whether requests that are delivered again are known as such: without it, this shows
            what the recorded answers are for.
    """

    def __init__(
        self, recorded: Recorded, table: Table, directory: Path, *, replay: bool = True
    ) -> None:
        self._recorded = recorded
        self._table = table
        self._directory = directory
        self._replay = replay

    def run(self, steps: list[int]) -> None:
        """Enumerate the points of these steps, which ascend."""
        images = copied(self._recorded.before)
        done = 0
        for index in steps:
            start = self._recorded.starts[index]
            for event in self._recorded.events[done:start]:
                apply(images, event)
            done = start
            self._step(index, copied(images))

    def _step(self, index: int, images: Images) -> None:
        history = self._recorded.history
        kind = history.steps[index].operation
        before, after = (expected(history.states[n]) for n in (index, index + 1))
        for label, files, memory in self._points(index, images):
            where = f"step {index}, {history.steps[index]}, {label}"
            self._table.row(kind).points += 1
            self._reopen(index, (label, files, memory), (before, after), where)
            self._repeat(index, (label, files, memory), after, where)

    def _points(self, index: int, images: Images) -> Iterator[Point]:
        """Yield what a death at each point of a step leaves; changes `images`."""
        recorded = self._recorded
        start, end = recorded.starts[index], recorded.starts[index + 1]
        memory: Memory | None = None
        for number in range(start, end):
            event = recorded.events[number]
            what = f"event {number - start} of {end - start} ({event[0]} of {event[1]})"
            if memory is not None and memory != recorded.memory[number]:
                yield f"after the event before {what}", images, memory
            memory = recorded.memory[number]
            yield f"before {what}", images, memory
            if event[0] == "write" and len(event[3]) >= 2 * BLOCK_SIZE:
                torn = copied(images)
                page = len(event[3]) // 2 // BLOCK_SIZE * BLOCK_SIZE
                apply(torn, (*event[:3], event[3][:page]))
                yield f"within {what}", torn, memory
            apply(images, event)
        if memory is not None and memory != recorded.memories[index]:
            yield "after the last event", images, memory
        yield "at the end", images, recorded.memories[index]

    def _machine(self, point: Point) -> Machine:
        _, files, memory = point
        store(self._directory, files)
        machine = Machine(self._directory)
        machine.remember(memory)
        machine.generation = 1
        return machine

    def _reopen(self, index: int, point: Point, states: tuple[Seen, Seen], where: str) -> None:
        recorded, table = self._recorded, self._table
        kind = recorded.history.steps[index].operation
        machine = self._machine(point)
        for finding in check_volume(self._directory):
            table.lose(kind, f"{where}: fsck: {finding}")
        with life(machine, recorded.history.now(index) + STEP_NS // 2) as server:
            seen = server.look(recorded.bindings[min(index + 1, len(recorded.bindings) - 1)])
        machine.forget()
        row = table.row(kind)
        if seen == states[0]:
            row.before += 1
        elif seen == states[1]:
            row.after += 1
        elif is_torn(seen, *states):
            row.torn += 1
        else:
            row.between += 1
            differences = " | ".join(seen.difference(state) for state in states)
            table.lose(kind, f"{where}: between: {differences}")

    def _again(self, index: int) -> Any:
        """Return the reply to a second request, for operations that may be repeated: reads."""
        history = self._recorded.history
        step = history.steps[index]
        if not FileSystem.named(step.operation).idempotent:
            return history.replies[index]
        return perform(history.states[index + 1].twin(), step.operation, step.arguments)

    def _repeat(self, index: int, point: Point, after: Seen, where: str) -> None:
        recorded = self._recorded
        history = recorded.history
        step, wanted = history.steps[index], history.replies[index]
        machine = self._machine(point)
        binding = recorded.bindings[index].copy()
        problems: list[str] = []
        with life(machine, history.now(index)) as server:
            if step.operation not in OWN_WORK:
                reply = server.perform(step, index + 1, binding, redelivered=self._replay)
                if not (binding.same(wanted, reply) or binding.same(self._again(index), reply)):
                    problems.append(f"replied {reply}, should be {wanted}")
            opens = {n: node.opens for n, node in history.states[index + 1].nodes.items()}
            held = server.opens(binding)
            if held != {number: count for number, count in opens.items() if count}:
                problems.append(f"opens are {held}")
            server.now += STEP_NS // 2
            problems.append(server.look(binding).difference(after))
            problems.append(_blocks_problem(server))
        machine.forget()
        problems = [problem for problem in problems if problem]
        if problems:
            self._table.lose(step.operation, f"{where}: delivered again: {'; '.join(problems)}")
        else:
            self._table.row(step.operation).replays += 1


def _blocks_problem(server: Incarnation) -> str:
    """Return what is wrong with the table of free blocks; "" if nothing is."""
    try:
        assert_free_blocks_known(server.volume)
    except AssertionError as error:
        return str(error)
    return ""


def is_torn(seen: Seen, before: Seen, after: Seen) -> bool:
    """Tell whether all is as before, but for octets that are the new ones already."""
    if seen.metadata != before.metadata or seen.contents.keys() != before.contents.keys():
        return False
    for path, octets in seen.contents.items():
        old, new = before.contents[path], after.contents.get(path, b"")
        if octets != old and any(
            octet not in {old[at], new[at] if at < len(new) else old[at]}
            for at, octet in enumerate(octets)
        ):
            return False
    return True
