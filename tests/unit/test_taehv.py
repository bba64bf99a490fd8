"""The small decoder: its layers, its streaming, its files, and where it stands in the place of the VAE."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file, save_file

from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import MissingModelError
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.models.taehv import SmallDecoder, SmallNetwork, read_network
from qvg_cli.models.vae import send_pixels
from qvg_cli.runs.identity import identify
from scripts import full_size
from scripts.random_models import FULL, TINY, RandomModels

NUM_BLOCKS = 9
OPTIONS = {
    "self-forcing": ["--frames", "12"],
    "hyworldplay": ["--chunks", "2", "--context", "incremental"],
    "longcat": ["--segments", "1", "--set", "sampler.guided_steps=2", "--set", "sampler.window=24"],
}
# The mean of every frame, by the authors' code at 1f14a56 in float32, from these weights and latents.
FRAME_MEANS = {
    "wan21/taew2_1": [
        *(0.00915, 0.008874, 0.014954, 0.012988, 0.008339, 0.008453, 0.016246),
        *(0.007998, 0.007828, 0.010128, 0.015662, 0.008754, 0.009524),
    ],
    "wan22/diffusion_pytorch_model": [
        *(0.107839, 0.097806, 0.106113, 0.100677, 0.110978, 0.085663, 0.098142),
        *(0.099507, 0.116583, 0.095902, 0.106542, 0.100096, 0.103777),
    ],
}


@pytest.fixture(params=[(16, 1), (48, 2)], ids=["wan 2.1", "wan 2.2"])
def network(request):
    torch.manual_seed(0)
    return SmallNetwork(*request.param, widths=(12, 8, 4, 4)).eval()


@pytest.fixture
def latents(network):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, network.decoder[1].in_channels, 7, 3, 4, generator=generator)


@pytest.mark.parametrize("name", FRAME_MEANS)
def test_files_of_both_layouts_decode_as_by_the_authors(random_taehv, name):
    network = read_network(random_taehv / "taehv" / f"{name}.safetensors")
    shape = 1, network.decoder[1].in_channels, 4, 4, 5
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    means = (SmallDecoder(network).decode_float(latents) + 1).mean(dim=(0, 1, 3, 4)) / 2
    torch.testing.assert_close(means, torch.tensor(FRAME_MEANS[name]), rtol=0, atol=2e-6)


def test_streaming_is_decoding_at_once(network, latents):
    with torch.no_grad():
        pixels = network(latents[0].transpose(0, 1), [None] * NUM_BLOCKS)[3:]
    decoder = SmallDecoder(network)
    streamed = torch.cat([decoder.decode_float(part) for part in latents.split([3, 1, 3], dim=2)], dim=2)
    side = 8 * network.patch
    assert streamed.shape == (1, 3, 25, 3 * side, 4 * side)
    torch.testing.assert_close(streamed[0].transpose(0, 1), 2 * pixels - 1, rtol=0, atol=1e-5)
    assert torch.equal(SmallDecoder(network).decode_float(latents), streamed)


def test_what_lies_out_of_reach_need_not_be_decoded_again(network, latents):
    latents = torch.cat([latents, latents.flip(2)], dim=2)
    whole, late = SmallDecoder(network), SmallDecoder(network)
    expected = whole.decode_float(latents)[:, :, -8:]
    late.skip((), latents[:, :, :-2], 0)
    assert torch.equal(late.decode_float(latents[:, :, -2:]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.4.gate": torch.zeros(1)}, "tensor decoder.4.gate in .* is not part of the model"),
        ({"decoder.13.conv.weight": None}, "tensor decoder.13.conv.weight is missing from"),
        ({"decoder.1.bias": torch.zeros(3)}, r"tensor decoder.1.bias in .* has shape \(3,\)"),
    ],
)
def test_the_first_foreign_tensor_of_a_file_is_named(random_taehv, tmp_path, change, message):
    tensors = load_file(random_taehv / "taehv" / "wan21" / "taew2_1.safetensors") | change
    path = tmp_path / "other.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(MissingModelError, match=message):
        read_network(path)


# LongCat-Video's shortest video with a segment has many frames.
@pytest.mark.parametrize(
    "backend", ["self-forcing", "hyworldplay", pytest.param("longcat", marks=pytest.mark.slow)]
)
def test_every_family_shows_what_it_decodes(backend):
    arguments = ["--backend", backend, "--size", "tiny", "--out", "unused", *OPTIONS[backend]]
    arguments += ["--set", "device=cpu", "--set", "video.decoder=taehv"]
    config = full_size.load_run(full_size.parse_options(arguments), "none")
    models = RandomModels(config, TINY[backend], torch.device("cpu"))
    engine = Engine(config, full_size.PIPELINES[backend](config, models), torch.device("cpu"))
    embeds = models.text_states(2 if backend == "longcat" else 1, config.model.text_tokens)
    video = Planned(config, plan_video(config), backend)
    results = list(engine.rollout(video, prompt_embeds={0: embeds}))
    shown = torch.cat([result.frames for result in results], dim=1)
    assert shown.shape[1] == video.plan.num_pixel_frames
    first = SmallDecoder(models.small_decoder).decode_float(results[0].latents)
    assert torch.equal(results[0].frames, send_pixels(first).wait())


def test_another_file_is_another_run(tiny_weights, random_taehv, tmp_path, monkeypatch):
    shutil.copytree(random_taehv, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("QVG_HOME", str(tmp_path))
    sets = [f"model.weights={tiny_weights}", "model.text_tokens=8", "video.decoder=taehv"]
    config = load_config(Request(backend="self-forcing", sets=sets)).config
    first = identify(config, "cpu").weights
    path = tmp_path / "taehv" / "wan21" / "taew2_1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert identify(config, "cpu").weights != first


def test_the_vae_is_not_read_where_nothing_is_encoded(tiny_weights, random_taehv, tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(random_taehv))
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    Image.new("RGB", (64, 32)).save(tmp_path / "picture.png")
    next((folder / "vae").glob("*.safetensors")).unlink()
    settings = {"model.weights": str(folder), "video.decoder": "taehv", "video.height": 32, "video.width": 64}
    engine = Engine.load("causal-forcing-frame", device="cpu", settings=settings)
    assert len(engine.generate(frames=9, steps=1).frames) == 9
    with pytest.raises(MissingModelError, match=r"cannot load .*vae"):
        engine.generate(frames=9, steps=1, image=str(tmp_path / "picture.png"))


@pytest.mark.parametrize(
    ("backend", "sets", "is_beside"),
    [
        ("self-forcing", [], False),
        ("self-forcing", ["source.clip=clip.mp4", "source.clip_frames=1"], True),
        ("hyworldplay", [], True),
        ("hyworldplay", ["walk.image=null"], False),
        ("longcat", [], True),
    ],
)
def test_a_plan_counts_the_vae_beside_it_where_that_encodes(backend, sets, is_beside):
    sizes = []
    for decoder in ("vae", "taehv"):
        config = load_config(Request(backend=backend, sets=[f"video.decoder={decoder}", *sets])).config
        sizes.append(family_of(config).sizes(config, is_gpu=True))
    with torch.device("meta"):
        largest = sum(tensor.numel() for tensor in SmallNetwork(48, 2).parameters())
        vae = sum(tensor.numel() for tensor in AutoencoderKLWan(**FULL[backend].vae).parameters())
    assert [each.vae_bytes for each in sizes] == [2 * vae, 2 * (vae * is_beside + largest)]
    assert sizes[1].vae.work_bytes < sizes[0].vae.work_bytes / 3
