"""Import torch, diffusers and transformers without what they import for others, in half the time.

diffusers and transformers ask for scipy and torch's compiler, and diffusers for transformers, whenever these
are installed, for models and quantizers that are not used here, and do without them where they are not. While
a module of them is imported they are not. Packages that torch and diffusers import for whoever names them are
executed once they are asked for something. This holds for the whole process, so it is for the program `qvg`
alone: whoever imports qvg_cli may want the libraries as they are.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_HIDDEN = {
    # peft imports transformers.
    "diffusers": ("transformers", "peft", "scipy", _COMPILER),
    "transformers": ("scipy", _COMPILER),
}
"""From each of the libraries."""
_PACKAGES = (
    # They import every model that they have; `diffusers` itself knows in which file each is.
    *(f"diffusers.models.{name}" for name in ("autoencoders", "transformers", "unets")),
    # torch imports them for whoever names them; their modules can be imported without them.
    *(f"torch.{name}" for name in ("export", "quantization", "testing")),
    *(f"torch.nn.{name}" for name in ("intrinsic", "qat", "quantizable", "quantized")),
)


def begin() -> None:
    """Let them be imported so, from now on."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        hidden = _HIDDEN.get(fullname.partition(".")[0], ())
        if not hidden and fullname not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module
            if fullname in _PACKAGES:
                loader.exec_module = partial(_execute_late, execute)
                return spec

            def execute_alone(module: ModuleType) -> None:
                try:
                    with _hiding(hidden):
                        execute(module)
                except (ImportError, RuntimeError):
                    # Something that cannot do without, where a module that is being imported hides it, too.
                    _show(hidden)
                    execute(module)

            loader.exec_module = execute_alone
        return spec


def _execute_late(execute: Callable[[ModuleType], None], package: ModuleType) -> None:
    """Execute a package when it is asked for more than the modules in it."""

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del package.__getattr__
        execute(package)
        return getattr(package, name)

    package.__getattr__ = get  # type: ignore[method-assign]


@contextmanager
def _hiding(hidden: Sequence[str]) -> Iterator[None]:
    modules: dict[str, Any] = sys.modules
    names = [name for name in hidden if name not in modules]
    # What is `None` here cannot be imported.
    modules.update(dict.fromkeys(names))
    # diffusers asks it for the names of all packages, of which none is used here.
    distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = dict
    compiler: Any = modules.get("torch.compiler")
    disable = getattr(compiler, "disable", None)
    if _COMPILER in names and disable is not None:
        # It would import the compiler, to keep it from functions that nobody compiles here.
        compiler.disable = _disable_nothing
    try:
        yield
    finally:
        _show(names)
        # Who came while others hid them found stand-ins, which are not put back. A lock around it all would
        # wait for the locks of modules, and those for it.
        if distributions is not dict:
            importlib.metadata.packages_distributions = distributions
        if disable not in (None, _disable_nothing):
            compiler.disable = disable


def _disable_nothing(function: Any = None, *_: Any, **__: Any) -> Any:
    return function or (lambda later: later)


def _show(names: Sequence[str]) -> None:
    modules: dict[str, Any] = sys.modules
    for name in names:
        if modules.get(name, "") is None:
            del modules[name]
