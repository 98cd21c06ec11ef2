"""Limits: what a key or a client address has had, whether another call fits, and what the `RateLimit` headers say of it.

Pure: no clock, no file, no lock; `server/quotas.py` has these. Calls a minute are counted in a sliding window made of two clock minutes:
those of the last minute count by the share of it that is still within 60 seconds. Days are those of UTC. The headers are those of
draft-ietf-httpapi-ratelimit-headers-09.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rag.errors import OverQuota
from rag.settings import Limits
from server.scopes import Rule

DAY_S = 86_400

COUNTED = ("requests", "refused", "answers", "prompt_tokens", "completion_tokens", "upload_bytes")
"""What is counted for each key and day. `refused`: calls over a limit, which count nowhere else."""


_STREAM_RETRY_S = 2
"""When a stream may be free again: a short answer of the default model takes about as long."""


@dataclass(slots=True)
class Count:
    """Of one key or address. `unwritten` is what the file does not have yet."""

    day: int
    minute: int
    now: int = 0  # calls in `minute`
    before: int = 0  # calls in the minute before it
    open: int = 0  # answers that are being written
    today: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    unwritten: dict[str, int] = field(default_factory=dict)
    unwritten_minutes: dict[int, int] = field(default_factory=dict)

    def turn(self, now: float) -> None:
        """Begin the minute and the day that it is."""
        minute, day = int(now // 60), int(now // DAY_S)
        if minute > self.minute:  # a clock that is set back changes nothing until it has caught up
            self.before = self.now if minute == self.minute + 1 else 0
            self.now, self.minute = 0, minute
        if day > self.day:
            self.day = day
            self.today = dict.fromkeys(COUNTED, 0)

    def recent(self, now: float) -> float:
        """Calls within the last 60 seconds, by estimate."""
        return self.before * min(1.0, max(0.0, 1 - (now - self.minute * 60) / 60)) + self.now

    def wait(self, quota: int, now: float) -> float:
        """Seconds until another call fits."""
        into = now - self.minute * 60
        if self.now < quota:  # the last minute's share has to shrink
            at = 60 * (1 - (quota - 1 - self.now) / self.before) if self.before else into
            return max(0.0, at - into)
        return 60 - into + 60 * (1 - (quota - 1) / self.now)

    @property
    def tokens(self) -> int:
        """Read and written today."""
        return self.today["prompt_tokens"] + self.today["completion_tokens"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A limit and how much of it is left: one item of both headers. `window` 0 for what is at a time."""

    name: str
    quota: int
    unit: str
    window: int
    left: int
    reset: int


def policies(counts: tuple[Count, ...], limits: tuple[Limits, ...], now: float) -> list[Policy]:
    """All limits that hold for a call. Those of the client's address have `address-` before their names."""
    found = []
    for place, (count, limit) in enumerate(zip(counts, limits, strict=True)):
        before = "address-" if place else ""
        midnight = to_midnight(now)
        if quota := limit.requests_per_minute:
            left = max(0, math.floor(quota - count.recent(now)))
            reset = 60 - int(now % 60) if left else math.ceil(count.wait(quota, now))
            found.append(Policy(f"{before}requests", quota, "requests", 60, left, max(1, reset)))
        if quota := limit.streams:
            found.append(Policy(f"{before}streams", quota, "concurrent-requests", 0, max(0, quota - count.open), 0))
        if quota := limit.tokens_per_day:
            found.append(Policy(f"{before}tokens", quota, "tokens", DAY_S, max(0, quota - count.tokens), midnight))
        if quota := limit.upload_mb_per_day << 20:
            left = max(0, quota - count.today["upload_bytes"])
            found.append(Policy(f"{before}upload", quota, "content-bytes", DAY_S, left, midnight))
    return found


def headers(found: list[Policy]) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` and `RateLimit`: structured fields, one item for each policy. None where nothing is limited."""
    if not found:
        return []
    policy, left = [], []
    for each in found:
        unit = "" if each.unit == "requests" else f';qu="{each.unit}"'
        policy.append(f'"{each.name}";q={each.quota}{unit}' + (f";w={each.window}" if each.window else ""))
        left.append(f'"{each.name}";r={each.left}' + (f";t={each.reset}" if each.window else ""))
    return [(b"ratelimit-policy", ", ".join(policy).encode()), (b"ratelimit", ", ".join(left).encode())]


def check(count: Count, limit: Limits, whose: str, rule: Rule, upload: int, now: float) -> None:
    """Raises `OverQuota` if another call of this rule does not fit; `upload` is the size that its body has, in bytes."""
    before = "" if whose == "this key" else "address-"
    if (quota := limit.requests_per_minute) and not rule.free and count.recent(now) + 1 > quota:
        raise over("requests", quota, f"calls a minute of {whose}", before, max(1, math.ceil(count.wait(quota, now))))
    if (quota := limit.streams) and rule.cost == "answer" and count.open >= quota:
        raise over("streams", quota, f"answers at a time of {whose}", before, _STREAM_RETRY_S)
    if (quota := limit.tokens_per_day) and rule.cost in ("answer", "tokens") and count.tokens >= quota:
        raise over("tokens", quota, f"tokens a day of {whose}", before, to_midnight(now))
    most = limit.upload_mb_per_day << 20
    if most and rule.cost == "upload" and count.today["upload_bytes"] + max(1, upload) > most:
        raise over("upload", limit.upload_mb_per_day, f"MiB of uploads a day of {whose}", before, to_midnight(now))


def over(name: str, quota: int, what: str, before: str, wait: int) -> OverQuota:
    """The error of a limit: its policy is `before` and `name`, `what` its words, `wait` the seconds until it lets in."""
    when = f"in {wait} seconds" if wait < 120 else f"in {wait // 60} minutes" if wait < 7200 else f"in {wait // 3600} hours"
    text = f"The limit of {quota} {what} is reached."
    return OverQuota(text, f"Try again {when}, or ask the administrator for another plan.", quota, before + name, wait)


def to_midnight(now: float) -> int:
    """Seconds until the next day of UTC begins."""
    return DAY_S - int(now % DAY_S)
