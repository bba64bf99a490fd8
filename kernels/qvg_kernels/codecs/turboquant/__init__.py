"""TurboQuant, a peer without any codebook: a random rotation makes every direction look alike to one fixed
grid.
"""

from qvg_kernels.codecs.spec import Scheme
from qvg_kernels.codecs.turboquant.spec import TurboQuantSpec

SCHEMES = (Scheme(TurboQuantSpec, f"{__name__}.reference:TurboQuantCodec"),)
