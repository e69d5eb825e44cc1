"""The journal of a search: one row in an SQLite file for every evaluation.

Each row is a transaction of its own: whatever is killed, and whenever, what has been
evaluated stays evaluated. Several processes on one machine may write to one ledger.
"""

import hashlib
import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bevquant.errors import BevquantError
from bevquant.search.records import Evaluation, Run
from bevquant.search.space import Genome

LEASE_S = 600.0
"""After this time a genome that another process took up is taken up again."""

_PATIENCE_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS setup (part TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (
    genome TEXT PRIMARY KEY,  -- index of each gene's choice
    errors TEXT NOT NULL,     -- JSON: error on each batch, on the first ones if stopped early
    costs TEXT NOT NULL,      -- JSON: name -> figure
    seconds REAL NOT NULL,
    host TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    finished REAL NOT NULL    -- seconds since 1970
);
CREATE TABLE IF NOT EXISTS claims (
    genome TEXT PRIMARY KEY, host TEXT NOT NULL, process INTEGER NOT NULL, since REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (
    strategy TEXT PRIMARY KEY, budget INTEGER NOT NULL, asked INTEGER NOT NULL,
    started REAL NOT NULL, updated REAL NOT NULL, finished INTEGER NOT NULL
);
"""


class Ledger:
    """An open ledger.

    Args:
        path: the file; ``None`` for one in memory that dies with the process.
        setup: what evaluations depend on, part by part; ``None`` to look at an existing
            ledger only.

    Raises:
        BevquantError: the file cannot be read or written, is no ledger, or is that of
            another setup; the message names the parts that differ.
    """

    def __init__(self, path: Path | None, setup: Mapping[str, str] | None) -> None:
        self.path = path
        self._host = platform.node()
        self._setup = json.dumps(setup, sort_keys=True)
        if path is not None and setup is None and not path.exists():
            raise BevquantError(f"{path}: there is no such ledger")
        with self._explained():
            if path is not None and setup is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._connect(read_only=setup is None)
            if setup is not None:
                self._db.executescript(_SCHEMA)
                self._adopt(setup)
            self._db.execute(f"{_SELECT} LIMIT 1")
            if setup is None:
                known = dict(self._db.execute("SELECT part, value FROM setup"))
                self._setup = json.dumps(known, sort_keys=True)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def setup(self) -> dict[str, str]:
        """Return what the evaluations depend on."""
        with self._explained():
            return dict(self._db.execute("SELECT part, value FROM setup ORDER BY part"))

    def get(self, genome: Genome) -> Evaluation | None:
        """Return what is known of ``genome``."""
        with self._explained():
            row = self._db.execute(f"{_SELECT} WHERE genome = ?", (_text(genome),)).fetchone()
        return None if row is None else self._evaluation(row)

    def all(self) -> list[Evaluation]:
        """Return all evaluations, oldest first."""
        with self._explained():
            rows = self._db.execute(f"{_SELECT} ORDER BY finished, genome").fetchall()
        return [self._evaluation(row) for row in rows]

    def record(
        self,
        genome: Genome,
        errors: tuple[float, ...],
        costs: Mapping[str, float],
        seconds: float,
        host: str,
    ) -> None:
        """Write one evaluation; one of fewer batches never replaces one of more."""
        row = _text(genome), json.dumps(errors), json.dumps(dict(costs)), seconds, host
        with self._explained(), self._db:
            self._db.execute(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "errors = excluded.errors, seconds = seconds + excluded.seconds, "
                "host = excluded.host, finished = excluded.finished, costs = excluded.costs, "
                "fingerprint = excluded.fingerprint "
                "WHERE json_array_length(excluded.errors) > json_array_length(errors)",
                (*row, self._fingerprint(*row[:3]), time.time()),
            )
            self._db.execute("DELETE FROM claims WHERE genome = ?", row[:1])

    def claim(self, genome: Genome) -> bool:
        """Return whether this process may take up ``genome``, and if so tell the others.

        A claim only saves double work: should two processes evaluate the same genome, both
        find the same. That of a process that died is void.
        """
        mine = self._host, os.getpid()
        with self._explained(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._db.execute(
                "SELECT host, process, since FROM claims WHERE genome = ?", (_text(genome),)
            ).fetchone()
            if row is not None and row[:2] != mine and self._in_force(*row):
                return False
            claim = _text(genome), *mine, time.time()
            self._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", claim)
            return True

    def progress(self, strategy: str, budget: int, asked: int, finished: bool) -> None:
        """Note how far a search is."""
        with self._explained(), self._db:
            self._db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET budget = "
                "excluded.budget, asked = excluded.asked, updated = excluded.updated, "
                "finished = excluded.finished",
                (strategy, budget, asked, time.time(), time.time(), finished),
            )

    def runs(self) -> list[Run]:
        """Return the searches that used the ledger, the latest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT strategy, budget, asked, started, updated, finished FROM runs "
                "ORDER BY updated DESC"
            ).fetchall()
        return [
            Run(strategy, budget, asked, started, updated, bool(finished))
            for strategy, budget, asked, started, updated, finished in rows
        ]

    def _connect(self, *, read_only: bool) -> sqlite3.Connection:
        if self.path is None:
            return sqlite3.connect(":memory:")
        if read_only:
            uri = f"{self.path.resolve().as_uri()}?mode=ro"
            return sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S)
        db = sqlite3.connect(self.path, timeout=_PATIENCE_S)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _adopt(self, setup: Mapping[str, str]) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            known = dict(self._db.execute("SELECT part, value FROM setup"))
            if not known:
                self._db.executemany("INSERT INTO setup VALUES (?, ?)", list(setup.items()))
                return
        parts = [part for part in {**known, **setup} if known.get(part) != setup.get(part)]
        if parts:
            raise BevquantError(
                f"{self.path}: the ledger of another search; what differs: "
                f"{', '.join(sorted(parts))}; choose another file, or search as before"
            )

    def _fingerprint(self, genome: str, errors: str, costs: str) -> str:
        """Return a digest of a row and of what it depends on."""
        parts = "\n".join((self._setup, genome, errors, costs))
        return hashlib.sha256(parts.encode()).hexdigest()

    def _evaluation(self, row: tuple[Any, ...]) -> Evaluation:
        genome, errors, costs, seconds, host, finished, fingerprint = row
        try:
            # Ledgers of version 0.1.0 have the set-up itself there.
            if fingerprint not in (self._fingerprint(genome, errors, costs), self._setup):
                raise ValueError("its fingerprint is not that of its content")
            return Evaluation(
                genome=tuple(int(choice) for choice in genome.split()),
                errors=tuple(float(error) for error in json.loads(errors)),
                costs={str(name): float(cost) for name, cost in json.loads(costs).items()},
                seconds=float(seconds),
                host=str(host),
                finished=float(finished),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise BevquantError(
                f"{self.path}: the evaluation of genome {str(genome)[:60]!r} was changed or "
                f"damaged ({error}); delete the ledger to begin anew"
            ) from error

    def _in_force(self, host: str, process: int, since: float) -> bool:
        if host == self._host and not _alive(process):
            return False
        return time.time() - since < LEASE_S

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise BevquantError(f"{self.path}: {_explain(error)}") from error
        except OSError as error:
            raise BevquantError(f"{self.path}: cannot be written ({error.strerror})") from error


_SELECT = "SELECT genome, errors, costs, seconds, host, finished, fingerprint FROM evaluations"


def _text(genome: Genome) -> str:
    return " ".join(map(str, genome))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _explain(error: sqlite3.DatabaseError) -> str:
    text = str(error)
    if "readonly" in text or "unable to open" in text:
        return f"the ledger cannot be written ({text}); what it holds is kept"
    if "full" in text or "disk I/O" in text:
        return (
            f"the ledger cannot be written ({text}); make room, then the same command "
            "continues with all that was evaluated"
        )
    if "locked" in text or "busy" in text:
        return f"another process keeps the ledger locked ({text}); try again"
    return f"not a ledger, or a damaged one ({text}); move it away to begin anew"
