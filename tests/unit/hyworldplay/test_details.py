"""What a walk leaves in its run's folder beside the video."""

import numpy as np
import pytest
from PIL import Image

from qvg_cli.config.load import DEFAULT_BACKEND, Request
from qvg_cli.config.yaml_text import format_yaml, parse_yaml
from qvg_cli.models.hyworldplay.trajectory import camera_path
from qvg_cli.models.registry import family_of, load_config


def test_run_yaml_gets_labels_matrices_and_lenses(walk_config):
    config = walk_config("walk.pose=w-4,right-4,up-3")
    about = parse_yaml(format_yaml({"details": family_of(config).run_details(config).about}), "run.yaml")
    camera = about["details"]["camera"]
    path = camera_path(config.walk.pose)
    assert camera["actions"] == list(path.actions)
    np.testing.assert_allclose(np.reshape(camera["viewmats"], (-1, 4, 4)), path.viewmats, atol=1e-9)
    np.testing.assert_allclose(camera["intrinsics"][0], [0.505050505, 0.897867565, 0.5, 0.5], atol=1e-9)
    assert len(camera["intrinsics"]) == config.video.frames == 12


@pytest.mark.parametrize("pose", ["w-4,right-30,w-4,up-9", "left-7", "down-40,w-11"])
def test_the_path_is_drawn(walk_config, tmp_path, pose):
    config = walk_config(f"walk.pose={pose}")
    plots = family_of(config).run_details(config).plots
    assert list(plots) == ["path.png"]
    plots["path.png"](tmp_path / "path.png")
    with Image.open(tmp_path / "path.png") as image:
        assert image.size == (600, 600)


def test_other_families_add_nothing():
    config = load_config(Request(backend=DEFAULT_BACKEND)).config
    details = family_of(config).run_details(config)
    assert not details.about
    assert not details.plots


def test_run_yaml_with_its_details_is_a_configuration(walk_config, tmp_path):
    config = walk_config("walk.pose=w-7")
    file = tmp_path / "run.yaml"
    values = {**config.model_dump(mode="json"), "details": family_of(config).run_details(config).about}
    file.write_text(format_yaml(values), encoding="utf-8")
    assert load_config(Request(file=file)).config == config
