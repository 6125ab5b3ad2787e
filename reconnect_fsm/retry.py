"""When to try again, and when not to: delays, and what is fatal. Everything here is policy that a user can change."""

from __future__ import annotations

import random as _random
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final

from reconnect_fsm.status import AttemptFailure, CloseInfo, FailureKind

__all__ = ["FATAL_CLOSE_CODES", "FATAL_CLOSE_REASONS", "FATAL_HTTP_STATUSES", "RetryPolicy"]

FATAL_CLOSE_CODES: Final = frozenset({1008, *range(4400, 4500)})  # D-CODES; not 1011: one crashed worker is no verdict
FATAL_CLOSE_REASONS: Final = frozenset({"permission_changed", "room_closed", "auth_failed"})  # D-CODES
FATAL_HTTP_STATUSES: Final = frozenset({401, 403})  # D-HTTP

SYSTEM: Final = _random.SystemRandom()  # has no state, so that all may share it
MAX_DOUBLINGS: Final = 32  # D-JITTER: 2.0 ** n overflows at 1024, and no cap needs more


@dataclass(frozen=True)
class RetryPolicy:
    """How a client goes on after a loss (RETRY-1 to RETRY-4). Times are in seconds.

    ``base`` doubles with each attempt up to ``cap``; each wait is spread by ``jitter`` either way and never above
    ``cap``. ``max_attempts`` counts retries in a row, None means for ever. A connection that lasted ``stable_after``
    begins the count anew (D-STABLE). ``reset_on_online`` does so when the machine comes back online (OFF-2).
    ``max_retry_after`` bounds how long a server may ask us to stay away (D-HTTP); 0: it may not.
    ``random`` is the source of the jitter, the system's by default: processes that were forked do not share it. Give a
    seeded `random.Random` to make a run repeatable.

    A policy of your own may override `delay`, `is_fatal_close` and `is_fatal_failure`. If one raises, the client goes
    to ``error`` (D-ERROR).

    Raises ValueError for numbers that make no sense, TypeError for a str where a set is meant.
    """

    enabled: bool = True
    base: float = 0.5
    cap: float = 15.0
    jitter: float = 0.25
    max_attempts: int | None = None
    stable_after: float = 5.0
    reset_on_online: bool = True
    max_retry_after: float = 300.0
    fatal_close_codes: Container[int] = FATAL_CLOSE_CODES
    fatal_close_reasons: Container[str] = FATAL_CLOSE_REASONS
    fatal_http_statuses: Container[int] = FATAL_HTTP_STATUSES
    random: _random.Random = field(default=SYSTEM, repr=False, compare=False)

    def __post_init__(self) -> None:
        # "not (x > 0)" rather than "x <= 0": NaN fails every comparison
        if not 0 < self.base < float("inf"):
            raise ValueError(f"base must be a positive number of seconds, not {self.base!r}")
        if not self.base <= self.cap < float("inf"):
            raise ValueError(f"cap must be at least base ({self.base!r} s) and finite, not {self.cap!r}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is a fraction from 0 up to, not including, 1; not {self.jitter!r}")
        if self.max_attempts is not None and not self.max_attempts >= 0:
            raise ValueError(
                f"max_attempts must be None (for ever) or a count from 0, not {self.max_attempts!r}; "
                "to switch retrying off, say enabled=False"
            )
        for name in ("fatal_close_codes", "fatal_close_reasons", "fatal_http_statuses"):
            if isinstance(getattr(self, name), str):  # "" is in every str: each close without a reason would be fatal
                raise TypeError(f"{name} must be a set or the like, not a str: write {{{getattr(self, name)!r}}}")
        if not self.stable_after >= 0:
            raise ValueError(f"stable_after must be a number of seconds from 0, not {self.stable_after!r}")
        if not 0 <= self.max_retry_after < float("inf"):
            raise ValueError(f"max_retry_after must be a number of seconds from 0, not {self.max_retry_after!r}")

    def delay(self, attempt: int) -> float:
        """Seconds to wait before retry number ``attempt``, which counts from 1 (RETRY-1, D-JITTER)."""
        doublings = min(max(attempt - 1, 0), MAX_DOUBLINGS)
        # Centred below the cap, so that the jitter spreads clients there too instead of piling them up on it.
        centre = min(self.base * 2.0**doublings, self.cap / (1 + self.jitter))
        # The min() is for the last bit of the floating-point product: never above the cap.
        return min(centre * self.random.uniform(1 - self.jitter, 1 + self.jitter), self.cap)

    def no_sooner(self, retry_after: float) -> float:
        """Seconds to wait when a server asks us to stay away for ``retry_after`` seconds (D-HTTP).

        No more than ``max_retry_after``: a hostile or confused server must not park us for days. Then up to as much
        longer as the jitter is wide: a server tells the same to each of a herd, which would else be back in one piece.
        """
        asked = min(retry_after, self.max_retry_after)
        return asked * self.random.uniform(1, 1 + 2 * self.jitter) if asked else 0.0

    def is_fatal_close(self, info: CloseInfo) -> bool:
        """Whether the server's close means "do not come back" (RETRY-3, D-CODES)."""
        return info.code in self.fatal_close_codes or info.reason in self.fatal_close_reasons

    def is_fatal_failure(self, failure: AttemptFailure) -> bool:
        """Whether a failed attempt means "do not try again" (RETRY-3, D-HTTP)."""
        refused = failure.http_status is not None and failure.http_status in self.fatal_http_statuses
        return refused or failure.kind is FailureKind.UNAUTHORIZED
