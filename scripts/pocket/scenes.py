"""Render the scenes that the pocket model is trained on: one lit object that moves over a ground under a sky.

Everything is an analytic function of absolute time, so any frame of any clip can be rendered on its own, and
all surfaces are met by closed-form ray intersections, so a GPU renders thousands of frames a second. What the
prompt does not name (phase, yaw, light, a few centimetres) varies little, because a four-step sampler must
commit to it.

World: x right, y up, z towards the camera; lengths in metres; the ground is y = 0; times are pixel-frame
indices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.pocket.prompts import SceneSpec

HEIGHT, WIDTH, FRAMES_PER_SECOND = 128, 224, 16
MOTION_PERIOD_FRAMES = 40
CAMERA_PERIOD_FRAMES = 96

COLORS = {
    "red": (0.92, 0.10, 0.10),
    "orange": (1.00, 0.47, 0.04),
    "yellow": (0.98, 0.88, 0.08),
    "green": (0.08, 0.68, 0.16),
    "blue": (0.10, 0.28, 0.95),
    "purple": (0.58, 0.12, 0.82),
}
GROUNDS = {
    "grass": (0.47, 0.58, 0.38),
    "sand": (0.80, 0.72, 0.57),
    "snow": (0.88, 0.91, 0.95),
    "stone": (0.50, 0.50, 0.53),
}
# Colour at the horizon, colour at the top of the picture, colour of the hills, brightness of the ground.
SKIES = {
    "day": ((0.82, 0.89, 0.95), (0.50, 0.66, 0.86), (0.55, 0.64, 0.70), 1.0),
    "sunset": ((0.98, 0.80, 0.62), (0.66, 0.58, 0.70), (0.55, 0.45, 0.48), 0.86),
    "night": ((0.17, 0.19, 0.28), (0.05, 0.06, 0.12), (0.09, 0.10, 0.16), 0.45),
    "cloudy": ((0.80, 0.81, 0.83), (0.60, 0.62, 0.66), (0.52, 0.54, 0.57), 0.82),
}
SHAPES = ("ball", "cube", "cone", "pillar", "diamond")
MOTIONS = ("rest", "bounce", "slide", "circle", "approach")
CAMERAS = ("fixed", "pan", "orbit")
SIZES = {"small": 0.52, "medium": 0.76, "large": 0.94}
# Half of the shape's height and the radius of its shadow, both in units of the size.
HALF_HEIGHT = {"ball": 1.0, "cube": 0.85, "cone": 1.10, "pillar": 1.30, "diamond": 1.20}
SHADOW_RADIUS = {"ball": 0.80, "cube": 0.95, "cone": 0.80, "pillar": 0.52, "diamond": 0.80}
BOULDERS = ((-3.4, 0.15, -3.6, 0.75), (3.6, 0.10, -4.8, 0.95), (0.9, 0.10, -8.0, 0.9))

CAMERA_DISTANCE, CAMERA_HEIGHT, CAMERA_TARGET = 7.0, 1.55, 1.05
TAN_HALF_FOV = math.tan(math.radians(17.5))
PAN_ANGLE, ORBIT_ANGLE = 0.12, 0.32
FAR = 1e6


@dataclass
class Scenes:
    """A batch of scenes as tensors: named values as indices or colours, and what the prompt does not name."""

    shape: Tensor  # [B] index into SHAPES, as are the two below into their tables
    motion: Tensor
    camera: Tensor
    size: Tensor  # [B] metres
    color: Tensor  # [B, 3] as are the colours below
    ground: Tensor
    horizon: Tensor
    zenith: Tensor
    hills: Tensor
    half_height: Tensor  # [B] metres
    shadow_radius: Tensor
    phase: Tensor  # [B] radians, where the motion is at time 0
    camera_phase: Tensor
    yaw: Tensor
    light_angle: Tensor
    offset: Tensor  # [B, 2] metres on the ground

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{name: value.to(device) for name, value in vars(self).items()})

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{name: value[index] for name, value in vars(self).items()})


def make_scenes(specs: list[SceneSpec], generator: torch.Generator) -> Scenes:
    """Turn named scenes into tensors on the CPU and draw what the names leave open."""
    count = len(specs)

    def spread(width: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * width

    def table(values: list[tuple[float, ...]]) -> Tensor:
        return torch.tensor(values)

    size = torch.tensor([SIZES[s.size] for s in specs]) * (1 + spread(0.05))
    brightness = torch.tensor([SKIES[s.sky][3] for s in specs])
    return Scenes(
        shape=torch.tensor([SHAPES.index(s.shape) for s in specs]),
        motion=torch.tensor([MOTIONS.index(s.motion) for s in specs]),
        camera=torch.tensor([CAMERAS.index(s.camera) for s in specs]),
        size=size,
        color=table([COLORS[s.color] for s in specs]),
        ground=table([GROUNDS[s.ground] for s in specs]) * brightness[:, None],
        horizon=table([SKIES[s.sky][0] for s in specs]),
        zenith=table([SKIES[s.sky][1] for s in specs]),
        hills=table([SKIES[s.sky][2] for s in specs]),
        half_height=torch.tensor([HALF_HEIGHT[s.shape] for s in specs]) * size,
        shadow_radius=torch.tensor([SHADOW_RADIUS[s.shape] for s in specs]) * size,
        phase=0.6 + spread(0.7),
        camera_phase=spread(0.5),
        yaw=0.6 + spread(0.15),
        light_angle=-0.5 + spread(0.25),
        offset=torch.stack([spread(0.2), spread(0.15)], dim=-1),
    )


def object_positions(scenes: Scenes, times: Tensor) -> Tensor:
    """Return the centre of the object, `[B, T, 3]`, at pixel-frame `times` `[B, T]`."""
    angle = 2 * math.pi * times / MOTION_PERIOD_FRAMES + scenes.phase[:, None]
    sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    by_motion = {
        "rest": (zero, zero, zero),
        "bounce": (zero, 1.05 * sine.abs(), zero),
        "slide": (1.75 * sine, zero, zero),
        "circle": (1.5 * cosine, zero, 1.5 * sine),
        "approach": (zero, zero, 1.8 * sine),
    }
    paths = torch.stack([torch.stack(by_motion[name], dim=-1) for name in MOTIONS], dim=1)
    position = paths.gather(1, scenes.motion.view(-1, 1, 1, 1).expand(-1, 1, *paths.shape[2:]))[:, 0]
    base = torch.stack([scenes.offset[:, 0], scenes.half_height, scenes.offset[:, 1]], dim=-1)
    return position + base[:, None]


def camera_rays(scenes: Scenes, times: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the eye `[N, 3]` and unit ray directions `[N, height * width, 3]` of the N = B * T frames."""
    sway = torch.sin(2 * math.pi * times / CAMERA_PERIOD_FRAMES + scenes.camera_phase[:, None])
    orbit = torch.where(scenes.camera[:, None] == CAMERAS.index("orbit"), ORBIT_ANGLE * sway, 0.0).flatten()
    pan = torch.where(scenes.camera[:, None] == CAMERAS.index("pan"), PAN_ANGLE * sway, 0.0).flatten()
    level = torch.full_like(orbit, CAMERA_HEIGHT)
    eye = torch.stack([CAMERA_DISTANCE * orbit.sin(), level, CAMERA_DISTANCE * orbit.cos()], dim=-1)

    heading = orbit + pan
    pitch = math.atan2(CAMERA_HEIGHT - CAMERA_TARGET, CAMERA_DISTANCE)
    zero = torch.zeros_like(heading)
    right = torch.stack([heading.cos(), zero, -heading.sin()], dim=-1)
    forward = torch.stack(
        [-heading.sin() * math.cos(pitch), zero - math.sin(pitch), -heading.cos() * math.cos(pitch)], dim=-1
    )
    up = torch.linalg.cross(right, forward)
    rows = (1 - 2 * (torch.arange(height, device=eye.device) + 0.5) / height) * TAN_HALF_FOV
    columns = (2 * (torch.arange(width, device=eye.device) + 0.5) / width - 1) * TAN_HALF_FOV * width / height
    rows, columns = (grid.reshape(1, -1, 1) for grid in torch.meshgrid(rows, columns, indexing="ij"))
    return eye, F.normalize(forward[:, None] + rows * up[:, None] + columns * right[:, None], dim=-1)


