"""The report as one HTML file that needs nothing else: no network, no script."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bevquant.files import write_text
from bevquant.report import figures
from bevquant.report.bars import bars
from bevquant.report.bird import draw_float, draw_quantized
from bevquant.report.camera import draw_camera
from bevquant.report.results import Results, Unquantized
from bevquant.report.rows import rows
from bevquant.report.scene import FramePicture, count
from bevquant.report.summary import scope, summary, verdict


def render(results: Results, pictures: Sequence[FramePicture], path: Path) -> None:
    """Write the report of ``results`` with one section per picture to ``path``, atomically.

    Raises:
        ValueError: ``results.pictures`` does not count exactly these pictures.
        BevquantError: ``path`` cannot be written.
    """
    if results.pictures != tuple(map(count, pictures)):
        raise ValueError("results.pictures and the pictures are not of the same frames")
    environment = Environment(
        loader=PackageLoader("bevquant", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": figures.metric,
        "points": figures.points,
        "megabytes": figures.megabytes,
        "megabits": figures.megabits,
        "ratio": figures.ratio,
        "goal": figures.goal,
    }
    networks = rows(results)
    page = environment.get_template("page.html").render(
        results=results,
        summary=summary(results),
        scope=scope(results),
        verdict=verdict(results),
        networks=networks,
        bars=bars(networks),
        reasons=_by_reason(results.unquantized),
        frames=[_draw(picture) for picture in pictures],
    )
    write_text(path, page)


def _draw(picture: FramePicture) -> dict[str, object]:
    """Return every drawing of one frame and the figures of its caption."""
    change = picture.compare()
    return {
        "counts": count(picture),
        "float": draw_float(picture, change),
        "quantized": draw_quantized(picture, change),
        "cameras": [(view.name, draw_camera(view, change)) for view in picture.cameras],
    }


def _by_reason(layers: Sequence[Unquantized]) -> dict[str, list[Unquantized]]:
    """Return the layers that stayed float, grouped by reason, most layers first."""
    groups = defaultdict(list)
    for layer in layers:
        groups[layer.reason].append(layer)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))
