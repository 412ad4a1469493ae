"""Power cuts at every write: what was synced is there, and the rest is a state that there was.

At every event of a history the power fails. What a disk may hold then is computed by `images.Disk`:
of what was done since the last sync of a file, each thing is lost, there, or torn. The volume is
opened in another boot, with nothing that a kernel kept. What is promised, and checked:

1. `fsck` finds nothing, before anything is mended or opened for writing.
2. *Metadata* (names, listings, attributes, times, sizes, blocks, extended attributes, targets of
   symbolic links) are all of them those of one state of the model: that after the last step that
   made things durable, or a later one, up to the step under way. One state for the whole volume: no
   operation is there without those before it. Files that only an open kept alive are gone.
3. *Octets* of a file that has been in every state since that one: each is the octet that stood at
   its place in one of those states, or 0 if in one of them there was a hole or nothing. So what was
   synced and not written to since is exactly there.
4. Octets behind what was the end of the file in one of those states may also be older octets of the
   same file: a block keeps what a truncation cut off until the file grows over it, and the zeros
   written then may be lost while the new size is not. These disks are counted (`older`).
   Nothing is ever another file's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from fs_server.check import check_volume
from tests.fs_server.images import Disk, Images, store

from .history import STEP_NS
from .looking import Seen, differing, expected, paths_of
from .model import BLOCK, Model
from .recorded import Recorded
from .served import BOOT, Machine, life
from .table import Table


class PowerCuts:
    """The enumeration over a recorded history.

    Args:
        variants: disks computed for each event, at most; more only where all fit.
        obeys: whether syncs do anything; without them this shows what they are for.
    """

    def __init__(
        self,
        recorded: Recorded,
        table: Table,
        directory: Path,
        *,
        variants: int = 4,
        obeys: bool = True,
    ) -> None:
        self._recorded = recorded
        self._table = table
        self._directory = directory
        self._variants = variants
        self._disk = Disk(recorded.before, obeys=obeys)
        self._states = [state.without_opens() for state in recorded.history.states]
        self._expected = [expected(state) for state in self._states]

    def run(self, steps: Iterable[int]) -> None:
        """Cut the power before each event of these steps, and after the last."""
        recorded, wanted = self._recorded, set(steps)
        for event in recorded.events[: recorded.starts[0]]:  # those of the opening
            self._disk.apply(event)
        for index in range(len(recorded.history.steps)):
            start, end = recorded.starts[index], recorded.starts[index + 1]
            for number in range(start, end):
                self._disk.apply(recorded.events[number])
                if index in wanted:
                    self._cut(index, number, last=number == end - 1)

    def _cut(self, index: int, number: int, *, last: bool) -> None:
        history = self._recorded.history
        step = history.steps[index]
        chance = random.Random(f"power/{history.seed}/{number}")
        oldest = history.synced(index + 1 if last else index)
        for variant, images in enumerate(self._disk.power_cuts(chance, self._variants)):
            self._table.row(step.operation).cuts += 1
            found = self._verdict(images, oldest, index + 1)
            if found == "older":
                self._table.row(step.operation).older += 1
            elif found:
                event = self._recorded.events[number]
                where = f"step {index}, {step}, {event[0]} of {event[1]}, disk {variant}"
                self._table.lose(step.operation, f"{where}: {found}")

    def _verdict(self, images: Images, oldest: int, newest: int) -> str:
        """Return what is wrong with the volume on such a disk; "older" is not wrong."""
        store(self._directory, images)
        findings = check_volume(self._directory)
        if findings:
            return f"fsck: {findings[0]}"
        machine = Machine(self._directory, BOOT + 1)
        try:
            with life(machine, self._recorded.history.now(newest) + STEP_NS // 2) as server:
                seen = server.look(self._recorded.bindings[-1])
        finally:
            machine.forget()
        return self._compare(seen, oldest, newest)

    def _compare(self, seen: Seen, oldest: int, newest: int) -> str:
        fitting = [n for n in range(oldest, newest + 1) if self._fits(seen, n)]
        if not fitting:
            nearest = differing(seen.metadata, self._expected[newest].metadata)
            return f"metadata of no state from {oldest} to {newest}: {'; '.join(nearest[:3])}"
        verdicts = [self._octets(seen, state, oldest, newest) for state in fitting]
        return min(verdicts, key=len)

    def _fits(self, seen: Seen, number: int) -> bool:
        wanted = self._expected[number]
        return seen.metadata == wanted.metadata and seen.contents.keys() == wanted.contents.keys()

    def _octets(self, seen: Seen, state: int, oldest: int, newest: int) -> str:
        """Compare all octets, given which state the metadata are of."""
        paths = paths_of(self._states[state])
        wanted = self._expected[state].contents
        result = ""
        for path, octets in seen.contents.items():
            if octets != wanted[path]:
                states = self._recorded.history.states  # a file that was only open counts, too
                since, earlier = states[oldest : newest + 1], states[:oldest]
                found = _file_verdict(octets, paths[path], since, earlier)
                if found not in {"", "older"}:
                    return f"contents of {path!r}: {found}"
                result = result or found
        return result


def _file_verdict(octets: bytes, number: int, since: list[Model], earlier: list[Model]) -> str:
    """Say what is wrong with the octets of one file; "older" is not wrong."""
    nodes = [model.nodes[number] for model in since if number in model.nodes]
    holes = frozenset[int]().union(
        *(frozenset(range(len(octets) // BLOCK + 1)) - node.blocks for node in nodes)
    )
    if len(nodes) < len(since) and number not in since[0].nodes:
        holes = frozenset(range(len(octets) // BLOCK + 1))
    versions = [node.data for node in nodes]
    shortest = min(map(len, versions))
    past = [model.nodes[number].data for model in earlier if number in model.nodes]
    older = False
    for start in range(0, len(octets), 512):
        part = octets[start : start + 512]
        if any(version[start : start + 512] == part for version in versions):
            continue
        for at, octet in enumerate(part, start):
            if any(at < len(version) and version[at] == octet for version in versions):
                continue
            if not octet and (at // BLOCK in holes or at >= shortest):
                continue
            if at >= shortest and any(at < len(data) and data[at] == octet for data in past):
                older = True
                continue
            return f"octet {at} of {len(octets)} is {octet:#x}, which it never was"
    return "older" if older else ""
