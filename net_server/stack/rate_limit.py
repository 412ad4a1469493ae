"""A token bucket: so many at once, so many a second in the long run (RFC 1812, 4.3.2.8)."""

from __future__ import annotations


class TokenBucket:
    """Allows `burst` events at once and `rate_per_s` in the long run; starts full."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_tokens")

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate = rate_per_s
        self._burst = float(burst)
        self._tokens = float(burst)
        self._filled_at = float("-inf")

    def take(self, now: float) -> bool:
        """Take a token if there is one. A clock that runs backwards adds none."""
        elapsed = now - self._filled_at
        if elapsed > 0:
            self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
            self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
