"""The `download` sections: what they name fits the backends, and patterns mean what they seem to mean."""

import pytest
from pydantic import ValidationError

from qvg_cli.config.load import backend_names
from qvg_cli.errors import MissingModelError
from qvg_cli.hub.spec import DownloadConfig, RepositoryConfig, read_downloads, targets
from qvg_cli.models.base import Family
from qvg_cli.models.registry import find_family

PATHS = [
    "README.md",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/extra/notes.json",
]


def repository(**settings):
    return RepositoryConfig.model_validate({"repository": "someone/model", **settings})


@pytest.mark.parametrize("name", sorted(set(read_downloads()) & set(backend_names())))
def test_sections_fit_their_backends(name):
    download = read_downloads()[name]
    assert download.licence
    assert f"--backend {name}" in download.use
    folders = [folder for each in download.config.repositories for folder in each.files]
    assert {"vae", "text_encoder", "tokenizer"} <= set(folders)
    assert len(set(folders)) == len(folders)
    converts = [each.convert for each in download.config.repositories if each.convert is not None]
    for convert in converts:
        # What the converted model is built from has to be there first.
        assert convert.into in folders
        assert type(find_family(download.family)).convert_checkpoint is not Family.convert_checkpoint


def test_self_forcing_takes_no_base_transformer():
    base = read_downloads()["self-forcing"].config.repositories[1]
    paths = [*PATHS, "tokenizer/tokenizer.json", "text_encoder/config.json", "text_encoder/model.safetensors"]
    taken = [path for path in targets(base, paths) if path.startswith("transformer/")]
    assert taken == ["transformer/config.json"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"vae": ["vae/config.json"]}, {"vae/config.json": "vae/config.json"}),
        ({"decoder": ["vae/config.json"]}, {"vae/config.json": "decoder/config.json"}),
        (
            {"vae": ["vae/*.json"]},
            {"vae/config.json": "vae/config.json", "vae/extra/notes.json": "vae/extra/notes.json"},
        ),
        ({"card": ["*.md"]}, {"README.md": "card/README.md"}),
        (
            {"transformer": ["transformer/diffusion*-of-00002.safetensors"]},
            {PATHS[2]: PATHS[2]},
        ),
    ],
    ids=["one", "renamed", "nested", "root", "wildcard in the middle"],
)
def test_targets(files, expected):
    assert targets(repository(files=files), PATHS) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"files": {"vae": ["vae/*.bin"]}},
        {"files": {"vae": ["vae/*.json", "vae/*.bin"]}},
        {"convert": {"file": "vae/*.bin", "into": "transformer", "parameters": 1}},
    ],
)
def test_a_pattern_that_fits_nothing_is_named(settings):
    with pytest.raises(MissingModelError, match=r"^someone/model has no vae/\*\.bin at this revision$"):
        targets(repository(**settings), PATHS)


@pytest.mark.parametrize("path", ["vae/../../../etc/passwd", "vae//etc/passwd.json/..", "vae/..\\..\\x.json"])
def test_paths_out_of_the_folder_are_refused(path):
    with pytest.raises(MissingModelError, match="unusable name"):
        targets(repository(files={"vae": ["vae/*"]}), [path])


@pytest.mark.parametrize(
    "change",
    [
        {"repository": "model"},
        {"repository": "../model"},
        {"repository": "https://huggingface.co/someone/model"},
        {"files": {"../vae": ["vae/*"]}},
        {"files": {"vae": []}},
        {"revision": ""},
        {"ignore": ["*.bin"]},
        {"convert": {"file": "x.pt", "into": "a/b", "parameters": 1}},
        {"convert": {"file": "x.pt", "into": "transformer", "parameters": 0}},
    ],
    ids=str,
)
def test_impossible_sections_are_refused(change):
    with pytest.raises(ValidationError):
        repository(files={"vae": ["vae/*"]}) and repository(**change)


def test_a_section_without_repositories_is_refused():
    with pytest.raises(ValidationError):
        DownloadConfig.model_validate({"about_gb": 1, "repositories": []})
