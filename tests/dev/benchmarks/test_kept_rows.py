"""What stays in a file of figures that several runs fill, and what is said of it."""

from dev.benchmarks.kept_rows import joined, measured_on, stamped

MONDAY, TUESDAY = ({"date": day, "cpu": "c"} for day in ("Monday", "Tuesday"))


def row(name, ms, **more):
    return {"method": name, "ms": ms, **more}


def put(own, known, new, now):
    return joined(own, known, new, now, lambda one: one["method"])


def test_rows_of_the_first_run_are_what_the_file_says():
    assert put(None, [], [row("a", 1)], MONDAY) == (MONDAY, [row("a", 1)])


def test_a_row_of_a_later_run_says_what_differs_and_replaces_its_elder():
    own, rows = put(MONDAY, [row("a", 1), row("b", 2)], [row("a", 3)], TUESDAY)
    assert own == MONDAY
    assert rows == [row("b", 2), row("a", 3, measured={"date": "Tuesday"})]
    assert [measured_on(one, own) for one in rows] == [MONDAY, TUESDAY]


def test_once_nothing_of_the_first_run_is_left_the_file_says_what_the_last_was():
    known = [row("a", 1), row("b", 2, measured={"date": "Tuesday"})]
    own, rows = put(MONDAY, known, [row("a", 3)], {"date": "Wednesday", "cpu": "d"})
    assert own == {"date": "Wednesday", "cpu": "d"}
    # What the older row was measured on is still the same.
    assert rows == [row("b", 2, measured=TUESDAY), row("a", 3)]
    own, rows = put(own, rows, [row("a", 4), row("b", 5)], TUESDAY)
    assert (own, rows) == (TUESDAY, [row("a", 4), row("b", 5)])


def test_a_stamp_is_made_anew():
    assert stamped(row("a", 1, measured=TUESDAY), MONDAY, MONDAY) == row("a", 1)
