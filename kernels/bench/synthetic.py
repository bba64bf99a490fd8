"""Keys, values and queries that look like a video model's, from a seed, for benches without a model.

Tokens lie on a `(frames, height, width)` grid. A token's feature vector is a sum of: the soft Voronoi cell
of one of 48 moving objects, Gaussian fields of three sizes in space and time, a drift of whole frames, and
token noise of log-normal strength. Each head maps features to channels through a random map with a
power-law spectrum and adds a full-rank floor. Keys get heavy-tailed channel offsets, a per-token RMS norm
and log-normal channel gains; values get mild gains and log-normal token norms; queries share half of the
key map and have gains that oppose the keys'.

The three levels differ in how much of a token its cluster predicts, set to match figures of real models:
the energy left by k-means with 256 centroids over the total, the number of principal components that hold
80 % and 95 %.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME = (30, 52)
"""Tokens of one latent frame at 480 x 832 pixels, as rows and columns."""

FEATURES = 64
NUM_OBJECTS = 48
FIELD_SIZES = ((1.5, 1.5), (4.0, 4.0), (10.0, 8.0))
"""Standard deviation of each field's blur in tokens and in frames."""


@dataclass(frozen=True)
class Level:
    """How strong each part of a token's feature vector is, as standard deviations.

    Attributes:
        objects: Of the moving cells' own features.
        fields: Of the Gaussian fields, from small to large.
        drift: Of the features shared by a whole frame.
        noise: Of what nothing predicts, within the feature space.
        floor: The same for every channel of a head, outside it; one for keys, one for values.
        decay: Exponent of the map's power-law spectrum, for keys and for values.
        offset: Of the keys' channel offsets.
    """

    objects: float
    fields: tuple[float, float, float]
    drift: float
    noise: float
    floor: tuple[float, float]
    decay: tuple[float, float]
    offset: float


LEVELS = {
    "low": Level(1.0, (0.45, 0.40, 0.4), 0.2, 0.65, (0.40, 0.68), (0.40, 0.15), 1.3),
    "mid": Level(1.0, (0.30, 0.30, 0.4), 0.2, 0.27, (0.20, 0.27), (0.45, 0.35), 1.2),
    "high": Level(1.0, (0.10, 0.15, 0.3), 0.2, 0.08, (0.08, 0.10), (0.60, 0.50), 1.1),
}


@dataclass(frozen=True)
class Sample:
    """One span of a layer.

    Attributes:
        key: `[1, H, S, D]` float32, before any rotation.
        value: `[1, H, S, D]` float32.
        query: `[1, H, Q, D]` float32, before any rotation.
        grid: Frames, rows and columns of the keys' tokens.
        query_tokens: `[Q]`, the place of each query on the grid.
        early_query: `[1, H, Q, D]` float32, of tokens of the first frames: what a codec may learn from.
    """

    key: Tensor
    value: Tensor
    query: Tensor
    grid: tuple[int, int, int]
    query_tokens: Tensor
    early_query: Tensor


def make_sample(
    level: str,
    frames: int,
    *,
    heads: int = 2,
    head_dim: int = 128,
    num_queries: int = 256,
    frame: tuple[int, int] = FRAME,
    early_frames: int = 1,
    seed: int = 0,
) -> Sample:
    """`frames` latent frames; the queries are tokens of the last one, early ones those of the first."""
    settings = LEVELS[level]
    generator = torch.Generator().manual_seed(seed)
    height, width = frame
    features = _features(settings, (frames, height, width), generator)
    keys, values, queries = [], [], []
    query_tokens = torch.randint(0, height * width, (num_queries,), generator=generator)
    query_tokens = query_tokens + (frames - 1) * height * width
    early = torch.Generator().manual_seed(seed + 1)
    early_tokens = torch.randint(0, early_frames * height * width, (num_queries,), generator=early)
    asking = torch.cat([query_tokens, early_tokens])
    for _ in range(heads):
        key, value, query = _head(settings, features, head_dim, asking, generator)
        keys.append(key)
        values.append(value)
        queries.append(query)
    query, early_query = torch.stack(queries)[None].split(num_queries, dim=2)
    return Sample(
        torch.stack(keys)[None],
        torch.stack(values)[None],
        query,
        (frames, height, width),
        query_tokens,
        early_query,
    )


