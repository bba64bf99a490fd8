"""Draw the picture that a walk starts from when none is given: a path through a park, ray-traced with numpy.

Run from the repository's root: python scripts/render_walk_picture.py. The same picture comes out every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

OUT = Path("qvg_cli/data/walk/park.jpg")
WIDTH, HEIGHT = 1280, 704
FOCAL = 0.75 * WIDTH
EYE = np.array([0.0, 1.65, 0.0])
"""Metres; x to the right, y up, z ahead."""
SUN = np.array([0.55, 0.5, 0.35]) / np.linalg.norm([0.55, 0.5, 0.35])
FAR = 400.0
ROWS = 32
"""Of pixels traced together, to bound the memory."""


@dataclass(frozen=True)
class Ball:
    """A clump of leaves."""

    centre: Array
    radius: float
    tint: Array


@dataclass(frozen=True)
class Trunk:
    """A tree's trunk, upright."""

    x: float
    z: float
    radius: float
    height: float


def hashed(cells: Array) -> Array:
    """Numbers in 0 .. 1 for `[..., 3]` whole cells."""
    dots = cells @ np.array([127.1, 311.7, 74.7])
    return np.modf(np.abs(np.sin(dots) * 43758.5453))[0]


def noise(points: Array) -> Array:
    """Smooth noise in 0 .. 1 at `[..., 3]` points, one cell a unit."""
    cell = np.floor(points)
    weight = points - cell
    weight = weight * weight * (3 - 2 * weight)
    total = np.zeros(points.shape[:-1])
    for corner in np.ndindex(2, 2, 2):
        offset = np.array(corner, dtype=np.float64)
        share = np.prod(np.where(offset == 1, weight, 1 - weight), axis=-1)
        total += share * hashed(cell + offset)
    return total


def layered(points: Array, octaves: int) -> Array:
    """Noise at several scales, in 0 .. 1."""
    total, size = np.zeros(points.shape[:-1]), 0.0
    for octave in range(octaves):
        total += 0.5**octave * noise(points * 2.0**octave + 17.0 * octave)
        size += 0.5**octave
    return total / size


def plant(generator: np.random.Generator) -> tuple[list[Ball], list[Trunk]]:
    """Two rows of trees along the path, and a wood far behind."""
    balls: list[Ball] = []
    trunks: list[Trunk] = []
    for row in range(7):
        for side in (-1, 1):
            z = 6.0 + 6.5 * row + generator.uniform(-0.8, 0.8)
            x = path_centre(np.array(z)).item() + side * generator.uniform(4.2, 5.4)
            tall = generator.uniform(3.0, 3.8)
            trunks.append(Trunk(x, z, generator.uniform(0.16, 0.24), tall + 1.2))
            balls += crown(generator, np.array([x, tall + 1.6, z]), 2.0, 44)
    for _ in range(110):
        x, z = generator.uniform(-70, 70), generator.uniform(62, 95)
        if abs(x - path_centre(np.array(z)).item()) > 6:
            balls += crown(generator, np.array([x, generator.uniform(2, 6), z]), 4.5, 9)
    return balls, trunks


def crown(generator: np.random.Generator, centre: Array, spread: float, count: int) -> list[Ball]:
    """A tree's leaves: balls around `centre`."""
    balls = []
    tint = np.array([0.17, 0.30, 0.07]) * generator.uniform(0.85, 1.2) + [generator.uniform(0, 0.05), 0, 0]
    for _ in range(count):
        direction = generator.normal(size=3)
        direction /= np.linalg.norm(direction)
        place = centre + direction * spread * generator.random() ** 0.5 * np.array([1.0, 0.75, 1.0])
        balls.append(Ball(place, spread * generator.uniform(0.22, 0.4), tint * generator.uniform(0.85, 1.15)))
    return balls


def path_centre(z: Array) -> Array:
    """Where the path's middle is, to the right."""
    return 0.9 * np.sin(z / 14.0)


