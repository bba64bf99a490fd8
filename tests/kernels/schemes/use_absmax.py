"""Everything a scheme is asked for, done with one that only lies in a folder: run by test_schemes.py."""

import sys
from pathlib import Path

from qvg_kernels import codecs

# As if the folder absmax/ of the example plugin lay in qvg_kernels/codecs/.
codecs.__path__.append(str(Path(__file__).parents[3] / "docs" / "examples" / "qvg-example" / "qvg_example"))

from pydantic import TypeAdapter  # noqa: E402

from qvg_kernels.spec import SCHEMES, CodecSpec  # noqa: E402

spec = TypeAdapter(CodecSpec).validate_python({"scheme": "absmax", "clip_ratio": 0.9})
assert type(spec) is SCHEMES["absmax"].spec
assert TypeAdapter(CodecSpec).dump_python(spec) == {"scheme": "absmax", "clip_ratio": 0.9}
assert spec.bits_per_value(100, 64) == 8 + 32 / 64
assert "torch" not in sys.modules, "a spec is planned with before torch is imported"

import torch  # noqa: E402

from qvg_kernels.attention.attend import attend, how_attended  # noqa: E402
from qvg_kernels.attention.history import History, OwnKeys, StoredBlock, Workspace  # noqa: E402
from qvg_kernels.codecs.registry import build_codec  # noqa: E402
from qvg_kernels.rope.placement import Rotary  # noqa: E402
from qvg_kernels.rope.tables import RotaryTables  # noqa: E402

CPU = torch.device("cpu")
codec = build_codec(SCHEMES["absmax"].spec())
key, value, query = torch.randn(3, 1, 2, 12, 64, generator=torch.Generator().manual_seed(0))
packed_key, packed_value = codec.encode(key, seed=0), codec.encode(value, seed=0)
assert packed_key.payload_bytes() == codec.spec.payload_bytes(2, 12, 64)
still = Rotary(RotaryTables.of(64, 4, CPU), 3, 4, (0,))
block = StoredBlock(codec, codec, packed_key, packed_value, still, None, 0, 12)
own = OwnKeys(key[:, :, :5], value[:, :, :5], still, None)
found = attend(query, History((block,)), own, Workspace())
keys = torch.cat([still.apply(key, slice(0, 12)), still.apply(key[:, :, :5], slice(0, 5))], 2)
values = torch.cat([value, value[:, :, :5]], 2)
expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
assert how_attended(CPU, torch.float32, [codec.spec], "auto") == "the torch reference (device cpu)"