def _slabs(origin: Tensor, direction: Tensor, planes: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Meet a ray with a convex body bounded by pairs of planes `planes` `[P, 3]` at distance `extent`."""
    speed = direction @ planes.T
    speed = torch.where(speed.abs() < 1e-6, torch.full_like(speed, 1e-6), speed)
    start = origin @ planes.T
    near, axis = ((-torch.sign(speed) * extent - start) / speed).max(dim=-1)
    far = ((torch.sign(speed) * extent - start) / speed).amin(dim=-1)
    normal = -torch.sign(speed.gather(-1, axis[..., None])) * planes[axis]
    return torch.where((near < far) & (near > 0), near, FAR), normal


def _quadratic_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Smaller root of a t^2 + 2 b t + c, FAR where there is none."""
    discriminant = b * b - a * c
    root = (-b - discriminant.clamp(min=0).sqrt()) / a
    return torch.where((discriminant > 0) & (root > 0), root, FAR)


def _meet_ball(origin: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones_like(direction[..., 0])
    distance = _quadratic_root(ones, (origin * direction).sum(-1), (origin * origin).sum(-1) - size**2)
    return distance, (origin + distance[..., None] * direction) / size[..., None]


def _meet_cube(origin: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    return _slabs(
        origin, direction, torch.eye(3, device=origin.device), HALF_HEIGHT["cube"] * size[..., None]
    )


def _meet_diamond(origin: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    signs = [(1.0, 1.0, 1.0), (1.0, 1.0, -1.0), (1.0, -1.0, 1.0), (-1.0, 1.0, 1.0)]
    planes = torch.tensor(signs, device=origin.device) / math.sqrt(3)
    # Narrower than high: the body is an octahedron seen in a space stretched sideways.
    stretch = torch.tensor([1.3, 1.0, 1.3], device=origin.device)
    extent = HALF_HEIGHT["diamond"] * size[..., None] / math.sqrt(3)
    distance, normal = _slabs(origin * stretch, direction * stretch, planes, extent)
    return distance, F.normalize(normal * stretch, dim=-1)


def _meet_pillar(origin: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    radius, half = 0.5 * size, HALF_HEIGHT["pillar"] * size
    flat = torch.tensor([1.0, 0.0, 1.0], device=origin.device)
    across, start = direction * flat, origin * flat
    side = _quadratic_root((across**2).sum(-1), (start * across).sum(-1), (start**2).sum(-1) - radius**2)
    point = origin + side[..., None] * direction
    side = torch.where(point[..., 1].abs() <= half, side, FAR)
    top = (half - origin[..., 1]) / direction[..., 1]
    disc = origin + top[..., None] * direction
    top = torch.where((top > 0) & ((disc * flat) ** 2).sum(-1).le(radius**2), top, FAR)
    is_top = (top < side)[..., None]
    upward = torch.tensor([0.0, 1.0, 0.0], device=origin.device)
    return torch.minimum(side, top), torch.where(is_top, upward, point * flat / radius[..., None])


def _meet_cone(origin: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Upright cone with the apex up; its base stands on the ground or looks away from a camera above it."""
    half = HALF_HEIGHT["cone"] * size
    slope = (size / (2 * half)) ** 2
    weight = torch.stack([torch.ones_like(slope), -slope, torch.ones_like(slope)], dim=-1)
    start = origin - torch.stack([torch.zeros_like(half), half, torch.zeros_like(half)], dim=-1)
    a = (direction**2 * weight).sum(-1)
    b = (start * direction * weight).sum(-1)
    c = (start**2 * weight).sum(-1)
    distance = _quadratic_root(a, b, c)
    point = start + distance[..., None] * direction
    on_body = (point[..., 1] <= 0) & (point[..., 1] >= -2 * half)
    base = (-half - origin[..., 1]) / direction[..., 1]
    disc = origin + base[..., None] * direction
    on_base = (base > 0) & (disc[..., 0] ** 2 + disc[..., 2] ** 2 <= size**2)
    base = torch.where(on_base, base, FAR)
    distance = torch.where(on_body, distance, FAR)
    down = torch.tensor([0.0, -1.0, 0.0], device=origin.device)
    normal = torch.where((base < distance)[..., None], down, F.normalize(point * weight, dim=-1))
    return torch.minimum(distance, base), normal


MEET = {
    "ball": _meet_ball,
    "cube": _meet_cube,
    "cone": _meet_cone,
    "pillar": _meet_pillar,
    "diamond": _meet_diamond,
}


def _meet_object(scenes: Scenes, eye: Tensor, rays: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Distance `[N, R]` to the object (FAR: missed) and its surface normal `[N, R, 3]`, along the rays."""
    frames = centers.shape[1]
    cosine, sine = scenes.yaw.cos().repeat_interleave(frames), scenes.yaw.sin().repeat_interleave(frames)
    turn = torch.zeros(len(cosine), 3, 3, device=eye.device)
    turn[:, 0, 0], turn[:, 0, 2], turn[:, 1, 1] = cosine, -sine, 1
    turn[:, 2, 0], turn[:, 2, 2] = sine, cosine
    origin = torch.einsum("nij,nj->ni", turn, eye - centers.flatten(0, 1))[:, None]
    direction = torch.einsum("nij,nrj->nri", turn, rays)
    size = scenes.size.repeat_interleave(frames)[:, None]
    shape = scenes.shape.repeat_interleave(frames)
    distance = torch.full_like(rays[..., 0], FAR)
    normal = torch.zeros_like(rays)
    for index, name in enumerate(SHAPES):
        chosen = (shape == index).nonzero()[:, 0]
        if len(chosen):
            distance[chosen], normal[chosen] = MEET[name](origin[chosen], direction[chosen], size[chosen])
    return distance, torch.einsum("nji,nrj->nri", turn, normal)


def _sky(scenes: Scenes, frames: int, rays: Tensor) -> Tensor:
    """Colour of the sky with a line of soft hills at the horizon, `[N, R, 3]`."""

    def each(colors: Tensor) -> Tensor:
        return colors.repeat_interleave(frames, dim=0)[:, None]

    elevation = rays[..., 1:2]
    azimuth = torch.atan2(rays[..., 0:1], -rays[..., 2:3])
    blend = (elevation / 0.25).clamp(0, 1).sqrt()
    sky = torch.lerp(each(scenes.horizon), each(scenes.zenith), blend)
    ridge = 0.045 + 0.022 * torch.sin(5 * azimuth + 1) + 0.012 * torch.sin(13 * azimuth + 2)
    return torch.lerp(sky, each(scenes.hills), torch.sigmoid((ridge - elevation) / 0.004))


def _ground(
    scenes: Scenes, eye: Tensor, rays: Tensor, centers: Tensor, light: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance `[N, R]` to the ground and its colour there, with pattern, shadows and haze, `[N, R, 3]`."""
    frames = centers.shape[1]
    distance = torch.where(rays[..., 1] < -1e-4, -eye[:, None, 1] / rays[..., 1].clamp(max=-1e-4), FAR)
    place = (eye[:, None] + distance[..., None].clamp(max=200.0) * rays)[..., [0, 2]]
    haze = torch.exp(-((distance / 28.0) ** 2))
    pattern = torch.sin(1.6 * place[..., 0]) * torch.sin(1.6 * place[..., 1])
    shade = 1 + 0.07 * haze * torch.tanh(2.5 * pattern)

    # The shadow is a capsule on the ground from below the object to where the light throws its top.
    center = centers.flatten(0, 1)
    half = scenes.half_height.repeat_interleave(frames)[:, None]
    radius = scenes.shadow_radius.repeat_interleave(frames)[:, None]
    slant = -light[:, [0, 2]] / light[:, 1:2]
    low = center[:, [0, 2]] + slant * (center[:, 1:2] - 0.6 * half)
    high = center[:, [0, 2]] + slant * (center[:, 1:2] + 0.5 * half)
    axis = high - low
    along = (((place - low[:, None]) * axis[:, None]).sum(-1) / (axis**2).sum(-1)[:, None]).clamp(0, 1)
    gap = (place - low[:, None] - along[..., None] * axis[:, None]).norm(dim=-1)
    softness = 0.10 + 0.10 * (center[:, 1:2] - half).clamp(min=0)
    shade = shade * (1 - 0.45 * torch.sigmoid((0.85 * radius - gap) / softness))
    for x, _, z, size in BOULDERS:
        spot = torch.tensor([x + 0.15, z], device=eye.device)
        shade = shade * (1 - 0.35 * torch.sigmoid((0.95 * size - (place - spot).norm(dim=-1)) / 0.12))
    color = scenes.ground.repeat_interleave(frames, dim=0)[:, None] * shade[..., None]
    return distance, torch.lerp(
        scenes.hills.repeat_interleave(frames, dim=0)[:, None], color, haze[..., None]
    )


def render(scenes: Scenes, times: Tensor, *, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Render `[B, 3, T, height, width]` in [0, 1] at pixel-frame `times` `[B, T]`, 2x2 samples a pixel."""
    frames = times.shape[1]
    eye, rays = camera_rays(scenes, times, 2 * height, 2 * width)
    centers = object_positions(scenes, times)
    angle = scenes.light_angle.repeat_interleave(frames)
    light = F.normalize(
        torch.stack([angle.sin(), torch.full_like(angle, 1.1), angle.cos() * 0.8], dim=-1), dim=-1
    )

    def lit(color: Tensor, normal: Tensor) -> Tensor:
        diffuse = torch.einsum("nri,ni->nr", normal, light).clamp(min=0)
        return color * (0.48 + 0.10 * normal[..., 1] + 0.48 * diffuse)[..., None]

    nearest, image = _ground(scenes, eye, rays, centers, light)
    image = torch.where((nearest < FAR)[..., None], image, _sky(scenes, frames, rays))
    stone = 0.75 * scenes.hills.repeat_interleave(frames, dim=0)[:, None] + 0.12
    for x, y, z, size in BOULDERS:
        origin = (eye - torch.tensor([x, y, z], device=eye.device))[:, None]
        distance, normal = _meet_ball(origin, rays, torch.full_like(nearest, size))
        image = torch.where((distance < nearest)[..., None], lit(stone, normal), image)
        nearest = torch.minimum(nearest, distance)
    distance, normal = _meet_object(scenes, eye, rays, centers)
    color = scenes.color.repeat_interleave(frames, dim=0)[:, None]
    image = torch.where((distance < nearest)[..., None], lit(color, normal), image)
    image = image.clamp(0, 1).transpose(1, 2).unflatten(-1, (2 * height, 2 * width))
    return F.avg_pool2d(image, 2).unflatten(0, (-1, frames)).transpose(1, 2)
