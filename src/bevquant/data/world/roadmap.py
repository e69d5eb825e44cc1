"""The vector map of a town, in the layout of nuScenes' map expansion (version 1.3)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from shapely import union_all
from shapely.geometry import MultiPolygon, Polygon, box

from bevquant.data.world.geometry import Array
from bevquant.data.world.ground import LAMP_SPACING, LANE, ROAD, WALKWAY, Town
from bevquant.data.world.layout import Block
from bevquant.data.world.tables import Record, token

CLEARANCE = 1.0
"""Lane markings keep this far from the walkway of the crossing street, metres."""

_ZEBRA = (ROAD + 0.5, WALKWAY)
_STOP = (WALKWAY, WALKWAY + 2.0)
_PARK = (WALKWAY + 0.5, WALKWAY + 7.5)
_LAYERS = (
    *("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane"),
    *("ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider"),
    *("traffic_light", "lane_connector"),
)
"""All that the devkit reads; layers without a use here stay empty."""

Ends = tuple[tuple[float, float], tuple[float, float]]


def road_map(name: str, block: Block) -> dict[str, Any]:
    """Return the map expansion of a town, as it is written to ``maps/expansion/NAME.json``.

    What is painted or built is where the sensors see it. Two layers say how the ground is
    used: drivers stop on the last 2 m before a crossing, on their side of the street, and
    park where the verge between two lamps has no tree.
    """
    writer, town = _Writer(name), block.town
    roads, walkable = (_along_streets(town, half) for half in (ROAD, WALKWAY))
    areas = [writer.polygon(polygon) for polygon in _polygons(roads)]
    writer.add("drivable_area", {"polygon_tokens": areas})
    for polygon in _polygons(walkable.difference(roads)):
        writer.add("walkway", {"polygon_token": writer.polygon(polygon)})
    for zebra, stop in _crossings(town):
        road = {"polygon_token": writer.polygon(zebra), "road_segment_token": ""}
        crossing = writer.add("ped_crossing", road)
        writer.add(
            "stop_line",
            {
                "polygon_token": writer.polygon(stop),
                "stop_line_type": "PED_CROSSING",
                "ped_crossing_tokens": [crossing],
                "traffic_light_tokens": [],
                "road_block_token": "",
            },
        )
    for park in _car_parks(block):
        record = {"polygon_token": writer.polygon(park), "orientation": 0.0, "road_block_token": ""}
        writer.add("carpark_area", record)
    for layer, ends in _dividers(town):
        writer.add(layer, {"line_token": writer.line(ends)})
    return {"version": "1.3", "canvas_edge": [town.size, town.size], **writer.layers}


class _Writer:
    """Collects records and the nodes that they share."""

    def __init__(self, name: str) -> None:
        self.layers: dict[str, Any] = {layer: [] for layer in _LAYERS}
        self.layers |= {"arcline_path_3": {}, "connectivity": {}}
        self._name = name

    def add(self, layer: str, record: Record) -> str:
        """Add a record to a layer and return its token."""
        key = token(self._name, layer, len(self.layers[layer]))
        self.layers[layer].append({"token": key, **record})
        return key

    def polygon(self, polygon: Polygon) -> str:
        """Add a polygon and return its token."""
        holes = [{"node_tokens": self._nodes(ring.coords[:-1])} for ring in polygon.interiors]
        outline = self._nodes(polygon.exterior.coords[:-1])
        return self.add("polygon", {"exterior_node_tokens": outline, "holes": holes})

    def line(self, ends: Ends) -> str:
        """Add a line and return its token."""
        return self.add("line", {"node_tokens": self._nodes(ends)})

    def _nodes(self, places: Any) -> list[str]:
        return [
            self.add("node", {"x": round(float(x), 3), "y": round(float(y), 3)}) for x, y in places
        ]


def _along_streets(town: Town, half: float) -> Any:
    """Return the ground within ``half`` metres of the middle of a street."""
    strips = [box(x - half, 0.0, x + half, town.size) for x in town.xs]
    strips += [box(0.0, y - half, town.size, y + half) for y in town.ys]
    return union_all(strips).intersection(box(0.0, 0.0, town.size, town.size))


def _polygons(area: Any) -> list[Polygon]:
    return list(area.geoms) if isinstance(area, MultiPolygon) else [area]


def _crossings(town: Town) -> Iterator[tuple[Polygon, Polygon]]:
    """Yield the zebra crossing of every arm of every junction, and the place to stop there."""
    for x in town.xs:
        for y in town.ys:
            for way in (1.0, -1.0):
                # Traffic keeps right: who comes along x from the +x side drives at y > 0.
                yield (
                    _area(x, y, (way * _ZEBRA[0], way * _ZEBRA[1]), (-ROAD, ROAD)),
                    _area(x, y, (way * _STOP[0], way * _STOP[1]), (0.0, way * ROAD)),
                )
                yield (
                    _area(x, y, (-ROAD, ROAD), (way * _ZEBRA[0], way * _ZEBRA[1])),
                    _area(x, y, (0.0, -way * ROAD), (way * _STOP[0], way * _STOP[1])),
                )


def _area(x: float, y: float, along: tuple[float, float], across: tuple[float, float]) -> Polygon:
    """Return the rectangle at the given offsets from (x, y)."""
    (x0, x1), (y0, y1) = sorted(along), sorted(across)
    return box(x + x0, y + y0, x + x1, y + y1)


def _dividers(town: Town) -> Iterator[tuple[str, Ends]]:
    """Yield layer and end points of the lines between opposite directions and between lanes."""
    for axis, streets, others in ((0, town.ys, town.xs), (1, town.xs, town.ys)):
        free = WALKWAY + CLEARANCE
        borders = (-free, *others, town.size + free)
        for middle in streets:
            for start, stop in ((a + free, b - free) for a, b in pairwise(borders)):
                if start >= stop:
                    continue
                for lateral in (-2 * LANE, 0.0, 2 * LANE):
                    layer = "lane_divider" if lateral else "road_divider"
                    ends = np.array([[start, middle + lateral], [stop, middle + lateral]])
                    (x0, y0), (x1, y1) = (ends if axis == 0 else ends[:, ::-1]).tolist()
                    yield layer, ((x0, y0), (x1, y1))


def _car_parks(block: Block) -> Iterator[Polygon]:
    """Yield the verges between two lamps without a tree."""
    discs, trees = block.posts.discs[:, :2], block.posts.trees
    for axis, streets in ((0, block.town.ys), (1, block.town.xs)):
        for middle in streets:
            for side in (-1.0, 1.0):
                across = side * (discs[:, 1 - axis] - middle)
                lamps = _on(discs, ~trees & (np.abs(across - WALKWAY) < 0.1), axis)
                planted = _on(discs, trees & (across > _PARK[0]) & (across < _PARK[1]), axis)
                for start, stop in pairwise(lamps):
                    free = not ((planted > start) & (planted < stop)).any()
                    if free and stop - start < LAMP_SPACING + 0.1:
                        near, far = sorted(middle + side * np.array(_PARK))
                        corner = (start, near, stop, far)
                        yield box(*corner) if axis == 0 else box(near, start, far, stop)


def _on(discs: Array, chosen: Array, axis: int) -> Array:
    """Return the sorted places of posts along a street."""
    return np.sort(discs[chosen, axis])
