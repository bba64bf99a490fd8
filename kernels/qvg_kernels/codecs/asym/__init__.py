"""The scheme with evidence on real models: k-means, then levels from a group's lowest to its highest
value.
"""

from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.codecs.spec import Scheme

SCHEMES = (Scheme(AsymSpec, f"{__name__}.reference:AsymCodec"),)
