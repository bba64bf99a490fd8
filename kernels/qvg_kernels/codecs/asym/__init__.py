"""The scheme with evidence on real models: k-means, then levels from a group's lowest to its highest
value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.codecs.spec import Scheme

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: AsymSpec) -> Codec:
    from qvg_kernels.codecs.asym.reference import AsymCodec

    return AsymCodec(spec)


SCHEMES = (Scheme(AsymSpec, _codec),)
