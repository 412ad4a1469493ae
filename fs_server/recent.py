"""A bounded mapping that keeps what was used recently, at the price of a plain dict.

Theory of operation. There are two dicts. A hit in `young` costs one dict look-up and changes
nothing. A miss there looks in `old` and moves what it finds to `young`. When `young` is full it
becomes `old`, and what was in `old` is dropped: it was not used while `limit` other things were.

Invariant: whatever was put or found stays for at least `limit` further insertions. So an operation
that touches far fewer things than `limit` never sees one of them come back as a second object.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """A mapping of at most twice `limit` recently used things. Values are never None."""

    __slots__ = ("_limit", "_old", "young")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.young: dict[Key, Value] = {}
        """What was used last; for callers in a hurry, who fall back to `get`."""
        self._old: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        """Return what is kept under `key`, which counts as a use; None when nothing is."""
        value = self.young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Keep `value`."""
        if len(self.young) >= self._limit:
            self._old = self.young
            self.young = {}
        self.young[key] = value

    def drop(self, key: Key) -> None:
        """Forget one thing, if it is there."""
        self.young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.young.clear()
        self._old.clear()
