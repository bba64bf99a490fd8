"""TurboQuant, a peer without any codebook: a random rotation makes every direction look alike to one fixed
grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.spec import Scheme
from qvg_kernels.codecs.turboquant.spec import TurboQuantSpec

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: TurboQuantSpec) -> Codec:
    from qvg_kernels.codecs.turboquant.reference import TurboQuantCodec

    return TurboQuantCodec(spec)


SCHEMES = (Scheme(TurboQuantSpec, _codec),)
