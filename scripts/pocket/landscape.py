"""Render the landscapes that pocket walks go through: objects on all sides, checkered ground, hills around.

A scene is drawn for its walk: nothing stands in the camera's way. The main object, which the prompt names,
stands ahead of the start; around it a loose lattice of objects of one other colour and shape, every third a
grey boulder, so that what comes into view is no surprise.

World: x right, y up, z towards the camera at its start, the ground is y = 0, in the unit of the backend's
steps (0.08 a latent frame), in which the eye is `EYE_HEIGHT` above the ground.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qvg_cli.models.hyworldplay.trajectory import Array
from scripts.pocket.prompts import SceneSpec
from scripts.pocket.scenes import COLORS, FAR, GROUNDS, HALF_HEIGHT, HEIGHT, MEET, SKIES, WIDTH

EYE_HEIGHT = 0.5
MAIN_SIZE, SMALL_SIZE, BOULDER_SIZE = 0.30, 0.23, 0.20
MAIN_DISTANCE, MAIN_ASIDE = (1.3, 2.3), 0.8
LATTICE, LATTICE_JITTER = 1.5, 0.32
NUM_OBJECTS, MAIN_TRIES = 16, 40
YAW = 0.6
# What is left between the camera and anything on its way.
CLEARANCE = 0.22
HAZE_DISTANCE = 4.0
CHECK_RATE = 4.6
LIGHT = (-0.42, 0.80, 0.44)
# Points on the lens beside which an object is surely out of the picture, in sizes of the object.
_MARGIN = 2.2


@dataclass(frozen=True)
class Thing:
    """One object that stands on the ground."""

    shape: str
    size: float
    color: tuple[float, float, float]
    place: tuple[float, float]  # x, z

    @property
    def half_height(self) -> float:
        return HALF_HEIGHT[self.shape] * self.size


@dataclass(frozen=True)
class Landscape:
    """A scene; the first of `things` is the main object."""

    spec: SceneSpec
    things: tuple[Thing, ...]
    ridge_phase: float
    checks: tuple[float, float, float]  # angle and shifts of the ground's pattern


def world_cameras(cameras: Array) -> Array:
    """Cameras of a path in its own axes (x right, y down, z forward) to eye and axes in the world.

    Returns:
        `[T, 4, 3]`: the eye, and the camera's right, down and forward.
    """
    flip = np.array([1.0, -1.0, -1.0])
    eye = cameras[:, :3, 3] * flip + np.array([0.0, EYE_HEIGHT, 0.0])
    axes = cameras[:, :3, :3].transpose(0, 2, 1) * flip
    return np.concatenate([eye[:, None], axes], axis=1)


class _Draw:
    """Draws from a generator, in plain words."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def pick(self, values: list[str]) -> str:
        return values[int(torch.randint(len(values), (), generator=self.generator))]


def draw_landscape(spec: SceneSpec, cameras: Array, generator: torch.Generator) -> Landscape:
    """Draw what the prompt leaves open, for the walk with these cameras (camera to world, path axes)."""
    draw = _Draw(generator)
    way = world_cameras(cameras)[:, 0][:, [0, 2]]

    def is_clear(x: float, z: float, size: float) -> bool:
        return bool(np.hypot(way[:, 0] - x, way[:, 1] - z).min() > size + CLEARANCE)

    things: list[Thing] = []
    for _ in range(MAIN_TRIES):
        distance = draw.uniform(*MAIN_DISTANCE)
        x, z = draw.uniform(-MAIN_ASIDE, MAIN_ASIDE), -distance
        if is_clear(x, z, MAIN_SIZE):
            things.append(Thing(spec.shape, MAIN_SIZE, COLORS[spec.color], (x, z)))
            break
    other = draw.pick([color for color in COLORS if color != spec.color])
    shape = draw.pick(["ball", "cube", "cone", "pillar"])
    red, green, blue = (0.75 * value + 0.12 for value in SKIES[spec.sky][2])
    for x, z, size, is_boulder in _lattice(way.mean(axis=0), draw):
        apart = all(np.hypot(x - t.place[0], z - t.place[1]) > size + t.size + 0.15 for t in things[:1])
        if apart and is_clear(x, z, size):
            color = (red, green, blue) if is_boulder else COLORS[other]
            things.append(Thing("ball" if is_boulder else shape, size, color, (x, z)))
        # At once: a place that is not needed is not drawn.
        if len(things) == NUM_OBJECTS:
            break
    checks = (draw.uniform(0, np.pi / 2), draw.uniform(0, 2 * np.pi), draw.uniform(0, 2 * np.pi))
    return Landscape(spec, tuple(things), draw.uniform(0, 2 * np.pi), checks)


