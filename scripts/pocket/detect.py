"""Find colour, shape and motion of the object in a clip, by rules: no learned part judges the learned model.

The object is the only saturated thing in a scene, so a threshold finds it. Its hue names the colour, its
outline is compared with outlines of rendered objects, and its path is fitted with the periods the renderer
moves things by. `scripts.pocket.evaluate` first checks these rules on true renders and on their VAE
reconstructions.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from scripts.pocket.scenes import CAMERA_PERIOD_FRAMES, COLORS, MOTION_PERIOD_FRAMES

MIN_SATURATION, MIN_CHROMA, MIN_AREA = 0.58, 0.20, 50
OUTLINE_SIZE = 24
SHAPE_FRAMES = 12
# Amplitudes at the fixed camera distance: pixels sideways, log of the size, pixels up and down at twice the
# rate.
MOTION_UNITS = np.array([46.0, 0.24, 13.0])
MOTIONS = {
    "rest": (0.0, 0.0, 0.0),
    "bounce": (0.0, 0.0, 1.0),
    "slide": (1.05, 0.0, 0.0),
    "circle": (0.95, 0.9, 0.0),
    "approach": (0.0, 1.1, 0.0),
}
MAX_MOTION_DISTANCE = 0.6


@dataclass(frozen=True)
class Blob:
    """The object in one frame; the outline is its mask scaled to a square."""

    center: tuple[float, float]
    area: float
    aspect: float
    hue: float
    is_whole: bool
    outline: np.ndarray


@dataclass(frozen=True)
class Finding:
    """What a clip shows; None where the rules give no answer."""

    color: str | None
    shape: str | None
    motion: str | None


def find_blob(frame: np.ndarray) -> Blob | None:
    """Find the largest saturated region of a frame `[H, W, 3]` in [0, 1]."""
    high, low = frame.max(axis=-1), frame.min(axis=-1)
    chroma = high - low
    labels, count = ndimage.label((chroma > MIN_CHROMA) & (chroma > MIN_SATURATION * high))
    if not count:
        return None
    areas = np.bincount(labels.ravel())[1:]
    mask = labels == 1 + int(areas.argmax())
    if areas.max() < MIN_AREA:
        return None
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    color = np.median(frame[mask], axis=0)
    box = ndimage.binary_fill_holes(mask[top:bottom, left:right]).astype(np.float32)
    grid = np.meshgrid(
        *(((np.arange(OUTLINE_SIZE) + 0.5) / OUTLINE_SIZE * n - 0.5) for n in box.shape), indexing="ij"
    )
    height, width = mask.shape
    return Blob(
        center=(float(columns.mean()), float(rows.mean())),
        area=float(areas.max()),
        aspect=float((right - left) / (bottom - top)),
        hue=colorsys.rgb_to_hsv(*color.tolist())[0],
        is_whole=bool(top > 0 and left > 0 and bottom < height and right < width),
        outline=ndimage.map_coordinates(box, grid, order=1, mode="nearest") > 0.5,
    )


def _hue_distance(first: float, second: float) -> float:
    return abs((first - second + 0.5) % 1.0 - 0.5)


def name_color(blobs: list[Blob]) -> str | None:
    """The colour whose hue is nearest to the median hue of the frames, within 16 degrees."""
    if not blobs:
        return None
    hues = {name: colorsys.rgb_to_hsv(*color)[0] for name, color in COLORS.items()}
    votes = [min(hues, key=lambda name, hue=blob.hue: _hue_distance(hues[name], hue)) for blob in blobs]
    winner = max(set(votes), key=votes.count)
    typical = np.median([_hue_distance(hues[winner], blob.hue) for blob in blobs])
    return winner if votes.count(winner) > 0.8 * len(blobs) and typical < 16 / 360 else None


def name_shape(blobs: list[Blob], templates: dict[str, list[Blob]]) -> str | None:
    """The shape whose rendered outlines agree best with the frames that show the whole object."""
    whole = [blob for blob in blobs if blob.is_whole]
    if not whole:
        return None
    chosen = whole[:: max(1, len(whole) // SHAPE_FRAMES)]
    scores = {}
    for name, outlines in templates.items():
        agreements = [sorted(_agreement(blob, other) for other in outlines)[-3:] for blob in chosen]
        scores[name] = float(np.median(np.mean(agreements, axis=1)))
    winner = max(scores, key=lambda name: scores[name])
    return winner if scores[winner] > 0.6 else None


def _agreement(first: Blob, second: Blob) -> float:
    union = np.logical_or(first.outline, second.outline).sum()
    overlap = np.logical_and(first.outline, second.outline).sum() / max(union, 1)
    return float(overlap - 0.5 * abs(np.log(first.aspect / second.aspect)))


def motion_features(times: np.ndarray, blobs: list[Blob | None]) -> np.ndarray | None:
    """Amplitudes sideways, in size, and up and down, in `MOTION_UNITS`; the camera's sway is fitted away."""
    seen = [(t, blob) for t, blob in zip(times, blobs, strict=True) if blob is not None]
    if len(seen) < 0.7 * len(times):
        return None
    when = np.array([t for t, _ in seen])

    def amplitude(values: list[float], chosen: np.ndarray, period: float) -> float:
        columns = [np.ones_like(when[chosen])]
        for length in (CAMERA_PERIOD_FRAMES, MOTION_PERIOD_FRAMES, MOTION_PERIOD_FRAMES / 2):
            angle = 2 * np.pi * when[chosen] / length
            columns += [np.sin(angle), np.cos(angle)]
        weights, *_ = np.linalg.lstsq(np.stack(columns, axis=1), np.array(values), rcond=None)
        start = {MOTION_PERIOD_FRAMES: 3, MOTION_PERIOD_FRAMES / 2: 5}[period]
        return float(np.hypot(*weights[start : start + 2]))

    everywhere = np.ones(len(seen), dtype=bool)
    whole = np.array([blob.is_whole for _, blob in seen])
    if whole.sum() < 0.5 * len(seen):
        whole = everywhere
    sizes = [0.5 * np.log(blob.area) for (_, blob), ok in zip(seen, whole, strict=True) if ok]
    sideways = amplitude([blob.center[0] for _, blob in seen], everywhere, MOTION_PERIOD_FRAMES)
    size = amplitude(sizes, whole, MOTION_PERIOD_FRAMES)
    upward = amplitude([blob.center[1] for _, blob in seen], everywhere, MOTION_PERIOD_FRAMES / 2)
    return np.array([sideways, size, upward]) / MOTION_UNITS


def name_motion(features: np.ndarray | None) -> str | None:
    """The motion with the nearest amplitudes, None if none is near."""
    if features is None:
        return None
    distances = {name: float(np.linalg.norm(features - np.array(goal))) for name, goal in MOTIONS.items()}
    winner = min(distances, key=lambda name: distances[name])
    return winner if distances[winner] < MAX_MOTION_DISTANCE else None


def detect(video: np.ndarray, templates: dict[str, list[Blob]]) -> Finding:
    """Name what a clip `[T, H, W, 3]` uint8 shows; five seconds or so at 16 frames a second."""
    times = np.arange(0, len(video), 2)
    blobs = [find_blob(video[t].astype(np.float32) / 255) for t in times]
    found = [blob for blob in blobs if blob is not None]
    return Finding(
        color=name_color(found),
        shape=name_shape(found, templates),
        motion=name_motion(motion_features(times.astype(np.float64), blobs)),
    )
