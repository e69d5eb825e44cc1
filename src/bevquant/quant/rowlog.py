"""Rows of results on disk: what stopped half-way is continued, never mixed."""

import json
from pathlib import Path
from typing import Any

from bevquant.errors import BevquantError
from bevquant.files import append_text, write_text


class RowLog:
    """A JSON-lines file: the set-up in the first line, then one finished row a line.

    Attributes:
        rows: all rows so far; a last line that was cut off is not one.
    """

    def __init__(self, path: Path, setup: dict[str, str]) -> None:
        """Start ``path``, or read it to continue.

        Raises:
            BevquantError: the file cannot be read or written, is something else, or was
                started with another set-up.
        """
        self.path = path
        self.rows: list[dict[str, Any]] = []
        try:
            text = path.read_text() if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise BevquantError(f"{path}: cannot be read ({error})") from error
        if text:
            try:
                first, *self.rows = [json.loads(line) for line in text.split("\n")[:-1]]
                started = {str(key): value for key, value in first["setup"].items()}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise BevquantError(
                    f"{path}: not the rows of an earlier run; choose another"
                ) from error
            for key, value in setup.items():
                if started.get(key) != value:
                    raise BevquantError(
                        f"{path}: was started with another {key} ({started.get(key)}, now "
                        f"{value}); choose another file, or delete it"
                    )
        lines = [{"setup": setup}, *self.rows]
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row, on disk at once."""
        self.rows.append(row)
        append_text(self.path, json.dumps(row) + "\n")