def _lattice(center: np.ndarray, draw: _Draw) -> Iterator[tuple[float, float, float, bool]]:
    """Places around the middle of the way, nearest first: x, z, a size, and whether it is a boulder's."""
    angle = draw.uniform(0, np.pi / 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = np.array([draw.uniform(0, LATTICE), draw.uniform(0, LATTICE)])
    reach = range(-5, 6)
    for i, j in sorted(product(reach, reach), key=lambda node: node[0] ** 2 + node[1] ** 2):
        jitter = [draw.uniform(-LATTICE_JITTER, LATTICE_JITTER) for _ in range(2)]
        x, z = (float(value) for value in center + turn @ (LATTICE * np.array([i, j]) + shift + jitter))
        is_boulder = (i + 2 * j) % 3 == 0
        yield x, z, (BOULDER_SIZE if is_boulder else SMALL_SIZE) * draw.uniform(0.9, 1.1), is_boulder


def camera_rays(axes: Tensor, height: int, width: int) -> Tensor:
    """Unit directions `[T, height * width, 3]` through a lens of the backend's focal lengths."""
    # fx, fy of the backend's default lens, as fractions of the picture's width and height.
    focal = (969.6969696969696 / 1920, 969.6969696969696 / 1080)
    across = ((torch.arange(width, device=axes.device) + 0.5) / width - 0.5) / focal[0]
    down = ((torch.arange(height, device=axes.device) + 0.5) / height - 0.5) / focal[1]
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    local = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).reshape(-1, 3)
    return F.normalize(torch.einsum("rk,tkc->trc", local, axes[:, 1:]), dim=-1)


