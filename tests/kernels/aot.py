"""Compile kernels for GPUs that this machine does not have, from the launches that the library really makes.

Inside `recorded_launches` a launch runs nothing: it is noted with its arguments. `Launch.compile` then makes
the machine code for one architecture with exactly those argument types, constants and numbers of warps.
Needs a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler.compiler import ASTSource, make_backend  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

CAPABILITIES = (80, 86, 89, 90, 100, 120)

SHARED_LIMITS: Mapping[int, int] = MappingProxyType(
    {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
)
"""Bytes of shared memory that one program may have, by architecture (CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability").
"""

needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler"
)


def compile_kernel(
    function: JITFunction,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Any:
    """Metadata of `function` for one architecture; `metadata.shared` is its shared memory in bytes.

    Args:
        signature: Every parameter's type: "*bf16", "*fp32", "*u8", "i32", "fp32", "constexpr" and so on.
        constexprs: Values of the parameters that are "constexpr".
        capability: 90 for 9.0.
    """
    source = ASTSource(function, signature, constexprs)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(source, target=_target(capability), options=options).metadata


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as the library made it."""

    function: JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return self.function.fn.__name__

    def key(self) -> str:
        """The same for launches that a compiled kernel serves alike."""
        return self.name + str(self._bind(90)[2:])

    def compile(self, capability: int) -> Any:
        """Metadata for one architecture; `metadata.shared` is the shared memory in bytes."""
        backend, bound, specialization, options = self._bind(capability)
        options, signature, constexprs, attributes = self.function._pack_args(
            backend, dict(options), bound, specialization, options
        )
        make = GluonASTSource if self.function.is_gluon() else ASTSource
        source = make(self.function, signature, constexprs, attributes)
        return triton.compile(source, target=_target(capability), options=options.__dict__).metadata

    def _bind(self, capability: int) -> tuple[Any, Any, Any, Any]:
        backend = make_backend(_target(capability))
        bind = create_function_from_signature(self.function.signature, self.function.params, backend)
        return backend, *bind(*self.arguments, **self.options)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Launches of this block, in order; none of them runs, so their results hold whatever memory held."""
    launches: list[Launch] = []

    def record(function: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(function, arguments, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        yield launches


def _target(capability: int) -> GPUTarget:
    return GPUTarget("cuda", capability, 32)
