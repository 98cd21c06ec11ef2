"""Limits and usage: what fits, what is told, what a restart and a midnight leave, who pays; with a clock that stands still."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rag.errors import Forbidden, OverQuota
from rag.generation import Generation, Request, charge, payer
from rag.records import Usage
from rag.settings import PLANS, Limits
from server.limits import COUNTED, Count, headers
from server.quotas import FILE, Meter, read_report
from server.scopes import RULES, Caller

SEARCH, ASK, EMBED, UPLOAD = (RULES[name] for name in ("POST /rag/search", "POST /rag/ask", "POST /v1/embeddings", "POST /rag/documents"))
USAGE = RULES["GET /rag/usage"]
DAY = 86_400


class Clock:
    """A clock that stands still until it is told to go on. It begins at the first second of a day."""

    def __init__(self) -> None:
        self.now = float(20_000 * DAY)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time of these counts."""
    return Clock()


@pytest.fixture
def meter(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Meter]]:
    """Opens the counts of one data directory, again and again."""
    opened: list[Meter] = []

    def open_meter(limits: Limits | None = None, **plans: Limits) -> Meter:
        opened.append(Meter(tmp_path / FILE, {**PLANS, **plans}, limits, clock=clock))
        return opened[-1]

    yield open_meter
    for each in opened:
        each.close()


def caller(plan: str = "small", id: str = "key1", address: str = "198.51.100.1") -> Caller:
    """A key of that plan."""
    return Caller(id, id, frozenset({"ask"}), plan=plan, address=address)


def refused(meter: Meter, who: Caller, rule: object = SEARCH, upload: int = 0) -> OverQuota:
    """The refusal that a call gets."""
    with pytest.raises(OverQuota) as caught:
        meter.begin(who, rule, upload)  # type: ignore[arg-type]
    return caught.value


def test_so_many_calls_fit_in_any_minute(meter: Callable[..., Meter], clock: Clock) -> None:
    """Also across the end of a clock minute, where counting by clock minutes alone would let in twice as many."""
    counts = meter(small=Limits(requests_per_minute=10))
    clock.now += 55
    for _ in range(10):
        counts.begin(caller(), SEARCH)
    let_in = 0
    for _ in range(600):  # the next minute, ten times a second
        clock.now += 0.1
        try:
            counts.begin(caller(), SEARCH)
            let_in += 1
        except OverQuota:
            pass
        if clock.now % DAY < 100:  # 45 s after the burst, three quarters of it still count at first
            assert let_in <= 6
    assert 9 <= let_in <= 11


def test_a_refusal_says_when_to_come_back_and_that_is_true(meter: Callable[..., Meter], clock: Clock) -> None:
    """Neither a second too early, nor later than need be."""
    counts = meter(small=Limits(requests_per_minute=7))
    for into in (0, 3, 12, 12, 30, 58, 59):
        clock.now = 20_000 * DAY + into
        counts.begin(caller(), SEARCH)
    wait = refused(counts, caller()).retry_after
    clock.now += wait - 1.5
    refused(counts, caller())
    clock.now += 1.5
    counts.begin(caller(), SEARCH)