def _backdrop(
    eye: Tensor, rays: Tensor, colors: Tensor, ridge_phase: Tensor, checks: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance `[T, R]` to the ground (FAR: the sky) and the colour `[T, R, 3]` of ground, hills and sky.

    `colors` `[4, 3]` are those of the horizon, the zenith, the hills and the ground.
    """
    horizon, zenith, hills, ground = colors
    elevation = rays[..., 1:2]
    azimuth = torch.atan2(rays[..., 0:1], -rays[..., 2:3])
    blend = (elevation / 0.45).clamp(0, 1).sqrt()
    sky = torch.lerp(horizon, zenith, blend)
    ridge = (
        0.11 + 0.05 * torch.sin(3 * azimuth + ridge_phase) + 0.03 * torch.sin(8 * azimuth + 2 * ridge_phase)
    )
    sky = torch.lerp(sky, hills, torch.sigmoid((ridge - elevation) / 0.006))

    distance = torch.where(rays[..., 1] < -1e-4, -eye[:, None, 1] / rays[..., 1].clamp(max=-1e-4), FAR)
    place = (eye[:, None] + distance[..., None].clamp(max=60.0) * rays)[..., [0, 2]]
    cosine, sine = checks[0].cos(), checks[0].sin()
    first = CHECK_RATE * (cosine * place[..., 0] + sine * place[..., 1]) + checks[1]
    second = CHECK_RATE * (cosine * place[..., 1] - sine * place[..., 0]) + checks[2]
    haze = torch.exp(-((distance / HAZE_DISTANCE) ** 2))
    shade = 1 + 0.15 * haze * torch.tanh(2.5 * torch.sin(first) * torch.sin(second))
    far = 0.5 * (hills + horizon)
    land = torch.lerp(far, ground * shade[..., None], haze[..., None])
    return distance, torch.where((distance < FAR)[..., None], land, sky)


def _put(
    meet: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    image: Tensor,
    nearest: Tensor,
    eye: Tensor,
    rays: Tensor,
    ground: Tensor,
    thing: Tensor,
) -> tuple[Tensor, Tensor]:
    """Lay one object and its shadow over `image` `[T, R, 3]`.

    `thing` holds its centre, its size, its colour and that of the haze.
    """
    center, size, color, far = thing[:3], thing[3], thing[4:7], thing[7:10]
    half, cosine, sine = center[1], math.cos(YAW), math.sin(YAW)
    light = torch.tensor(LIGHT, device=rays.device)

    # A round soft shadow, thrown away from the light by the object's height.
    place = eye[:, None] + ground.clamp(max=60.0)[..., None] * rays
    dx = place[..., 0] - (center[0] - 0.5 * half * light[0] / light[1])
    dz = place[..., 2] - (center[2] - 0.5 * half * light[2] / light[1])
    gap = (dx * dx + dz * dz).sqrt()
    shadow = 1 - 0.40 * torch.sigmoid((0.95 * size - gap) / (0.18 * size))
    image = torch.where((ground <= nearest)[..., None], image * shadow[..., None], image)

    def turn(v: Tensor) -> Tensor:
        return torch.stack(
            [cosine * v[..., 0] - sine * v[..., 2], v[..., 1], sine * v[..., 0] + cosine * v[..., 2]], dim=-1
        )

    distance, normal = meet(turn(eye - center)[:, None], turn(rays), size.expand(rays.shape[0], 1))
    local = turn(light)
    diffuse = (normal * local).sum(-1).clamp(min=0)
    lit = color * (0.48 + 0.10 * normal[..., 1] + 0.48 * diffuse)[..., None]
    haze = torch.exp(-((distance / HAZE_DISTANCE) ** 2))[..., None]
    image = torch.where((distance < nearest)[..., None], torch.lerp(far, lit, haze), image)
    return image, torch.minimum(nearest, distance)


class Renderer:
    """Renders walks; `compiled` fuses the element-wise work."""

    def __init__(self, device: torch.device, *, compiled: bool = False) -> None:
        self.device = device
        self.put = torch.compile(_put, dynamic=True) if compiled else _put
        self.backdrop = torch.compile(_backdrop, dynamic=True) if compiled else _backdrop

    @torch.no_grad()
    def render(
        self, scene: Landscape, cameras: Array, *, height: int = HEIGHT, width: int = WIDTH, part: int = 40
    ) -> Tensor:
        """Frames `[3, T, height, width]` in [0, 1] of cameras `[T, 4, 4]`, 2x2 samples a pixel."""
        axes = torch.from_numpy(world_cameras(cameras)).float().to(self.device)
        frames = [self._render(scene, some, 2 * height, 2 * width) for some in axes.split(part)]
        return torch.cat([F.avg_pool2d(image, 2) for image in frames]).transpose(0, 1)

    def _render(self, scene: Landscape, axes: Tensor, height: int, width: int) -> Tensor:
        horizon, zenith, hills, brightness = SKIES[scene.spec.sky]
        ground = tuple(value * brightness for value in GROUNDS[scene.spec.ground])
        colors = torch.tensor([horizon, zenith, hills, ground], device=self.device)
        far = 0.5 * (colors[0] + colors[2])
        eye, rays = axes[:, 0].contiguous(), camera_rays(axes, height, width)
        phase = torch.tensor(scene.ridge_phase, device=self.device)
        distance, image = self.backdrop(
            eye, rays, colors, phase, torch.tensor(scene.checks, dtype=torch.float32, device=self.device)
        )
        nearest = distance.clone()
        for thing in scene.things:
            x, z = thing.place
            values = torch.tensor(
                [x, thing.half_height, z, thing.size, *thing.color], dtype=torch.float32, device=self.device
            )
            seen = self._seen(axes, values[:3], thing.size)
            if len(seen):
                image[seen], nearest[seen] = self.put(
                    MEET[thing.shape],
                    image[seen],
                    nearest[seen],
                    eye[seen],
                    rays[seen],
                    distance[seen],
                    torch.cat([values, far]),
                )
        return image.clamp(0, 1).transpose(1, 2).unflatten(-1, (height, width))

    @staticmethod
    def _seen(axes: Tensor, center: Tensor, size: float) -> Tensor:
        """Frames in which an object can be in the picture."""
        local = torch.einsum("tkc,tc->tk", axes[:, 1:], center - axes[:, 0])
        margin = _MARGIN * size
        is_seen = (local[:, 2] > -margin) & (local[:, 0].abs() < local[:, 2].clamp(min=0) + margin)
        return is_seen.nonzero()[:, 0]
