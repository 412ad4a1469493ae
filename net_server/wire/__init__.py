"""Octets to values and back, one module per protocol; no I/O, no clock, no state.

Every `parse` takes octets from a stranger: it returns a value whose fields can be relied on, or
raises `ParseError` and nothing else. Every `emit` takes values from this project and returns octets
that are ready to be sent. Addresses of IPv4 are ints in host order, link addresses are six bytes,
ports and sizes are ints; a size is in octets.
"""

from __future__ import annotations

from typing import TypeAlias

Octets: TypeAlias = bytes | bytearray | memoryview
"""Anything that the codecs read from. A `memoryview` must be one-dimensional and of octets."""


class ParseError(Exception):
    """The octets are not a valid unit of the protocol; the sender is to blame. Drop and count."""
