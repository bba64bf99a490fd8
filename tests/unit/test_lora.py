"""Adapters: the names that files have, what is added to a weight, and what is said of a wrong file."""

import pytest
import torch
from safetensors.torch import save_file

from qvg_cli.config.load import Layer, Request
from qvg_cli.config.schema import MemoryConfig
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import MissingModelError, UsageError
from qvg_cli.models.offload import STORAGE_DTYPE
from qvg_cli.models.registry import load_config, load_pipeline, plan_video
from qvg_cli.models.self_forcing.pipeline import _open_checkpoint
from qvg_cli.models.wan.lora import Lora
from qvg_cli.runs.identity import differences, identify

QUERY = "blocks.1.attn1.to_q.weight"
FFN = "blocks.0.ffn.net.2.weight"


@pytest.fixture
def matrices():
    """Down and up matrices of rank 2 for two modules of the tiny model, by the published path."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"blocks.1.self_attn.q": (64, 64), "blocks.0.ffn.2": (64, 32)}
    return {
        module: (torch.randn(2, width, generator=generator), torch.randn(rows, 2, generator=generator))
        for module, (rows, width) in sizes.items()
    }


def peft(module, down, up):
    name = f"base_model.model.{module}"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def diffusers(module, down, up):
    module = module.replace("self_attn.q", "attn1.to_q").replace("ffn.2", "ffn.net.2")
    return {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}


def original(module, down, up):
    return {
        f"diffusion_model.{module}.lora_down.weight": down,
        f"diffusion_model.{module}.lora_up.weight": up,
    }


def bare(module, down, up):
    return {f"{module}.lora_A.default.weight": down, f"{module}.lora_B.default.weight": up}


def longcat(module, down, up):
    stem = "lora." + module
    stem = stem.replace(".", "___lorahyphen___")
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}


def tensors_of(naming, matrices):
    return {
        name: tensor for module, pair in matrices.items() for name, tensor in naming(module, *pair).items()
    }


def settings(tiny_weights, *lora):
    sets = [f"model.weights={tiny_weights}", "model.text_tokens=8"]
    return load_config(
        Request("self-forcing", sets=sets, options=[Layer("model.lora", {"model": {"lora": list(lora)}})])
    ).config


def state(tiny_weights, *lora, **load):
    model = _open_checkpoint(tiny_weights, settings(tiny_weights, *lora).model).load(**load)
    return model.state_dict()


def video(tiny_weights, *lora, device="cpu", **memory):
    """Latents of two chunks, with weights held as `memory` says."""
    config = settings(tiny_weights, *lora)
    frames = config.video.model_copy(update={"height": 32, "width": 64, "frames": 6})
    config = config.model_copy(update={"video": frames})
    pipeline = load_pipeline(config, torch.device(device))
    # Set afterwards: on a CPU it would be refused, but what moves weights does not ask for the device.
    pipeline._models.offload.memory = MemoryConfig(**memory)
    results = Engine(config, pipeline, torch.device(device)).rollout(Planned(config, plan_video(config), "v"))
    return torch.cat([result.latents.cpu() for result in results], dim=2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("weights", ["model", "fp8"])
def test_an_adapter_works_with_streamed_and_rounded_weights(
    tiny_weights, matrices, tmp_path, weights, device
):
    save_file(tensors_of(peft, matrices), tmp_path / "a.safetensors")
    lora = {"file": str(tmp_path / "a.safetensors")}
    plain = video(tiny_weights, device=device, weights=weights)
    adapted = video(tiny_weights, lora, device=device, weights=weights)
    streamed = video(tiny_weights, lora, device=device, weights=weights, transformer="group")
    assert not adapted.equal(plain)
    assert streamed.equal(adapted)


@pytest.mark.parametrize("naming", [peft, diffusers, original, bare, longcat])
def test_names_of_every_format_mean_the_same_weights(tiny_weights, matrices, tmp_path, naming):
    save_file(tensors_of(naming, matrices), tmp_path / "a.safetensors")
    plain = state(tiny_weights)
    found = state(tiny_weights, {"file": str(tmp_path / "a.safetensors")})
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    assert changed == {QUERY, FFN}
    down, up = matrices["blocks.1.self_attn.q"]
    assert torch.allclose(found[QUERY], plain[QUERY] + up @ down, atol=1e-6)


def test_a_pickle_has_it_under_a_key_beside_others(tiny_weights, matrices, tmp_path):
    content = {"generator_lora": tensors_of(peft, matrices), "critic_lora": {"x": torch.zeros(2)}}
    torch.save(content, tmp_path / "lora.pt")
    save_file(tensors_of(peft, matrices), tmp_path / "a.safetensors")
    one = state(tiny_weights, {"file": str(tmp_path / "lora.pt")})
    other = state(tiny_weights, {"file": str(tmp_path / "a.safetensors")})
    assert torch.equal(one[QUERY], other[QUERY])


def test_weight_and_alpha_scale_what_is_added_and_several_add_up(tiny_weights, matrices, tmp_path):
    stored = {**tensors_of(original, matrices), "diffusion_model.blocks.0.ffn.2.alpha": torch.tensor(8.0)}
    save_file(stored, tmp_path / "a.safetensors")
    file = str(tmp_path / "a.safetensors")
    plain = state(tiny_weights)
    down, up = matrices["blocks.0.ffn.2"]

    def factor(*lora):
        added = state(tiny_weights, *lora)[FFN] - plain[FFN]
        return (added / (up @ down)).median().item()

    assert factor({"file": file}) == pytest.approx(4.0, rel=1e-3)
    assert factor({"file": file, "alpha": 3}) == pytest.approx(1.5, rel=1e-3)
    both = ({"file": file, "weight": 0.5}, {"file": file, "alpha": 2, "weight": -1})
    assert factor(*both) == pytest.approx(1.0, rel=1e-3)


def test_it_is_added_in_float32_before_the_weight_is_rounded(tiny_weights, matrices, tmp_path):
    save_file(tensors_of(peft, matrices), tmp_path / "a.safetensors")
    lora = {"file": str(tmp_path / "a.safetensors")}
    exact = state(tiny_weights, lora)
    assert torch.equal(state(tiny_weights, lora, dtype=torch.bfloat16)[QUERY], exact[QUERY].bfloat16())
    fp8 = state(tiny_weights, lora, dtype=torch.bfloat16, matrix_dtype=STORAGE_DTYPE)
    assert torch.equal(fp8[QUERY].float(), exact[QUERY].bfloat16().to(STORAGE_DTYPE).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda it: it.update(peft("blocks.7.self_attn.q", torch.ones(2, 64), torch.ones(64, 2))),
            r"is for blocks\.7\.self_attn\.q, which the model does not have: the first unknown tensor is "
            r"base_model\.model\.blocks\.7\.self_attn\.q\.lora_A\.weight",
        ),
        (
            lambda it: it.update(peft("blocks.0.self_attn.k", torch.ones(2, 32), torch.ones(64, 2))),
            r"changes blocks\.0\.self_attn\.k by a matrix of \(64, 32\), the model's is \(64, 64\)",
        ),
        (lambda it: it.update({"unet.x.diff_b": torch.ones(2)}), "unknown tensor unet.x.diff_b in the adap"),
        (
            lambda it: it.pop("base_model.model.blocks.0.ffn.2.lora_B.weight"),
            r"is incomplete: tensors of blocks\.0\.ffn\.2 are missing",
        ),
    ],
)
def test_a_wrong_adapter_is_named(tiny_weights, matrices, tmp_path, change, message):
    tensors = tensors_of(peft, matrices)
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(MissingModelError, match=message):
        state(tiny_weights, {"file": str(tmp_path / "a.safetensors")})


def test_a_file_that_is_no_adapter_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(MissingModelError, match=r"cannot read .*a\.safetensors"):
        Lora(tmp_path / "a.safetensors")
    torch.save({"optimizer": [1]}, tmp_path / "a.pt")
    with pytest.raises(MissingModelError, match=r"a\.pt has no adapter$"):
        Lora(tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for broken in (b"", b"no", whole[: len(whole) // 2]):
        (tmp_path / "a.pt").write_bytes(broken)
        with pytest.raises(MissingModelError, match=r"cannot read .*a\.pt: it is not a whole checkpoint"):
            Lora(tmp_path / "a.pt")


def option(*texts):
    return load_config(Request("self-forcing", options=[Layer("--lora", {"--lora": list(texts)})])).config


def test_the_option_is_repeatable_and_takes_a_weight(tmp_path):
    (tmp_path / "odd:1").write_bytes(b"")
    lora = option("a.safetensors", "b.pt:0.5", str(tmp_path / "odd:1")).model.lora
    assert [(each.file, each.weight, each.alpha) for each in lora] == [
        ("a.safetensors", 1.0, None),
        ("b.pt", 0.5, None),
        (str(tmp_path / "odd:1"), 1.0, None),
    ]


@pytest.mark.parametrize("text", ["a.pt:strong", ":0.5", "a.pt:nan"])
def test_an_option_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError, match=r"^--lora "):
        option(text)


def test_its_file_is_part_of_the_run(tiny_weights, matrices, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors_of(peft, matrices), path)
    config = settings(tiny_weights, {"file": str(path)})
    begun = identify(config, "cpu")
    assert str(path) in begun.inputs
    save_file({name: 2 * tensor for name, tensor in tensors_of(peft, matrices).items()}, path)
    assert differences(begun, identify(config, "cpu")) == [f"the file {path} has changed"]
