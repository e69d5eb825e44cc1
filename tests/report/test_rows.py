from bevquant.report.results import Results
from bevquant.report.rows import rows


def test_networks_are_listed_from_the_most_bits_down(results: Results) -> None:
    names = [row.name for row in rows(results)]
    assert names == ["float", "W16A16", "W8A8", "W8A8 per tensor", "W4A8", "W2A8", "deployed"]


def test_simulated_rows_say_in_which_scheme(results: Results) -> None:
    how = {row.name: row.how for row in rows(results)}
    assert how["W8A8"] == "simulated, per-channel activations"
    assert how["W8A8 per tensor"] == "simulated, per-tensor activations"
