"""Every scheme's codec, by the name its spec carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qvg_kernels.codec import Codec
from qvg_kernels.codecs.asym.reference import AsymCodec
from qvg_kernels.codecs.fitted.reference import FittedCodec
from qvg_kernels.codecs.min_max.reference import KiviCodec, QuarotCodec, RtnCodec
from qvg_kernels.codecs.plain.reference import Bf16Codec, NoneCodec
from qvg_kernels.codecs.qvg.reference import QvgCodec
from qvg_kernels.codecs.turboquant.reference import TurboQuantCodec

CODECS: dict[str, Callable[[Any], Codec]] = {
    "none": NoneCodec,
    "bf16": Bf16Codec,
    "qvg": QvgCodec,
    "fitted": FittedCodec,
    "asym": AsymCodec,
    "rtn": RtnCodec,
    "kivi": KiviCodec,
    "quarot": QuarotCodec,
    "turboquant": TurboQuantCodec,
}