def _features(level: Level, grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """`[S, FEATURES]` feature vectors of a grid's tokens."""
    frames, height, width = grid
    cells = level.objects * _object_features(grid, generator)
    total = cells.reshape(frames, height, width, FEATURES)
    for strength, (size, duration) in zip(level.fields, FIELD_SIZES, strict=True):
        white = torch.randn(frames, height, width, FEATURES, generator=generator)
        blurred = torch.einsum("tu,uyxc->tyxc", _blur(frames, duration), white)
        blurred = torch.einsum("yv,tvxc->tyxc", _blur(height, size), blurred)
        total = total + strength * torch.einsum("xw,tywc->tyxc", _blur(width, size), blurred)
    steps = torch.randn(frames, FEATURES, generator=generator)
    drift = _blur(frames, 4.0) @ steps
    total = total + level.drift * drift[:, None, None]
    strength = torch.exp(0.25 * torch.randn(frames, height, width, 1, generator=generator))
    noise = torch.randn(frames, height, width, FEATURES, generator=generator)
    return (total + level.noise * strength * noise).reshape(-1, FEATURES)


def _object_features(grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """`[F, H * W, FEATURES]`: features of the object with the nearest centre, with soft borders."""
    frames, height, width = grid
    extent = torch.tensor([height, width], dtype=torch.float32)
    start = torch.rand(NUM_OBJECTS, 2, generator=generator) * extent
    velocity = torch.randn(NUM_OBJECTS, 2, generator=generator) * 0.4
    objects = torch.randn(NUM_OBJECTS, FEATURES, generator=generator)
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    places = torch.stack([rows, columns], -1).float()
    parts = []
    for time in range(frames):
        centres = (start + velocity * time) % extent
        distances = torch.cdist(places, centres).square()
        parts.append(torch.softmax(-distances / 3.0, -1) @ objects)
    return torch.stack(parts)


def _blur(count: int, sigma: float) -> Tensor:
    """`[count, count]` Gaussian weights whose rows have norm 1: white noise keeps its variance."""
    places = torch.arange(count, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weights / weights.norm(dim=1, keepdim=True)


def _map(decay: float, head_dim: int, generator: torch.Generator) -> Tensor:
    """`[FEATURES, head_dim]` random map with singular values `i ** -decay` and channels of unit energy."""
    left = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(head_dim, FEATURES, generator=generator))[0]
    spectrum = torch.arange(1, FEATURES + 1, dtype=torch.float32) ** -decay
    spectrum = spectrum / spectrum.square().mean().sqrt() * math.sqrt(head_dim / FEATURES)
    return left @ torch.diag(spectrum) @ right.T


def _student(count: int, freedom: int, generator: torch.Generator) -> Tensor:
    """`[count]` draws of Student's t distribution: heavy tails, a few very large channels."""
    normal = torch.randn(count, generator=generator)
    chi = torch.randn(freedom, count, generator=generator).square().mean(0)
    return normal / chi.sqrt()


def _head(
    level: Level, features: Tensor, head_dim: int, query_tokens: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Key `[S, D]`, value `[S, D]` and query `[Q, D]` of one head."""
    tokens = features.shape[0]
    key_map = _map(level.decay[0], head_dim, generator)
    value_map = _map(level.decay[1], head_dim, generator)
    query_map = (key_map + _map(level.decay[0], head_dim, generator)) / math.sqrt(2)
    key_gain = torch.exp(0.55 * torch.randn(head_dim, generator=generator))
    query_gain = key_gain**-0.5 * torch.exp(0.3 * torch.randn(head_dim, generator=generator))
    offset = level.offset * _student(head_dim, 3, generator)
    key_floor = level.floor[0] * torch.randn(tokens, head_dim, generator=generator)
    key = features @ key_map + key_floor + offset
    key = key / key.square().mean(-1, keepdim=True).sqrt() * key_gain
    value_floor = level.floor[1] * torch.randn(tokens, head_dim, generator=generator)
    value_gain = torch.exp(0.15 * torch.randn(head_dim, generator=generator))
    token_norm = torch.exp(0.27 * torch.randn(tokens, 1, generator=generator))
    value = (features @ value_map + value_floor) * value_gain
    value = value * token_norm
    query = features[query_tokens] @ query_map
    query = query / query.square().mean(-1, keepdim=True).sqrt() * query_gain
    return key, value, query
