"""The page in a real browser; skipped where none is installed."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bevquant.report.page import render
from bevquant.report.results import Results
from bevquant.report.scene import FramePicture

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser here: {', '.join(NAMES)}")

Browse = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def browse(results: Results, pictures: tuple[FramePicture, ...], tmp_path: Path) -> Browse:
    """Return a function that opens a page of a folder with the report in it."""
    render(results, pictures, tmp_path / "report.html")

    def run(page: str, *options: str) -> "subprocess.CompletedProcess[str]":
        switches = "--headless --no-sandbox --disable-gpu --no-first-run"
        switches += " --disable-background-networking --hide-scrollbars --enable-logging=stderr"
        return subprocess.run(
            [
                str(BROWSER),
                *switches.split(),
                f"--user-data-dir={tmp_path / 'profile'}",
                *options,
                (tmp_path / page).as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    return run


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_screen(browse: Browse, tmp_path: Path, width: int) -> None:
    # A window cannot be as narrow as a phone, a frame can.
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" src="report.html" style="border:0;width:{width}px;height:844px"></iframe>'
        '<script>onload = () => { const page = document.getElementById("f").contentDocument;'
        "document.title = `width ${page.documentElement.scrollWidth},"
        " ${page.querySelectorAll('svg.bird').length} pictures`; }</script>"
    )
    page = browse("frame.html", "--dump-dom", "--allow-file-access-from-files")
    assert re.findall("<title>(.*)</title>", page.stdout) == [f"width {width}, 4 pictures"]


def test_the_browser_complains_about_nothing(browse: Browse) -> None:
    page = browse("report.html", "--dump-dom")
    assert "What quantization costs" in page.stdout
    assert "CONSOLE" not in page.stderr


def test_a_print_shows_every_table(browse: Browse, tmp_path: Path) -> None:
    pdftotext = shutil.which("pdftotext")
    if pdftotext is None:
        pytest.skip("no pdftotext here (poppler-utils)")
    browse("report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    text = subprocess.run(
        [pdftotext, "-layout", str(tmp_path / "report.pdf"), "-"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert text.count("construction vehicle") >= 8
    assert "norm1" in text
