"""Colours and coarse textures of everything that is not ground."""

from enum import IntEnum

import numpy as np

from bevquant.data.world.geometry import Array

_GLASS = np.array([0.10, 0.13, 0.17], dtype=np.float32)
RUBBER = np.array([0.06, 0.06, 0.07], dtype=np.float32)
_HEADLIGHT = np.array([1.0, 0.97, 0.85], dtype=np.float32)
_LIT_WINDOW = np.array([0.9, 0.75, 0.45], dtype=np.float32)
_TAILLIGHT = np.array([0.85, 0.05, 0.05], dtype=np.float32)
_LEAF_SHADES = np.linspace(0.75, 1.2, 10, dtype=np.float32)


class Material(IntEnum):
    """How a box's main colour and accent are laid over its faces.

    ``COACH`` has a band of windows and lamps, ``CABIN`` glass all round, ``BODY`` lamps,
    ``FACADE`` windows of a house; ``BARK`` is plain, the others are patterns of the accent.
    """

    PLAIN = 0
    DIAGONAL = 1
    BANDS = 2
    BARS = 3
    COACH = 4
    CABIN = 5
    BODY = 6
    FACADE = 7
    FOLIAGE = 8
    RIBS = 9
    BARK = 10


def albedo(
    material: Array, colour: Array, accent: Array, local: Array, half: Array, *, night: bool
) -> tuple[Array, Array]:
    """Return what each hit point's surface looks like.

    Args:
        material: int [n].
        colour: float32 [n, 3], the box's main colour.
        accent: float32 [n, 3].
        local: float32 [n, 3], the point in the box's own axes, metres from its centre.
        half: float32 [n, 3].
        night: lamps and some windows are lit.

    Returns:
        Colour (float32 [n, 3], 0..1) and own light (float32 [n], 0..1).
    """
    surface = _Surface(material, local, half)
    result = np.where(_accented(surface)[:, None], accent, colour)
    windows = _windows(surface)
    np.copyto(result, _GLASS, where=(_glazed(surface) | windows)[:, None])
    lamps = _lamps(surface)
    front = local[:, 0] > 0
    np.copyto(result, _HEADLIGHT, where=(lamps & front)[:, None])
    np.copyto(result, _TAILLIGHT, where=(lamps & ~front)[:, None])
    glow = np.zeros(len(colour), dtype=np.float32)
    if night:
        column, row = surface.cells(3.0, 3.2)
        lit = windows & ((column * 31 + row * 17) * 7919 % 10 < 4)
        np.copyto(result, _LIT_WINDOW, where=lit[:, None])
        glow[lit] = 0.6
        glow[lamps] = 0.7
    leaves = material == Material.FOLIAGE
    column, row = surface.cells(1 / 3, 1 / 3)
    shade = (column * 73 ^ row * 191) * 7919 % 10
    result[leaves] *= _LEAF_SHADES[shade[leaves], None]
    return result, glow


class _Surface:
    """Hit points with the coordinates that textures are drawn in.

    Attributes:
        material: int [n].
        x, z: float32 [n], metres from the box's centre.
        u, v, w: float32 [n], the point in the box's axes in -1..1.
        height: float32 [n], metres above the box's bottom.
        along: float32 [n], metres along the upright face that the point lies on.
        long_side: bool [n], the face is parallel to the box's x axis.
        upright: bool [n], the face is neither top nor bottom.
    """

    def __init__(self, material: Array, local: Array, half: Array) -> None:
        self.material = material
        self.x, self.y, self.z = local.T
        self.u, self.v, self.w = (local / half).T
        self.height = self.z + half[:, 2]
        self.long_side = np.abs(self.u) < np.abs(self.v)
        self.upright = np.maximum(np.abs(self.u), np.abs(self.v)) >= np.abs(self.w)
        self.along = np.where(self.long_side, self.x, self.y)

    def cells(self, width: float, height: float) -> tuple[Array, Array]:
        """Return column and row (int64 [n]) in a grid of cells on the upright faces."""
        column = np.floor(self.along / np.float32(width)).astype(np.int64)
        row = np.floor(self.z / np.float32(height)).astype(np.int64)
        return column, row


def _accented(at: _Surface) -> Array:
    """Return where the accent covers the main colour."""
    diagonal = (at.material == Material.DIAGONAL) & (
        np.mod(at.along + at.z + 0.3 * at.y, 1.5) < 0.5
    )
    bands = (at.material == Material.BANDS) & (np.mod(at.w + 1.0, 1.0) > 0.5)
    bars = (at.material == Material.BARS) & (np.mod(at.x, 0.8) < 0.4)
    ribs = (at.material == Material.RIBS) & (np.mod(at.along, 0.9) < 0.22)
    return np.asarray(diagonal | bands | bars | ribs)


def _glazed(at: _Surface) -> Array:
    """Return where a vehicle has windows."""
    coach = (at.material == Material.COACH) & (at.w > -0.05) & (at.w < 0.6)
    coach &= np.mod(at.along, 1.6) > 0.12
    cabin = (at.material == Material.CABIN) & (at.w < 0.75)
    return np.asarray((coach | cabin) & at.upright)


def _windows(at: _Surface) -> Array:
    """Return where a house has windows: one every 3 m, storeys of 3.2 m."""
    storey = np.mod(at.height, 3.2)
    inside = (np.mod(at.along, 3.0) > 1.3) & (storey > 1.1) & (storey < 2.6)
    return np.asarray((at.material == Material.FACADE) & at.upright & inside)


def _lamps(at: _Surface) -> Array:
    """Return where a vehicle has head- or tail-lights."""
    body, coach = at.material == Material.BODY, at.material == Material.COACH
    low = (at.w > -0.35) & (at.w < np.where(body, 0.25, -0.2))
    ends = ~at.long_side & at.upright & (np.abs(at.v) > 0.6)
    return np.asarray((body | coach) & ends & low)