def test_the_wait_is_right_wherever_one_stands(clock: Clock) -> None:
    """By trying: after the wait a call fits, a tenth of a second before it does not."""
    for before, now, into in [(0, 5, 10.0), (5, 4, 10.0), (10, 3, 0.0), (3, 5, 59.0), (10, 0, 1.0), (4, 10, 30.0), (5, 5, 0.0)]:
        count = Count(20_000, int(clock.now // 60), now, before)
        at = clock.now + into
        wait = count.wait(5, at)
        if count.recent(at) + 1 <= 5:
            assert wait == 0
            continue
        later = Count(20_000, count.minute, now, before)
        later.turn(at + wait)
        assert later.recent(at + wait + 1e-6) + 1 <= 5 + 1e-6, (before, now, into)
        sooner = Count(20_000, count.minute, now, before)
        sooner.turn(at + wait - 0.1)
        assert sooner.recent(at + wait - 0.1) + 1 > 5, (before, now, into)


def test_streams_at_a_time_are_those_that_are_open(meter: Callable[..., Meter]) -> None:
    """Counted when they begin, free again when they end, however often that is said; searches are no streams."""
    counts = meter(small=Limits(streams=2))
    first, _ = counts.begin(caller(), ASK), counts.begin(caller(), ASK)
    error = refused(counts, caller(), ASK)
    assert (error.policy, error.limit) == ("streams", 2)
    counts.begin(caller(), SEARCH)
    first.end()
    first.end()
    third = counts.begin(caller(), ASK)
    refused(counts, caller(), ASK)
    third.end()
    assert counts.report(1)[0]["answers"] == 3


def test_tokens_are_counted_when_they_are_spent(meter: Callable[..., Meter], clock: Clock) -> None:
    """Those of a running answer come at its end, after which the next one is refused until midnight; a search is still let in."""
    counts = meter(small=Limits(tokens_per_day=100))
    lease = counts.begin(caller(), ASK)
    counts.begin(caller(), ASK)
    lease.end()
    lease.spend(Usage(80, 30, 10))
    clock.now += DAY - 100
    assert refused(counts, caller(), ASK).retry_after == 100
    refused(counts, caller(), EMBED)
    counts.begin(caller(), SEARCH)
    clock.now += 100
    counts.begin(caller(), ASK)


def test_an_upload_is_refused_before_it_comes_or_while(meter: Callable[..., Meter]) -> None:
    """By what it says, and by what comes if it said nothing. What came is counted either way."""
    counts = meter(small=Limits(upload_mb_per_day=1))
    assert refused(counts, caller(), UPLOAD, (1 << 20) + 1).policy == "upload"
    lease = counts.begin(caller(), UPLOAD)
    lease.receive(1 << 20)
    with pytest.raises(OverQuota):
        lease.receive(1)
    refused(counts, caller(), UPLOAD)
    assert counts.report(1)[0]["upload_bytes"] == (1 << 20) + 1


def test_keys_do_not_pay_for_each_other(meter: Callable[..., Meter]) -> None:
    """Each has its own plan's limits to itself."""
    counts = meter(small=Limits(requests_per_minute=1))
    counts.begin(caller(id="a"), SEARCH)
    counts.begin(caller(id="b"), SEARCH)
    refused(counts, caller(id="a"))
    for _ in range(50):
        counts.begin(caller(plan="unlimited", id="c"), SEARCH)


def test_a_client_address_has_limits_of_its_own(meter: Callable[..., Meter]) -> None:
    """Whatever key comes from it; a /64 of IPv6 is one client, and an IPv4 address one however it is written."""
    counts = meter(Limits(requests_per_minute=1))
    counts.begin(caller("unlimited", "a", "198.51.100.1"), SEARCH)
    error = refused(counts, caller("unlimited", "b", "::ffff:198.51.100.1"))
    assert error.policy == "address-requests"
    assert "your address" in error.message
    counts.begin(caller("unlimited", "a", "198.51.100.2"), SEARCH)
    counts.begin(caller("unlimited", "a", "2001:db8::1"), SEARCH)
    refused(counts, caller("unlimited", "a", "2001:db8::2"))
    counts.begin(caller("unlimited", "a", "2001:db8:0:1::1"), SEARCH)
    counts.begin(caller("unlimited", "command", "198.51.100.1"), SEARCH)


def test_no_address_is_written_down(meter: Callable[..., Meter], tmp_path: Path, clock: Clock) -> None:
    """Only a keyed hash, while the day lasts; without limits for addresses not even that."""
    counts = meter(Limits(requests_per_minute=5))
    counts.begin(caller("unlimited", "a", "198.51.100.77"), SEARCH)
    counts.flush()
    database = sqlite3.connect(tmp_path / FILE)
    subjects = {row[0] for row in database.execute("SELECT subject FROM usage")}
    assert len(subjects) == 2
    assert not any("198" in subject for subject in subjects)
    assert [row["key"] for row in counts.report(1)] == ["a"]
    clock.now += DAY
    counts.begin(caller("unlimited", "a", "198.51.100.78"), SEARCH)
    counts.flush()
    old = database.execute("SELECT subject FROM usage WHERE day = 20000").fetchall()
    database.close()
    assert old == [("a",)]
    counts.close()
    (tmp_path / FILE).unlink()
    unlimited = meter()
    unlimited.begin(caller("unlimited", "a", "198.51.100.77"), SEARCH)
    assert list(unlimited._counts) == ["a"]


def test_more_addresses_than_can_be_kept_share_a_count(meter: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a network full of addresses gets neither the memory nor a way around."""
    monkeypatch.setattr("server.quotas._ADDRESSES", 3)
    counts = meter(Limits(requests_per_minute=2))
    for n in range(3):
        counts.begin(caller("unlimited", "a", f"198.51.100.{n}"), SEARCH)
    counts.begin(caller("unlimited", "a", "203.0.113.1"), SEARCH)
    counts.begin(caller("unlimited", "a", "203.0.113.2"), SEARCH)
    refused(counts, caller("unlimited", "a", "203.0.113.3"))
    counts.begin(caller("unlimited", "a", "198.51.100.0"), SEARCH)


def test_a_restart_forgives_nothing(meter: Callable[..., Meter], clock: Clock) -> None:
    """Neither the minute's calls nor the day's tokens."""
    limits = {"small": Limits(requests_per_minute=3, tokens_per_day=50)}
    counts = meter(**limits)
    for _ in range(3):
        lease = counts.begin(caller(), SEARCH)
    lease.spend(Usage(40, 20))
    counts.close()
    clock.now += 59
    again = meter(**limits)
    assert refused(again, caller()).policy == "requests"
    clock.now += 121
    assert refused(again, caller(), ASK).policy == "tokens"
    again.close()
    clock.now += DAY
    assert len(meter(**limits).report(2)) == 1


def test_what_was_counted_before_midnight_stays_yesterdays(meter: Callable[..., Meter], clock: Clock) -> None:
    """Though it was not written yet; the key begins the day with nothing used."""
    counts = meter(small=Limits(tokens_per_day=10))
    clock.now += DAY - 1
    counts.begin(caller(), ASK).spend(Usage(9, 9))
    clock.now += 2
    counts.begin(caller(), ASK).spend(Usage(1, 0))
    today, yesterday = counts.report(2)
    assert (yesterday["day"], yesterday["prompt_tokens"], yesterday["requests"]) == ("2024-10-04", 9, 1)
    assert (today["day"], today["prompt_tokens"], today["requests"]) == ("2024-10-05", 1, 1)


def test_calls_are_written_together(meter: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand calls are one transaction, and a call itself writes nothing."""
    counts = meter()
    writes: list[object] = []
    write = counts._database.write
    monkeypatch.setattr(counts._database, "write", lambda fn: (writes.append(fn), write(fn)))
    for _ in range(1000):
        counts.begin(caller("unlimited"), SEARCH)
    assert writes == []
    counts.flush()
    counts.flush()
    assert len(writes) == 1
    assert counts.report(1)[0]["requests"] == 1000


def test_what_cannot_be_written_is_not_lost(meter: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs no count: it is tried again."""
    counts = meter(small=Limits(requests_per_minute=100))
    write = counts._database.write

    def full(_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(counts._database, "write", full)
    counts.begin(caller(), SEARCH)
    with pytest.raises(sqlite3.OperationalError):
        counts.flush()
    counts.begin(caller(), SEARCH)
    monkeypatch.setattr(counts._database, "write", write)
    assert counts.report(1)[0]["requests"] == 2
    counts.close()
    again = meter(small=Limits(requests_per_minute=100))
    assert again.policies(caller())[0].left == 98


def test_many_threads_count_right(meter: Callable[..., Meter]) -> None:
    """Generations end in the engine's thread while calls begin in the event loop, and the counts are written in a third."""
    counts = meter(small=Limits(streams=1000))
    counts.start()

    def work() -> None:
        for _ in range(200):
            lease = counts.begin(caller(), ASK)
            lease.spend(Usage(2, 1))
            counts.flush()
            lease.end()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = counts.report(1)
    assert (row["requests"], row["answers"], row["prompt_tokens"], row["completion_tokens"]) == (800, 800, 1600, 800)
    assert counts.policies(caller())[0].left == 1000


def test_looking_at_ones_usage_is_free(meter: Callable[..., Meter]) -> None:
    """Whoever is over the limit must be able to see it."""
    counts = meter(small=Limits(requests_per_minute=1))
    counts.begin(caller(), SEARCH)
    refused(counts, caller())
    counts.begin(caller(), USAGE)
    assert counts.report(1)[0]["requests"] == 1


def test_a_plan_that_is_gone_lets_nobody_in(meter: Callable[..., Meter]) -> None:
    """A typing error in the settings must not take a limit away."""
    with pytest.raises(Forbidden, match="plan 'gold'"):
        meter().begin(caller("gold"), SEARCH)


def test_a_clock_that_is_set_back_gives_nothing(meter: Callable[..., Meter], clock: Clock) -> None:
    """Nor does it count anything twice."""
    counts = meter(small=Limits(requests_per_minute=2, tokens_per_day=5))
    clock.now += 300
    counts.begin(caller(), ASK).spend(Usage(5, 0))
    counts.begin(caller(), SEARCH)
    clock.now -= 290
    assert refused(counts, caller()).policy == "requests"
    assert counts.report(1)[0]["requests"] == 2


def test_usage_is_kept_as_long_as_it_is_to_be(tmp_path: Path, clock: Clock) -> None:
    """Older days go when the service starts, and at midnight."""
    meter = Meter(tmp_path / FILE, keep_days=3, clock=clock)
    for _ in range(6):
        meter.begin(caller("unlimited"), SEARCH)
        clock.now += DAY
    meter.begin(caller("unlimited"), SEARCH)
    assert [row["day"][-2:] for row in meter.report(100)] == ["10", "09", "08", "07"]
    meter.close()


def test_a_file_is_read_without_a_server_and_without_being_made(tmp_path: Path) -> None:
    """For the commands."""
    assert read_report(tmp_path / FILE, 30) == []
    assert not (tmp_path / FILE).exists()
    meter = Meter(tmp_path / FILE)
    meter.begin(caller("unlimited"), SEARCH)
    meter.flush()
    (row,) = read_report(tmp_path / FILE, 1)
    assert {name: row[name] for name in COUNTED} == {**dict.fromkeys(COUNTED, 0), "requests": 1}
    meter.close()


def test_nothing_is_told_where_nothing_is_limited() -> None:
    """An empty list is no structured field."""
    assert headers([]) == []


# Who pays


def generation(prompt: int = 7) -> Generation:
    """One that is submitted, in the running loop."""
    return Generation(Request(tuple(range(prompt)), 5), lambda: None)


def test_a_generation_is_paid_for_once_when_it_is_over() -> None:
    """By whoever set the payer where it was submitted, with what it used at its end; nobody pays twice, nor for another."""
    paid: list[tuple[str, Usage]] = []

    async def ask(name: str) -> Generation:
        payer.set(lambda usage: paid.append((name, usage)))
        made = generation()
        made.admitted_at = 1.0
        return made

    async def run() -> None:
        one, two = await asyncio.create_task(ask("one")), await asyncio.create_task(ask("two"))
        nobody = generation()
        one.put("text")
        assert paid == []
        one.usage = Usage(7, 3, 2)
        one.put(None)
        one.put(None)
        nobody.put(None)
        two.cancel()
        two.usage = Usage(4, 0)
        two.put(None)

    asyncio.run(run())
    assert paid == [("one", Usage(7, 3, 2)), ("two", Usage(4, 0))]


def test_who_leaves_the_queue_pays_nothing() -> None:
    """The prompt was never read."""
    paid: list[Usage] = []

    async def run() -> None:
        payer.set(paid.append)
        waiting = generation()
        waiting.cancel()
        waiting.put(None)
        charge(Usage(1))

    asyncio.run(run())
    assert paid == [Usage(1)]