def hit_ball(origin: Array, rays: Array, ball: Ball) -> Array:
    """Distance along `[n, 3]` rays to the leaves of a ball; holes between leaves let rays through."""
    offset = origin - ball.centre
    middle = (rays * offset).sum(-1)
    inside = middle**2 - ((offset * offset).sum(-1) - ball.radius**2)
    distance = np.full(len(rays), np.inf)
    touched = np.flatnonzero(inside > 0)
    for sign in (-1, 1):
        open_rays = touched[~np.isfinite(distance[touched])]
        along = -middle[open_rays] + sign * np.sqrt(inside[open_rays])
        start = origin if origin.ndim == 1 else origin[open_rays]
        points = start + rays[open_rays] * along[:, None]
        solid = (along > 1e-2) & (layered(points * 9.0, 3) > 0.5)
        distance[open_rays[solid]] = along[solid]
    return distance


def hit_trunk(origin: Array, rays: Array, trunk: Trunk) -> Array:
    """Distance along `[n, 3]` rays to a trunk."""
    flat = rays[:, [0, 2]]
    offset = origin[..., [0, 2]] - np.array([trunk.x, trunk.z])
    a = (flat * flat).sum(-1)
    b = (flat * offset).sum(-1)
    inside = b * b - a * ((offset * offset).sum(-1) - trunk.radius**2)
    distance = np.full(len(rays), np.inf)
    along = (-b - np.sqrt(np.maximum(inside, 0))) / a
    height = origin[..., 1] + rays[:, 1] * along
    solid = (inside > 0) & (along > 1e-2) & (height > 0) & (height < trunk.height)
    distance[solid] = along[solid]
    return distance


def in_shadow(points: Array, balls: list[Ball], trunks: list[Trunk]) -> NDArray[np.bool_]:
    """Whether something stands between `[n, 3]` points and the sun."""
    dark = np.zeros(len(points), dtype=bool)
    rays = np.broadcast_to(SUN, points.shape)
    for ball in balls:
        light = np.flatnonzero(~dark)
        offset = points[light] - ball.centre
        middle = offset @ SUN
        near = light[((offset * offset).sum(-1) - middle**2 < ball.radius**2) & (middle < 0)]
        if len(near):
            dark[near] = np.isfinite(hit_ball(points[near], rays[near], ball))
    for trunk in trunks:
        dark |= np.isfinite(hit_trunk(points, rays, trunk))
    return dark


def sky(rays: Array) -> Array:
    """Colour of the sky along `[n, 3]` rays, with clouds and a glow around the sun."""
    up = np.clip(rays[:, 1], 0.0, 1.0)[:, None]
    colour = np.array([0.78, 0.86, 0.93]) * (1 - up**0.5) + np.array([0.22, 0.45, 0.80]) * up**0.5
    plane = rays / np.maximum(rays[:, 1:2], 0.03)
    clouds = layered(np.stack([plane[:, 0], np.full(len(rays), 3.0), plane[:, 2]], -1) * 0.55, 5)
    cover = np.clip((clouds - 0.52) * 5.0, 0, 1)[:, None] * np.clip(up * 5, 0, 1)
    colour = colour * (1 - cover) + np.array([0.97, 0.96, 0.94]) * cover
    glow = np.clip(rays @ SUN, 0, 1)[:, None]
    return colour + np.array([0.35, 0.28, 0.16]) * glow**24


def ground(points: Array, distance: Array) -> Array:
    """Colour of the ground at `[n, 3]` points: gravel on the path, grass beside it."""
    detail = np.clip(18.0 / distance, 0, 1)[:, None]
    grain = layered(points * np.array([22.0, 1.0, 9.0]), 3)[:, None]
    patches = layered(points * 0.35, 4)[:, None]
    grass = np.array([0.16, 0.27, 0.06]) * (0.75 + 0.5 * patches) * (1 + (grain - 0.5) * 1.1 * detail)
    grass += np.array([0.06, 0.05, 0.0]) * np.clip(patches - 0.5, 0, 1)
    pebbles = layered(points * 38.0, 3)[:, None]
    worn = layered(points * 1.3, 3)[:, None]
    gravel = np.array([0.46, 0.41, 0.33]) * (0.85 + 0.3 * worn) * (1 + (pebbles - 0.5) * 0.6 * detail)
    edge = np.abs(points[:, 0] - path_centre(points[:, 2])) - 1.35 + (worn[:, 0] - 0.5) * 0.7
    on_path = np.clip(0.5 - edge * 5.0, 0, 1)[:, None]
    return gravel * on_path + grass * (1 - on_path)


