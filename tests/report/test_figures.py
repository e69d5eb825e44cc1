import doctest

from bevquant.report import figures


def test_the_examples_in_the_docstrings_hold() -> None:
    outcome = doctest.testmod(figures)
    assert outcome.attempted >= 6 and not outcome.failed
