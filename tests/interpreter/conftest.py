"""Every kernel in Triton's interpreter, beside its torch reference: `make test` starts this folder by itself.

The interpreter is chosen when triton is first imported, so these tests need a process of their own with
TRITON_INTERPRET=1; without it they are not collected. It truncates float32 to bf16 and rounds e4m3 wrongly,
so kernels are compared at float32 outputs or within one unit in the last place.
"""

import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