def trace(rays: Array, balls: list[Ball], trunks: list[Trunk]) -> Array:
    """Colour along `[n, 3]` rays from the eye, linear light."""
    nearest = np.where(rays[:, 1] < 0, -EYE[1] / np.minimum(rays[:, 1], -1e-9), np.inf)
    kind = np.where(nearest < FAR, 0, -1)
    which = np.zeros(len(rays), dtype=int)
    things = [(1, index, ball) for index, ball in enumerate(balls)]
    things += [(2, index, trunk) for index, trunk in enumerate(trunks)]
    for code, index, thing in things:
        found = hit_ball(EYE, rays, thing) if isinstance(thing, Ball) else hit_trunk(EYE, rays, thing)
        closer = found < nearest
        nearest[closer], kind[closer], which[closer] = found[closer], code, index

    colour = sky(rays)
    hit = np.flatnonzero(kind >= 0)
    distance = nearest[hit]
    points = EYE + rays[hit] * distance[:, None]
    albedo, normal = surface(points, distance, kind[hit], which[hit], balls, trunks)
    lit = ~in_shadow(points + normal * 0.02, balls, trunks)
    toward = np.clip((normal * SUN).sum(-1), 0, 1) * lit
    through = np.where(kind[hit] == 1, 0.25 * lit, 0.0)
    above = 0.5 + 0.5 * normal[:, 1]
    light = (toward + through)[:, None] * np.array([2.5, 2.2, 1.75])
    light = light + above[:, None] * np.array([0.42, 0.52, 0.66])
    haze = (1 - np.exp(-distance / 300.0))[:, None]
    colour[hit] = albedo * light * (1 - haze) + np.array([0.72, 0.80, 0.87]) * haze
    return colour


def surface(
    points: Array,
    distance: Array,
    kind: NDArray[np.int_],
    which: NDArray[np.int_],
    balls: list[Ball],
    trunks: list[Trunk],
) -> tuple[Array, Array]:
    """Colour and normal at `[n, 3]` points of the ground, of leaves or of trunks."""
    albedo = ground(points, distance)
    normal = np.tile([0.0, 1.0, 0.0], (len(points), 1))
    leaves = np.flatnonzero(kind == 1)
    if len(leaves):
        centres = np.array([ball.centre for ball in balls])[which[leaves]]
        tints = np.array([ball.tint for ball in balls])[which[leaves]]
        outward = points[leaves] - centres
        bumps = np.stack([noise(points[leaves] * 16.0 + shift) for shift in (0.0, 31.0, 67.0)], -1) - 0.5
        outward = outward / np.linalg.norm(outward, axis=-1, keepdims=True) + 1.4 * bumps
        normal[leaves] = outward / np.linalg.norm(outward, axis=-1, keepdims=True)
        albedo[leaves] = tints * (0.6 + 0.8 * noise(points[leaves] * 9.0)[:, None])
    bark = np.flatnonzero(kind == 2)
    if len(bark):
        places = np.array([(trunk.x, trunk.z) for trunk in trunks])[which[bark]]
        outward = np.zeros((len(bark), 3))
        outward[:, [0, 2]] = points[bark][:, [0, 2]] - places
        normal[bark] = outward / np.linalg.norm(outward, axis=-1, keepdims=True)
        rough = layered(points[bark] * np.array([14.0, 3.0, 14.0]), 3)[:, None]
        albedo[bark] = np.array([0.20, 0.15, 0.11]) * (0.5 + rough)
    return albedo, normal


def main() -> None:
    """Render and save."""
    balls, trunks = plant(np.random.default_rng(5))
    image = np.zeros((HEIGHT, WIDTH, 3))
    for top in range(0, HEIGHT, ROWS):
        rows, columns = np.mgrid[top : top + ROWS, 0:WIDTH] + 0.5
        rays = np.stack([columns - WIDTH / 2, 0.46 * HEIGHT - rows, np.full(rows.shape, FOCAL)], -1)
        rays = rays.reshape(-1, 3) / np.linalg.norm(rays.reshape(-1, 3), axis=-1, keepdims=True)
        image[top : top + ROWS] = trace(rays, balls, trunks).reshape(ROWS, WIDTH, 3)
    # A filmic curve keeps sunlit gravel and sky from clipping.
    image *= 0.55
    shown = image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14)
    levels = np.rint(255 * np.clip(shown, 0, 1) ** (1 / 2.2)).astype(np.uint8)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(OUT, quality=88)


if __name__ == "__main__":
    main()
