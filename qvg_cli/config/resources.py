"""Where the files that ship with the package are, in a source checkout and in an installed wheel alike."""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from qvg_cli.environment import expand_user
from qvg_cli.errors import MissingModelError, UsageError
from qvg_cli.plugins import plugin_configs

_PACKAGE = Path(__file__).parents[1]
_OWN_GRAMMARS = {"hyworldplay": "world/grammar.yaml"}
"""Families whose built-in model understands other prompts than the first one."""
_TAEHV_FILES = {
    (16, -0.7571): "wan21/taew2_1.safetensors",
    (48, -0.2289): "wan22/diffusion_pytorch_model.safetensors",
}
"""In the folder of the download, by the channels of latents and the mean of the first: Wan 2.1 and 2.2 5B."""


@cache
def configs_dir() -> Path:
    """The folder with one YAML a backend, and `cache/` with the presets."""
    # The wheel carries its own copy; a checkout has it beside the package.
    candidates = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no configs at {candidates[0]} or {candidates[1]}; reinstall qvg")


def config_files(part: str = ".", suffix: str = "yaml") -> dict[str, Path]:
    """Files in a part of the package's folder, and in that of each plugin, by name; the package's win."""
    folders = [*reversed(plugin_configs()), configs_dir()]
    found = {path.stem: path for folder in folders for path in (folder / part).glob(f"*.{suffix}")}
    return dict(sorted(found.items()))


def preset_names() -> tuple[str, ...]:
    """Names that `--cache` takes."""
    return tuple(config_files("cache"))


def matrices_file(name: str) -> Path:
    """The file of `cache.matrices`: shipped with a model, by its name, or the user's; else a `UsageError`."""
    shipped = config_files("cache/shaped", "safetensors")
    path = shipped.get(name) or expand_user(name)
    if not path.is_file():
        hint = f"give a file, null to let the session learn them, or one that ships: {', '.join(shipped)}"
        raise UsageError(f"cache.matrices={name}: there is no such file", hint=hint)
    return path


def qvg_home() -> Path:
    """The folder for downloaded weights: `QVG_HOME`, or `qvg` in the user's cache folder."""
    if home := os.environ.get("QVG_HOME"):
        return expand_user(home).absolute()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG standard has relative paths ignored.
    return (cache_home if cache_home.is_absolute() else expand_user("~") / ".cache") / "qvg"


def weights_folder(name: str) -> Path:
    """The folder of a model's weights; `MissingModelError` if it, or what it links to, is not there.

    Args:
        name: A folder, or a name without a slash for weights that ship with the package or were downloaded.
    """
    is_name = "/" not in name and name not in (".", "..")
    folders = [_PACKAGE / "data" / name, qvg_home() / name] if is_name else [expand_user(name)]
    for folder in folders:
        if folder.is_dir():
            for path in folder.rglob("*") if folder.parent == qvg_home() else ():
                if not path.exists():
                    hint = f"download it again with: qvg download {folder.name}"
                    raise MissingModelError(f"{path} links to a file that is gone", hint=hint)
            return folder
    hint = "use --pocket for the built-in demo weights, or --set model.weights=FOLDER for your own"
    if is_name and (configs_dir() / f"{name}.yaml").is_file():
        hint = f"download them with: qvg download {name}; or {hint}"
    if is_name and Path(name).is_dir():
        hint = f"for the folder {name} here, write --set model.weights=./{name}"
    raise MissingModelError(f"no weights at {folders[-1]}", hint=hint)


def check_weights(
    weights: str, checkpoint: str | None = None, loras: Sequence[str] = (), decoder: str = "vae"
) -> None:
    """Notice at once, by a `MissingModelError`, what would be missed after seconds of loading.

    `UsageError` if there is no such decoder for this model.
    """
    folder = weights_folder(weights)
    if not (folder / "vae").is_dir():
        raise MissingModelError(
            f"{folder} does not contain a model: it has no folder vae",
            hint="set model.weights to the folder that has one",
        )
    if checkpoint is not None and not expand_user(checkpoint).is_file():
        raise MissingModelError(f"model.checkpoint={checkpoint} does not exist")
    for lora in map(expand_user, loras):
        if not lora.is_file():
            raise MissingModelError(f"no adapter at {lora}", hint="model.lora names it")
    if decoder == "taehv":
        find_taehv(folder)


def find_taehv(weights: Path) -> Path:
    """The downloaded file that `taehv_file` names; `MissingModelError` if it is not there."""
    path = taehv_file(weights)
    if not path.is_file():
        raise MissingModelError(
            f"video.decoder=taehv needs a small decoder, which is not at {path}",
            hint="download it with: qvg download taehv (--dry-run shows from where)",
        )
    return path


def taehv_file(weights: Path) -> Path:
    """Where the small decoder for the latents of the VAE in the folder `weights` belongs; `UsageError` if
    there is none for these."""
    try:
        layout = json.loads((weights / "vae" / "config.json").read_text(encoding="utf-8-sig"))
        # diffusers' defaults are those of Wan 2.1.
        kind = layout.get("z_dim", 16), layout.get("latents_mean", [-0.7571])[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise MissingModelError(f"cannot read {weights / 'vae' / 'config.json'}: {error}") from error
    if kind not in _TAEHV_FILES:
        raise UsageError(
            f"video.decoder=taehv is for latents of Wan 2.1 and Wan 2.2 5B; the VAE in {weights} has others",
            hint="use video.decoder=vae",
        )
    return qvg_home() / "taehv" / _TAEHV_FILES[kind]


def pocket_grammar(family: str) -> Path:
    """The file that says which prompts a family's built-in model was trained on."""
    return _PACKAGE / "data" / "pocket" / _OWN_GRAMMARS.get(family, "grammar.yaml")


def lpips_heads() -> Path:
    """What LPIPS learned on top of its network, a layer a tensor."""
    return _PACKAGE / "data" / "lpips" / "heads.safetensors"


def checkout_dir() -> Path | None:
    """The git checkout that this package runs from; `None` when it is installed."""
    root = _PACKAGE.parent
    return root if (root / ".git").exists() else None
