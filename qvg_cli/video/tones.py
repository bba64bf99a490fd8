"""HDR and wide colours to the BT.709 SDR that the models know. No torch.

Light is display-referred. What is below about 90 cd/m² keeps its brightness, HDR reference white (203 cd/m²)
comes out as a light grey, and highlights up to 1,000 cd/m² are rolled off to white. The curve works on the
largest of the three colours and scales all of them alike, so that hues stay.

Source: ITU-R BT.2100-2 (PQ, HLG and its OOTF), BT.2390-11 section 5.4.1 (the EETF), BT.2408-7 (203 cd/m²),
BT.1886 (gamma 2.4), BT.2087-0 (BT.2020 to BT.709), SMPTE EG 432-1 (P3).
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

Light = NDArray[np.float32]

_PEAK, _WHITE = 1000.0, 203.0
"""cd/m² of the brightest light that is told apart, and of SDR white."""
_GAMMA = 2.4


class _Transfer(IntEnum):
    """Numbers of ITU-T H.273."""

    PQ = 16
    HLG = 18


class _Primaries(IntEnum):
    """Numbers of ITU-T H.273."""

    UNSPECIFIED = 2
    BT2020 = 9
    P3_DCI = 11
    P3_D65 = 12


# x and y of red, green, blue and white.
_D65 = (0.3127, 0.3290)
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
_BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65)
# Theatres' white is left as white.
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65)
_XY = {_Primaries.BT2020: _BT2020, _Primaries.P3_DCI: _P3, _Primaries.P3_D65: _P3}


@dataclass(frozen=True)
class Tones:
    """Colours that are not those of SDR.

    Attributes:
        transfer: `PQ` or `HLG`; anything else is SDR.
        primaries: Of the colours; those unknown are BT.709's.
    """

    transfer: int
    primaries: int

    @property
    def words(self) -> str:
        if self.is_hdr:
            name = _Transfer(self.transfer).name
            return (
                f"HDR ({name}), tone-mapped to SDR by the curve of ITU-R BT.2390, {_WHITE:g} cd/m² as white"
            )
        return f"colours of {_Primaries(self.primaries).name.replace('_', ' ')}: converted to BT.709"

    @property
    def is_hdr(self) -> bool:
        """Whether there is light above white."""
        return self.transfer in set(_Transfer)

    def to_sdr(self, codes: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Full-range RGB codes `[height, width, 3]` as BT.709 for a display of gamma 2.4, to the nearest."""
        light = self._light(codes)
        source = _XY.get(_Primaries(self.primaries)) if self.primaries in set(_Primaries) else None
        if source is not None:
            light = np.maximum(light @ _matrix(source).T, 0)
        if self.is_hdr:
            brightest = np.maximum(light.max(axis=-1, keepdims=True), np.float32(1e-4))
            light = light * (_roll_off(brightest) / brightest)
        shown = np.clip(light / np.float32(_WHITE), 0, 1) ** np.float32(1 / _GAMMA)
        return np.rint(shown * 255).astype(np.uint8)

    def _light(self, codes: NDArray[np.uint16]) -> Light:
        """cd/m² of every colour on a display."""
        light = _light_table(self.transfer)[codes]
        if self.transfer == _Transfer.HLG:
            luma = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            light = light * (_PEAK * np.maximum(luma, np.float32(1e-6)) ** np.float32(0.2))[..., None]
        return light


def tones_of(transfer: int, primaries: int) -> Tones | None:
    """The tones with these numbers of ITU-T H.273; `None` for what is shown as it is."""
    if transfer in set(_Transfer) and primaries == _Primaries.UNSPECIFIED:
        primaries = _Primaries.BT2020
    is_known = transfer in set(_Transfer) or primaries in _XY
    return Tones(transfer, primaries) if is_known else None


@cache
def _light_table(transfer: int) -> Light:
    """Of every 16-bit code, the light: cd/m², and 0 to 1 before the OOTF for HLG."""
    codes = np.arange(1 << 16) / 65535
    if transfer == _Transfer.PQ:
        light = _from_pq(codes)
    elif transfer == _Transfer.HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    else:
        light = _WHITE * codes**_GAMMA
    return light.astype(np.float32)


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _from_pq(codes: NDArray[np.floating]) -> NDArray[np.floating]:
    power = codes ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _to_pq(light: NDArray[np.floating]) -> NDArray[np.floating]:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _roll_off(light: Light) -> Light:
    """The EETF from the peak to SDR white, both with a black of 0."""
    peak, white = _to_pq(np.array([_PEAK, _WHITE]))
    target = white / peak
    knee = 1.5 * target - 0.5
    value = np.minimum(_to_pq(light) / peak, 1)
    part = (value - knee) / (1 - knee)
    spline = (
        (2 * part**3 - 3 * part**2 + 1) * knee
        + (part**3 - 2 * part**2 + part) * (1 - knee)
        + (-2 * part**3 + 3 * part**2) * target
    )
    return _from_pq(np.where(value < knee, value, spline) * peak).astype(np.float32)


@cache
def _matrix(source: tuple[tuple[float, float], ...]) -> Light:
    """Linear RGB of `source` to linear RGB of BT.709."""
    matrix = np.linalg.inv(_to_xyz(_BT709)) @ _to_xyz(source)
    return matrix.astype(np.float32)


def _to_xyz(xy: tuple[tuple[float, float], ...]) -> NDArray[np.floating]:
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in xy]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
