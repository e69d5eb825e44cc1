"""Colours and coarse textures of everything that is not ground."""

from enum import IntEnum

import numpy as np

from bevquant.data.world.geometry import Array

_GLASS = np.array([0.10, 0.13, 0.17], dtype=np.float32)
RUBBER = np.array([0.06, 0.06, 0.07], dtype=np.float32)
_HEADLIGHT = np.array([1.0, 0.97, 0.85], dtype=np.float32)
_LIT_WINDOW = np.array([0.9, 0.75, 0.45], dtype=np.float32)
_TAILLIGHT = np.array([0.85, 0.05, 0.05], dtype=np.float32)


class Material(IntEnum):
    """How a box's main colour and accent are laid over its faces."""

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
    result = colour.copy()
    glow = np.zeros(len(colour), dtype=np.float32)
    x, y, z = local[:, 0], local[:, 1], local[:, 2]
    u, v, w = (local / half).T
    side = np.abs(u) < np.abs(v)
    upright = np.maximum(np.abs(u), np.abs(v)) >= np.abs(w)
    along = np.where(side, x, y)

    def where(kind: Material) -> Array:
        return np.asarray(material == kind)

    use_accent = where(Material.DIAGONAL) & (np.mod(along + z + 0.3 * y, 1.5) < 0.5)
    use_accent |= where(Material.BANDS) & (np.mod(w + 1.0, 1.0) > 0.5)
    use_accent |= where(Material.BARS) & (np.mod(x, 0.8) < 0.4)
    use_accent |= where(Material.RIBS) & (np.mod(along, 0.9) < 0.22)
    np.copyto(result, accent, where=use_accent[:, None])

    glass = where(Material.COACH) & upright & (w > -0.05) & (w < 0.6) & (np.mod(along, 1.6) > 0.12)
    glass |= where(Material.CABIN) & upright & (w < 0.75)
    facade = where(Material.FACADE) & upright & (np.mod(along, 3.0) > 1.3)
    facade &= (np.mod(z + half[:, 2], 3.2) > 1.1) & (np.mod(z + half[:, 2], 3.2) < 2.6)
    np.copyto(result, _GLASS, where=(glass | facade)[:, None])
    if night:
        cell = np.floor(along / 3.0).astype(np.int64) * 31 + np.floor(z / 3.2).astype(np.int64) * 17
        lit = facade & (np.mod(cell * 7919, 10) < 4)
        np.copyto(result, _LIT_WINDOW, where=lit[:, None])
        glow[lit] = 0.6

    lamps = (where(Material.BODY) | where(Material.COACH)) & ~side & upright
    lamps &= (np.abs(v) > 0.6) & (w > -0.35) & (w < 0.25)
    lamps &= where(Material.BODY) | (w < -0.2)
    np.copyto(result, _HEADLIGHT, where=(lamps & (u > 0))[:, None])
    np.copyto(result, _TAILLIGHT, where=(lamps & (u < 0))[:, None])
    if night:
        glow[lamps] = 0.7

    leaves = where(Material.FOLIAGE)
    cell = np.floor(along * 3).astype(np.int64) * 73 ^ np.floor(z * 3).astype(np.int64) * 191
    result *= np.where(leaves, 0.75 + 0.05 * np.mod(cell * 7919, 10), 1.0).astype(np.float32)[
        :, None
    ]
    return result, glow
