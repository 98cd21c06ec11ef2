"""How far a bulk is: counts, ages and the time left, with a clock of its own."""

from __future__ import annotations

from server.activity import Activity, Bulk


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bulk_counts_from_the_first_that_waits_to_the_last_that_is_through() -> None:
    """Ten wait, two go through, one of them badly, one is deleted; the rest is told from the rate."""
    clock = Clock()
    activity = Activity(clock)
    assert activity.bulk == Bulk()
    for n in range(10):
        activity.note(str(n), f"d/{n}.md", "queued")
        clock.now += 1
    assert activity.note("0", "d/0.md", "parsing") is None
    assert activity.note("0", "d/0.md", "indexed") == 10
    assert activity.note("1", "d/1.md", "failed") == 9
    assert activity.note("2", "d/2.md", "removed") == 8
    activity.note("3", "d/3.md", "embedding")
    clock.now += 2
    bulk = activity.bulk
    assert (bulk.done, bulk.of, bulk.failed, bulk.waiting) == (3, 10, 1, 7)
    assert (bulk.elapsed_s, bulk.waiting_s, bulk.current) == (12, 9, "d/3.md")
    assert bulk.left_s == 12 * 7 / 3


def test_when_all_are_through_the_clock_stops_and_the_next_bulk_begins_at_nought() -> None:
    """The last bulk stays readable until there is another."""
    clock = Clock()
    activity = Activity(clock)
    activity.note("1", "d/1.md", "queued")
    clock.now += 5
    activity.note("1", "d/1.md", "indexed")
    clock.now += 1000
    bulk = activity.bulk
    assert (bulk.done, bulk.of, bulk.elapsed_s, bulk.waiting_s, bulk.current, bulk.left_s) == (1, 1, 5, None, None, 0)
    activity.note("2", "d/2.md", "queued")
    bulk = activity.bulk
    assert (bulk.done, bulk.of, bulk.elapsed_s, bulk.waiting_s, bulk.left_s) == (0, 1, 0, 0, None)


def test_what_was_never_under_way_does_not_count() -> None:
    """A plain delete, or a failure that is told again."""
    activity = Activity(Clock())
    assert activity.note("1", "d/1.md", "removed") is None
    assert activity.note("2", "d/2.md", "failed") is None
    assert activity.bulk == Bulk()


def test_who_ends_without_a_word_is_let_go_when_nothing_is_under_way() -> None:
    """Otherwise a lost event would wait for ever in `/ready`."""
    activity = Activity(Clock())
    activity.note("1", "d/1.md", "parsing")
    activity.clear()
    assert activity.bulk.waiting == 0
