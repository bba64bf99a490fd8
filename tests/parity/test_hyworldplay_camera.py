"""Golden numbers of the original HY-WorldPlay code without its model: camera paths, memory, pictures, cache
sizes."""

import numpy as np
import pytest
import torch
from golden import golden_folder, load_golden
from PIL import Image

from qvg_cli.config.cache_presets import read_preset
from qvg_cli.config.schema import CacheConfig
from qvg_cli.errors import UsageError
from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES, Memory, ViewOverlap, ball_points
from qvg_cli.models.hyworldplay.trajectory import camera_path
from qvg_cli.planning.ledger import bf16_frame_bytes, total
from qvg_cli.video.picture import fill_frame, place
from qvg_kernels.codecs.registry import build_codec

FOLDER = golden_folder("hyworldplay")
POSES = load_golden(FOLDER, "poses.json")
SELECTION = load_golden(FOLDER, "memory_selection.json")
IMAGES = load_golden(FOLDER, "image_prep.json")
MIB = 2**20


def assert_path(path, case, prefix: str) -> None:
    golden = load_golden(FOLDER, "poses.safetensors")
    assert list(path.actions) == case["action"] == golden[f"{prefix}.action"].tolist()
    # In float64; which of two neighbouring numbers comes out depends on the library of linear algebra.
    np.testing.assert_allclose(path.viewmats, golden[f"{prefix}.viewmats"].numpy(), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(path.intrinsics, golden[f"{prefix}.intrinsics"].numpy())
    assert len(path) == case["latent_frames"]


@pytest.mark.parametrize("index", range(len(POSES["strings"])))
def test_pose_texts(index):
    case = POSES["strings"][index]
    path = camera_path(case["pose"])
    assert_path(path, case, f"pose{index}")
    assert len(path) // CHUNK_FRAMES == case["max_chunks"]


def test_trajectory_file():
    case = POSES["trajectory"]
    assert_path(camera_path(str(FOLDER / case["file"])), case, "trajectory")


@pytest.mark.parametrize("text", POSES["invalid"])
def test_pose_texts_that_are_refused(text):
    with pytest.raises(UsageError):
        camera_path(text)


@pytest.fixture(scope="module")
def golden_memory():
    arrays = load_golden(FOLDER, "memory_selection.safetensors")
    overlap = ViewOverlap(arrays["points"].double().numpy())
    return lambda frames, recalled: Memory(arrays["viewmats"].double().numpy(), overlap, frames, recalled)


@pytest.mark.parametrize(
    "case", SELECTION["cases"], ids=lambda case: f"{case['memory_frames']}-at-{case['current_frame']}"
)
def test_recalled_frames(golden_memory, case):
    start, recent = case["current_frame"], case["temporal_context_size"]
    memory = golden_memory(case["memory_frames"], case["memory_frames"] - recent)
    assert list(memory.context(start)) == case["selected"]
    distances = memory.clip_distances(start, start - recent)
    expected = {int(clip): distance for clip, distance in case["clip_distance"].items()}
    assert distances == pytest.approx(expected, abs=1e-6)


def test_even_points_measure_what_many_random_ones_do(golden_memory):
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(400_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    random = directions * 8 * np.cbrt(generator.random((len(directions), 1)))
    viewmats = golden_memory(16, 4).viewmats
    query, others = viewmats[40], viewmats[:40:5]
    np.testing.assert_allclose(
        ViewOverlap(ball_points()).distances(query, others),
        ViewOverlap(random).distances(query, others),
        atol=0.02,
    )


@pytest.mark.parametrize("case", IMAGES["cases"], ids=lambda case: "x".join(map(str, case["source"])))
def test_picture_placement(case):
    width, height = IMAGES["target"]
    resized, crop_box = place(*case["source"], target_width=width, target_height=height)
    assert list(resized) == case["resized"]
    assert list(crop_box) == case["crop_box"]


@pytest.mark.parametrize(
    "source", IMAGES["must_still_cover_target"], ids=lambda size: "x".join(map(str, size))
)
def test_pictures_cover_the_frame(source):
    width, height = IMAGES["target"]
    filled = fill_frame(Image.new("RGB", tuple(source), "white"), height=height, width=width)
    assert filled.shape == (height, width, 3)
    assert filled.min() == 255


def test_the_default_cache_is_eleven_times_smaller_than_the_original():
    golden = load_golden(FOLDER, "cache_memory.json")
    preset = read_preset("int2", "the test")
    config = CacheConfig.model_validate({"preset": "int2", **preset})
    # One head of one chunk; bytes grow in proportion with both.
    tokens, head_dim = CHUNK_FRAMES * golden["tokens_per_latent_frame"], golden["cached_head_dim"] // 2
    raw = torch.randn(1, 1, tokens, head_dim)
    held = sum(total(build_codec(spec).encode(raw, seed=0).payload_bytes()) for spec in (config.k, config.v))
    original = golden["tensors_per_layer"] * tokens * golden["cached_head_dim"] * 2
    assert original / held > 11


def test_raw_keys_and_values_take_half_of_the_original_cache():
    golden = load_golden(FOLDER, "cache_memory.json")
    for row in golden["table"]:
        width = golden["heads"] * golden["cached_head_dim"] // 2
        frame_bytes = bf16_frame_bytes(golden["tokens_per_latent_frame"], width, golden["layers"])
        held = row["frames"] * frame_bytes / golden["layers"] / MIB
        assert held == row["bf16_only_mb_per_layer"] / 2
