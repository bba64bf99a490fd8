"""The recommended scheme: what a codebook leaves over, rotated and put on a fitted grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.codecs.spec import Scheme

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: FittedSpec) -> Codec:
    from qvg_kernels.codecs.fitted.reference import FittedCodec

    return FittedCodec(spec)


SCHEMES = (Scheme(FittedSpec, _codec),)
