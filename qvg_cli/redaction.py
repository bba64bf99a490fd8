"""Secrets out of what is written down or shown: tokens and passwords, wherever in a text they stand."""

import os
import re

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{8,}")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SIGNED = re.compile(
    r"([?&](?:X-Amz-[A-Za-z]+|Signature|Policy|Key-Pair-Id|token)=)[^&\s'\"]+", re.IGNORECASE
)
_LEAST_SECRET = 6
HIDDEN = "[hidden]"


def redact(text: str) -> str:
    """`text` without tokens of the hub, passwords in addresses, and signatures of addresses."""
    for name in _VARIABLES:
        value = os.environ.get(name, "").strip()
        if len(value) >= _LEAST_SECRET:
            text = text.replace(value, HIDDEN)
    text = _TOKEN.sub(HIDDEN, text)
    text = _USER_INFO.sub(HIDDEN, text)
    return _SIGNED.sub(rf"\1{HIDDEN}", text)
