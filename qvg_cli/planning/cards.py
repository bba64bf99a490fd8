"""The memory of a graphics card: by its name, by a size, or of the one in this machine. No torch."""

import re
import subprocess
from dataclasses import dataclass
from difflib import get_close_matches

from qvg_cli.errors import UsageError

MIB, GIB = 2**20, 2**30
USABLE = 0.92
"""Part of a card's memory that a plan counts on. The rest is for the driver and for what the allocator cannot
use in pieces: at full size on an H200 it had reserved 8 % more than was in use at the peak."""

CARDS = {
    "RTX 3060": 12, "RTX 3080": 10, "RTX 3090": 24,
    "RTX 4060": 8, "RTX 4060 Ti 16GB": 16, "RTX 4070": 12, "RTX 4070 Ti SUPER": 16, "RTX 4080": 16,
    "RTX 4090": 24,
    "RTX 5060 Ti 16GB": 16, "RTX 5070": 12, "RTX 5070 Ti": 16, "RTX 5080": 16, "RTX 5090": 32,
    "T4": 16, "L4": 24, "A10": 24, "L40S": 48, "A40": 48, "RTX A6000": 48, "RTX 6000 Ada": 48,
    "RTX PRO 6000": 96, "A100 40GB": 40, "A100 80GB": 80, "H100": 80, "H200": 141,
}  # fmt: skip
"""Memory as sold, in GiB. What a system shows is a few per cent less,
which a plan does not count on anyway."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gib|gb|g|mib|mb|m)", re.IGNORECASE)
_VENDORS = ("nvidia", "geforce", "tesla")
_FORMS = (
    "sxm", "sxm2", "sxm4", "sxm5", "pcie", "nvl", "hbm2", "hbm2e", "hbm3", "hbm3e",
    "generation", "blackwell", "workstation", "server", "edition",
)  # fmt: skip
"""Words that drivers add to the name of a card, whatever its memory."""
_SECONDS = 5.0


@dataclass(frozen=True)
class Card:
    """A card; of its memory, other programs may leave less free than there is."""

    name: str
    memory_bytes: int
    free_bytes: int | None = None

    @property
    def usable_bytes(self) -> int:
        usable = int(USABLE * self.memory_bytes)
        return usable if self.free_bytes is None else min(usable, self.free_bytes)


def parse_card(text: str) -> Card:
    """The GPU that `--gpu` names, such as "RTX 4090" or "24GiB"; `UsageError` if it is neither."""
    if match := _SIZE.fullmatch(text.strip()):
        unit = GIB if match[2].lower().startswith("g") else MIB
        memory_bytes = int(float(match[1]) * unit)
        if memory_bytes == 0:
            raise UsageError(f"--gpu {text} has no memory", hint="e.g. --gpu 24GiB")
        return Card(text.strip(), memory_bytes)
    wanted = _plain(text)
    names = {_plain(name): name for name in CARDS}
    if wanted in names:
        return Card(names[wanted], CARDS[names[wanted]] * GIB)
    bare = {_without_memory(name): name for name in names.values()}
    for plain, name in [*names.items(), *bare.items()]:
        # By its number alone, or with its memory added as drivers do.
        if (
            wanted.removeprefix("rtx") == plain.removeprefix("rtx") != ""
            or wanted == f"{plain}{CARDS[name]}gb"
        ):
            if plain in names:
                return Card(name, CARDS[name] * GIB)
            sizes = [repr(each) for each in CARDS if _without_memory(each) == plain]
            raise UsageError(
                f"GPU {text!r} is sold with several memory sizes",
                hint=f"give {' or '.join(sizes)}, or its memory, e.g. --gpu 24GiB",
            )
    near = get_close_matches(wanted, names, n=1, cutoff=0.6)
    nearest = f"nearest: {names[near[0]]}; " if near else ""
    raise UsageError(
        f"unknown GPU {text!r}",
        hint=f"{nearest}known: {', '.join(CARDS)}; or give its memory, e.g. --gpu 24GiB",
    )


def find_card() -> Card | None:
    """The first card of this machine, as its driver's tool tells; `None` if there is no such tool or card."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
        name, memory, free = told.splitlines()[0].rsplit(",", 2)
        return Card(name.strip(), int(memory) * MIB, int(free) * MIB)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _plain(name: str) -> str:
    """A name without its vendor, how it is built in, spaces and case."""
    words = [word for word in re.split(r"[\s_-]+", name.lower()) if word not in _VENDORS]
    return "".join(word for word in words if word not in _FORMS)


def _without_memory(name: str) -> str:
    """The plain name of a card that has its memory in its name, without it."""
    return _plain(re.sub(r" \d+GB$", "", name))
