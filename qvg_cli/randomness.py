"""Seeds by purpose, so that no draw depends on another.

The noise of a chunk does not depend on the video's length or on the cache codec, and is drawn on the CPU, so
that it is the same on every device.
"""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: a hash of the run's seed and the purpose's parts."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
