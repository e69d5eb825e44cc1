import json
import multiprocessing
import os
import platform
import resource
import sqlite3
import time
from pathlib import Path

import pytest

import bevquant as bq
from bevquant.search import ledger as ledger_module
from bevquant.search.ledger import Ledger

SETUP = {"weights": "w", "batches": "b"}


def record(ledger: Ledger, *genome: int, errors: tuple[float, ...] = (0.5,)) -> None:
    ledger.record(genome, errors, {"bits": 3.0}, 0.1, "here")


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run" / "l.sqlite", SETUP)
    record(ledger, 1, 2, errors=(0.1, float("inf")))
    ledger.close()
    found = Ledger(tmp_path / "run" / "l.sqlite", SETUP).get((1, 2))
    assert found is not None
    assert found.errors == (0.1, float("inf"))
    assert found.costs == {"bits": 3.0}
    assert (found.seconds, found.host) == (0.1, "here")
    assert Ledger(tmp_path / "run" / "l.sqlite", None).setup() == SETUP


def test_a_row_of_fewer_batches_never_replaces_one_of_more() -> None:
    ledger = Ledger(None, SETUP)
    record(ledger, 1, errors=(0.1,))
    record(ledger, 1, errors=(0.1, 0.2))
    record(ledger, 1, errors=(0.1,))
    (row,) = ledger.all()
    assert row.errors == (0.1, 0.2)
    assert row.seconds == pytest.approx(0.2)


def test_changed_setup_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    Ledger(tmp_path / "l.sqlite", SETUP).close()
    with pytest.raises(bq.BevquantError, match="what differs: error, weights; choose"):
        Ledger(tmp_path / "l.sqlite", {"weights": "x", "batches": "b", "error": "e"})


def test_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(bq.BevquantError, match=r"l\.sqlite: not a ledger, or a damaged one"):
        Ledger(tmp_path / "l.sqlite", SETUP)


def test_damaged_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, SETUP)
    for genome in range(500):
        record(ledger, genome)
    ledger.close()
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = os.urandom(len(content) // 2 - 4096)
    path.write_bytes(content)
    with pytest.raises(bq.BevquantError, match=r"l\.sqlite: not a ledger, or a damaged one"):
        Ledger(path, SETUP).all()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(bq.BevquantError, match="cannot be written"):
        Ledger(tmp_path / "file" / "l.sqlite", SETUP)


def test_ledger_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(bq.BevquantError, match="there is no such ledger"):
        Ledger(tmp_path / "l.sqlite", None)


def test_read_only_ledger_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", SETUP)
    record(ledger, 1)
    reader = Ledger(tmp_path / "l.sqlite", None)
    with pytest.raises(bq.BevquantError, match="cannot be written"):
        record(reader, 2)
    assert len(reader.all()) == 1


def _fill(path: Path) -> None:
    ledger = Ledger(path, SETUP)
    record(ledger, 0)
    limit = 200_000  # a file size limit: writes fail as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        for genome in range(1, 2000):
            record(ledger, genome, errors=(0.5,) * 100)
    except bq.BevquantError as error:
        os._exit(3 if "make room" in str(error) else 4)
    os._exit(5)


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_fill, args=(tmp_path / "l.sqlite",)
    )
    process.start()
    process.join()
    assert process.exitcode == 3
    ledger = Ledger(tmp_path / "l.sqlite", SETUP)
    kept = len(ledger.all())
    assert kept > 1
    record(ledger, 10_000)
    assert len(ledger.all()) == kept + 1


def _write(path: Path, first: int) -> None:
    ledger = Ledger(path, SETUP)
    for genome in range(60):
        record(ledger, genome, errors=(float(genome),))
        record(ledger, first, genome, errors=(0.0,))


def test_concurrent_writers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "l.sqlite"
    writers = [context.Process(target=_write, args=(path, 1000 + i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    rows = Ledger(path, SETUP).all()
    assert len(rows) == 60 + 3 * 60
    assert {row.errors for row in rows if len(row.genome) == 1} == {(float(i),) for i in range(60)}


def test_claims_hold_between_the_living_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", SETUP)
    assert ledger.claim((1,))
    assert ledger.claim((1,)), "one's own claim is no hindrance"
    monkeypatch.setattr(ledger_module.os, "getpid", lambda: 1)
    assert not ledger.claim((1,)), "this process lives"
    monkeypatch.undo()
    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        db.execute("UPDATE claims SET process = 2147483647")
    assert ledger.claim((1,)), "the other one died"
    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        db.execute("UPDATE claims SET host = 'elsewhere', since = since - 10000")
    assert ledger.claim((1,)), "the lease ran out"


def test_progress_of_runs() -> None:
    ledger = Ledger(None, SETUP)
    ledger.progress("nsga2", 10, 0, finished=False)
    ledger.progress("nsga2", 10, 4, finished=False)
    ledger.progress("ilp", 5, 5, finished=True)
    first, second = ledger.runs()
    assert (first.strategy, first.asked, first.finished) == ("ilp", 5, True)
    assert (second.strategy, second.asked, second.budget) == ("nsga2", 4, 10)


def test_a_claim_of_another_host_holds_until_its_lease_ends(tmp_path: Path) -> None:
    """Its processes cannot be seen from here: a number that is free here says nothing."""
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, SETUP)
    dead = 2**22 + 1  # beyond any process of this machine
    now = time.time()
    with sqlite3.connect(path) as db:
        for genome, host, since in (
            ("1", "elsewhere", now),
            ("2", "elsewhere", now - ledger_module.LEASE_S - 1),
            ("3", platform.node(), now),
        ):
            db.execute("INSERT INTO claims VALUES (?, ?, ?, ?)", (genome, host, dead, since))
    assert not ledger.claim((1,))
    assert ledger.claim((2,))
    assert ledger.claim((3,))


@pytest.mark.parametrize(
    ("column", "value"),
    [("errors", "[0.0]"), ("errors", "[0.5"), ("costs", "3"), ("genome", "0 x"), ("errors", "[]")],
)
def test_an_evaluation_that_was_edited_is_refused_by_name(
    tmp_path: Path, column: str, value: str
) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, SETUP)
    record(ledger, 1)
    ledger.close()
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE evaluations SET {column} = ?", (value,))
    for setup in (SETUP, None):
        with pytest.raises(bq.BevquantError, match=r"genome .* was changed or damaged"):
            Ledger(path, setup).all()


def test_a_ledger_of_version_0_1_0_is_read(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, SETUP)
    record(ledger, 1)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE evaluations SET fingerprint = ?", (json.dumps(SETUP, sort_keys=True),))
    assert len(Ledger(path, SETUP).all()) == 1
