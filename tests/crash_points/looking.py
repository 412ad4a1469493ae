"""Looking at all of a file system, and comparing it and its replies with the model.

What is seen is compared by path, since inode numbers are the server's own: two paths lead to one
inode if their first path in alphabetical order is the same. Files without a path are looked up by
the numbers that earlier replies gave them.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import astuple

from core.abi import BULK_LIMIT
from core.errors import Refused
from fs_server.interface import ROOT_INODE, Attributes, Entry, FileSystem
from tests.fs_server.support import ROOT

from .history import Step
from .model import Model

_INODE_PARAMETERS: Final = frozenset({"inode", "parent", "new_parent", "source"})
_MANY: Final = 1000


@dataclass
class Seen:
    """All of a file system. Files that are open and have no path are under `orphan NUMBER`."""

    metadata: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)
    contents: dict[bytes, bytes] = field(default_factory=dict)
    """Octets of files and symbolic links, by first path."""

    def difference(self, wanted: Seen) -> str:
        """Say in short what is not as it should be; empty if all is."""
        found = differing(self.metadata, wanted.metadata)
        for path in sorted(self.contents.keys() | wanted.contents.keys()):
            ours, theirs = self.contents.get(path, b""), wanted.contents.get(path, b"")
            if ours != theirs:
                pairs = zip(ours, theirs, strict=False)
                at = next((n for n, (one, two) in enumerate(pairs) if one != two), -1)
                found.append(f"contents of {path!r} differ from {at} of {len(ours)} on")
        return "; ".join(found[:4])


def differing(ours: dict[bytes, Any], theirs: dict[bytes, Any]) -> list[str]:
    """Return what differs between two tables of metadata."""
    return [
        f"{path!r} is {ours.get(path)}, should be {theirs.get(path)}"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]


def _first_paths(found: Iterable[tuple[bytes, int]]) -> dict[int, bytes]:
    """Return the first path of each inode."""
    first: dict[int, bytes] = {}
    for path, inode in sorted(found):
        first.setdefault(inode, path)
    return first


async def look(fs: Any, orphans: dict[bytes, int]) -> Seen:
    """Look at everything.

    All attributes are taken before anything is read whose time of reading would move.

    Args:
        fs: has the operations of `FileSystem`.
        orphans: inode numbers of files that may live without a path, by label.
    """
    found, listings = await _walk(fs)
    for label, inode in orphans.items():
        try:
            found[label] = await fs.getattr(inode)
        except Refused:
            continue  # it is gone
        if found[label].links:
            del found[label]
    first = _first_paths((path, attributes.inode) for path, attributes in found.items())
    seen = Seen()
    for path, attributes in found.items():
        names = await fs.listxattr(ROOT, attributes.inode)
        xattrs = tuple(
            [
                (name, bytes(await fs.getxattr(ROOT, attributes.inode, name, 65_536)))
                for name in names
            ]
        )
        own = first[attributes.inode]
        seen.metadata[path] = (own, *astuple(attributes)[1:], xattrs, listings.get(path))
        if path == own:
            await _read(fs, seen, path, attributes)
    return seen


async def _walk(fs: Any) -> tuple[dict[bytes, Attributes], dict[bytes, tuple[Any, ...]]]:
    """Return attributes by path, and the listings of directories."""
    found: dict[bytes, Attributes] = {b"/": await fs.getattr(ROOT_INODE)}
    listings: dict[bytes, tuple[Any, ...]] = {}
    queue = [b"/"]
    while queue:
        path = queue.pop()
        entries: list[Entry] = await fs.readdir(found[path].inode, 0, _MANY)
        listings[path] = tuple(entry.name for entry in entries)
        for entry in entries[2:]:
            child = path + entry.name
            if stat.S_ISDIR(entry.attributes.mode):
                child += b"/"
                queue.append(child)
            found[child] = entry.attributes
    return found, listings


async def _read(fs: Any, seen: Seen, path: bytes, attributes: Attributes) -> None:
    if stat.S_ISREG(attributes.mode):
        parts = [
            bytes(await fs.read(attributes.inode, offset, BULK_LIMIT))
            for offset in range(0, attributes.size, BULK_LIMIT)
        ]
        seen.contents[path] = b"".join(parts)
    elif stat.S_ISLNK(attributes.mode):
        seen.contents[path] = await fs.readlink(attributes.inode)


def paths_of(model: Model) -> dict[bytes, int]:
    """Return the model's inodes by path, those without one by their label."""
    found = {b"/": ROOT_INODE}
    queue = [b"/"]
    while queue:
        path = queue.pop()
        for name, number in model.nodes[found[path]].entries.items():
            child = path + name
            if model.nodes[number].is_directory:
                child += b"/"
                queue.append(child)
            found[child] = number
    for number in model.orphans():
        found[orphan_label(number)] = number
    return found


def orphan_label(number: int) -> bytes:
    """Return under which label a file without a path is seen."""
    return b"orphan %d" % number


def expected(model: Model) -> Seen:
    """Return what `look` should see."""
    paths = paths_of(model)
    first = _first_paths(paths.items())
    seen = Seen()
    for path, number in paths.items():
        node = model.nodes[number]
        listing = (b".", b"..", *node.entries) if node.is_directory else None
        xattrs = tuple(sorted(node.xattrs.items()))
        own = first[number]
        seen.metadata[path] = (own, *astuple(node.attributes())[1:], xattrs, listing)
        if path == own and (node.is_file or stat.S_ISLNK(node.mode)):
            seen.contents[path] = node.data if node.is_file else node.target
    return seen


def looked_at(model: Model) -> None:
    """Let the model's times of reading move as `look` moves a file system's."""
    for number, node in model.nodes.items():
        if node.is_directory:
            model.readdir(number, 0, _MANY)
        elif node.is_file and node.size:
            model.read(number, 0, 1)


class Binding:
    """Which inode number of the server's stands for which of the model's."""

    def __init__(self) -> None:
        self.real = {ROOT_INODE: ROOT_INODE}

    def copy(self) -> Binding:
        """Return the same, to be changed apart from this one."""
        twin = Binding()
        twin.real = dict(self.real)
        return twin

    def arguments(self, step: Step) -> tuple[Any, ...]:
        """Return a step's arguments as the server wants them."""
        parameters = FileSystem.named(step.operation).parameters
        return tuple(
            self.real.get(value, value) if parameter.name in _INODE_PARAMETERS else value
            for parameter, value in zip(parameters, step.arguments, strict=True)
        )

    def orphans(self) -> dict[bytes, int]:
        """Return all known numbers by the label that they would have without a path."""
        return {orphan_label(number): inode for number, inode in self.real.items()}

    def same(self, wanted: Any, reply: Any) -> bool:
        """Compare a reply with the model's; a new inode's number is learned."""
        if isinstance(wanted, Attributes):
            if not isinstance(reply, Attributes):
                return False
            known = self.real.setdefault(wanted.inode, reply.inode)
            return known == reply.inode and astuple(reply)[1:] == astuple(wanted)[1:]
        if isinstance(wanted, list) and wanted and isinstance(wanted[0], tuple):
            return len(wanted) == len(reply) and all(
                entry.name == name and self.same(attributes, entry.attributes)
                for (name, attributes), entry in zip(wanted, reply, strict=True)
            )
        if isinstance(wanted, bytes):
            return not isinstance(reply, str) and bytes(reply) == wanted
        return bool(reply == wanted)


class Immediate:
    """Operations of plain functions as awaitables that do not wait."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        function = getattr(self._target, name)

        async def call(*arguments: Any) -> Any:
            return function(*arguments)

        return call
