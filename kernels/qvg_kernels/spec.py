"""The settings of every codec, without torch; `codecs/` holds each beside its arithmetic."""

from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.codecs.min_max.spec import KiviSpec, QuarotSpec, RtnSpec
from qvg_kernels.codecs.plain.spec import Bf16Spec, NoneSpec
from qvg_kernels.codecs.quantwm.spec import QuantWmSpec
from qvg_kernels.codecs.qvg.spec import QvgSpec
from qvg_kernels.codecs.registry import SCHEMES, CodecSpec
from qvg_kernels.codecs.spec import PayloadBytes
from qvg_kernels.codecs.turboquant.spec import TurboQuantSpec

__all__ = [
    "SCHEMES", "AsymSpec", "Bf16Spec", "CodecSpec", "FittedSpec", "KiviSpec", "NoneSpec", "PayloadBytes",
    "QuantWmSpec", "QuarotSpec", "QvgSpec", "RtnSpec", "TurboQuantSpec",
]  # fmt: skip
