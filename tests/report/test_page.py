import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bevquant.errors import BevquantError
from bevquant.report.page import render
from bevquant.report.results import Results
from bevquant.report.scene import FramePicture

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags nest; collects ids, references and machine-readable values."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.values: list[float] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href"):
                self.references.append(str(value))
            elif name == "aria-labelledby":
                self.references.append(f"#{value}")
            elif tag == "data" and name == "value":
                self.values.append(float(str(value)))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(
    results: Results,
    pictures: tuple[FramePicture, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    render(results, pictures, path)
    return path.read_text()


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    return parser


def leaves(value: Any) -> Iterator[Any]:
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list)):
        for child in children:
            yield from leaves(child)
    else:
        yield value


def test_tags_are_balanced_and_ids_unique(outline: Outline) -> None:
    assert not outline.open
    assert len(outline.ids) == len(set(outline.ids))


def test_nothing_is_loaded_from_elsewhere(page: str, outline: Outline) -> None:
    assert "://" not in page
    assert "@import" not in page and "url(" not in page
    assert re.findall(r"<(script|link|iframe|object)\b", page) == []
    for reference in outline.references:
        assert reference.startswith("data:") or reference[1:] in outline.ids


def test_every_figure_of_the_results_is_on_the_page(results: Results, outline: Outline) -> None:
    everything = json.loads(results.model_dump_json(by_alias=True))
    figures = {
        float(leaf)
        for leaf in leaves(everything)
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)
    }
    assert figures <= set(outline.values)


def test_every_word_of_the_results_is_on_the_page(results: Results, outline: Outline) -> None:
    text = "".join(outline.words)
    everything = json.loads(results.model_dump_json(by_alias=True))
    words = {leaf for leaf in leaves(everything) if isinstance(leaf, str)}
    words -= {"at least", "at most"}  # written as inequalities
    missing = {word for word in words if word.replace("_", " ") not in text.replace("_", " ")}
    assert not missing


def test_an_undefined_error_is_a_dash(page: str) -> None:
    errors = page[page.index("Errors of the true positives of float") :]
    cones = errors[errors.index("traffic cone") :].split("</tr>")[0]
    cells = [re.sub(r"<[^>]+>", "", cell).strip() for cell in cones.split("<td>")[1:]]
    assert [cell == "–" for cell in cells] == [False, False, True, True, True]


def test_goals_are_marked_in_words(page: str) -> None:
    goals = page[page.index('id="goals"') : page.index('id="pictures"')]
    assert goals.count("✓ holds") == 8
    assert goals.count("✗ missed") == 1


def test_pictures_name_what_was_lost(page: str, results: Results) -> None:
    for label in ("L1", "L2", "L3", "N1", "N2"):
        assert page.count(f">{label}</b>") >= len(results.pictures)
    assert page.count("data:image/jpeg;base64,") == 6 * len(results.pictures)


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "<attention>" not in page
    assert "&lt;attention&gt; &amp; softmax" in page


def test_pictures_must_be_those_that_were_counted(
    results: Results, pictures: tuple[FramePicture, ...], tmp_path: Path
) -> None:
    changed = dataclasses.replace(pictures[0], min_score=0.6)
    for wrong in (pictures[:1], (changed, pictures[1])):
        with pytest.raises(ValueError, match="not of the same frames"):
            render(results, wrong, tmp_path / "report.html")
    assert not any(tmp_path.iterdir())


def test_a_page_without_pictures_and_float_layers_says_so(results: Results, tmp_path: Path) -> None:
    bare = results.model_copy(update={"pictures": (), "unquantized": ()})
    render(bare, (), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "No frames were drawn." in page and "every layer was quantized" in page


def test_a_folder_that_cannot_be_written_is_one_clear_line(
    results: Results, pictures: tuple[FramePicture, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BevquantError, match="cannot be written"):
        render(results, pictures, tmp_path / "file" / "report.html")
