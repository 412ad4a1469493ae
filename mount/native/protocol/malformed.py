"""The one error of the codec."""

from __future__ import annotations


class MalformedError(ValueError):
    """Octets that are no message of the protocol: the other end, or the transport, is at fault.

    Args:
        reason: what is wrong with them.
        opcode: what the request said it is; 0 where even that cannot be read.
        unique: the request that can be answered with an error; 0: nothing can be answered.
    """

    def __init__(self, reason: str, opcode: int = 0, unique: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.opcode = opcode
        self.unique = unique


class VersionError(MalformedError):
    """A kernel whose protocol is too old to be spoken to."""
