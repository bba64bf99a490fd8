"""`qvg download self-forcing`, whole: from a hub to a folder that `qvg generate` finds without any option."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from published import saved
from safetensors.torch import load_file

from qvg_cli.comparison.lpips import find_network
from qvg_cli.config.resources import find_taehv, weights_folder
from qvg_cli.errors import MissingModelError
from qvg_cli.models.self_forcing.family import SelfForcing

CHECKPOINT = "checkpoints/self_forcing_dmd.pt"
MODEL = "gdhe17/Self-Forcing"
BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "qvg" / "self-forcing"


@pytest.fixture
def downloaded(published, qvg_download, folder):
    result = qvg_download("self-forcing")
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n"), result.stderr
    published.requests.clear()
    return folder


def record_of(folder):
    return json.loads((folder / "download.json").read_text())


def fetched(hub):
    return {request.path.split("/", 5)[-1] for request in hub.requests if "/resolve/" in request.path}


def test_generate_finds_what_was_downloaded(downloaded, qvg, tmp_path):
    assert weights_folder("self-forcing") == downloaded
    result = qvg(
        "generate", "a red ball", "--backend", "self-forcing", "--frames", 9, "--size", "64x32",
        "--set", "model.text_tokens=8", "--device", "cpu", "--out", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert Path(result.stdout.strip()).is_file()


def test_only_what_is_needed_is_fetched(published, qvg_download, base_files):
    assert qvg_download("self-forcing").exit_code == 0
    needed = {path for path in base_files if path.split("/")[0] in ("vae", "tokenizer", "text_encoder")}
    assert fetched(published) == {
        *needed - {"text_encoder/pytorch_model.bin"},
        "transformer/config.json",
        CHECKPOINT,
    }


def test_the_converted_transformer_is_the_published_one(downloaded, tiny_weights):
    kept = WanTransformer3DModel._keep_in_fp32_modules
    source = WanTransformer3DModel.from_pretrained(tiny_weights / "transformer").state_dict()
    found = WanTransformer3DModel.from_pretrained(downloaded / "transformer", torch_dtype=torch.bfloat16)
    assert found.state_dict().keys() == source.keys()
    for name, tensor in found.state_dict().items():
        is_kept = bool(set(kept) & set(name.split(".")))
        assert tensor.dtype == (torch.float32 if is_kept else torch.bfloat16)
        assert torch.equal(tensor, source[name].to(tensor.dtype)), name


def test_lpips_gets_its_network_and_nothing_else(hub, qvg_download, free_space, random_vgg):
    content = (random_vgg / "lpips" / "vgg16" / "model.safetensors").read_bytes()
    name = "timm/vgg16.tv_in1k"
    hub.repository(name, {"model.safetensors": content, "pytorch_model.bin": b"the same as a pickle"})
    result = qvg_download("lpips", "--revision", f"{name}=main")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.endswith("lpips downloaded. Try: qvg compare bf16 int2 --lpips\n")
    assert fetched(hub) == {"model.safetensors"}
    assert find_network().read_bytes() == content


def test_both_small_decoders_come_together(hub, qvg_download, free_space, tiny_weights, random_taehv):
    paths = sorted((random_taehv / "taehv").rglob("*.safetensors"))
    for name, path in zip(("OzzyGT/taew2_1", "YiYiXu/taew2_2-diffusers"), paths, strict=True):
        hub.repository(name, {path.name: path.read_bytes(), "README.md": b"about it"})
    result = qvg_download("taehv")
    assert result.exit_code == 0, result.stderr
    assert fetched(hub) == {path.name for path in paths}
    assert find_taehv(tiny_weights).read_bytes() == paths[0].read_bytes()


def test_the_record_says_where_everything_came_from(published, downloaded, checkpoint):
    record = record_of(downloaded)
    commits = {name: published.repositories[name].branches["main"] for name in (MODEL, BASE)}
    assert {each["repository"]: each["commit"] for each in record["repositories"]} == commits
    assert [each["licence"] for each in record["repositories"]] == ["cc-by-nc-sa-4.0", None]
    source = record["repositories"][0]["files"][0]
    assert (source["path"], source["size"], source["target"]) == (CHECKPOINT, len(checkpoint), None)
    converted = record["converted"][0]
    assert converted["source_sha256"] == source["sha256"]
    assert converted["sizes"][WEIGHTS] == (downloaded / WEIGHTS).stat().st_size


def test_the_user_sees_licence_sizes_and_space_first(published, qvg_download, checkpoint):
    result = qvg_download("self-forcing")
    lines = result.stderr.splitlines()
    commit = published.repositories[MODEL].branches["main"][:12]
    assert lines[1].startswith("licence: the published weights are for non-commercial use")
    assert lines[2] == (
        f"https://huggingface.co/{MODEL} at {commit} (of main), licence on the model card: cc-by-nc-sa-4.0"
    )
    assert lines[3].split()[2:] == [CHECKPOINT, "(to", "download)"]
    shown = [line for line in lines if line.startswith(("to download: ", "to convert: ", "file 1/"))]
    assert [line.split(":")[0] for line in shown] == ["to download", "to convert", "file 1/8"]
    assert "free at" in shown[0]


def test_a_second_download_asks_for_nothing(published, downloaded, qvg_download):
    result = qvg_download("self-forcing")
    assert (result.exit_code, result.stdout) == (0, f"{downloaded}\n")
    assert "self-forcing is already downloaded" in result.stderr
    assert not published.requests


def test_the_recorded_commit_is_used_again(published, downloaded, qvg_download, base_files):
    first = published.repositories[BASE].branches["main"]
    published.repositories[BASE].push({**base_files, "vae/config.json": b"{}"})
    next(downloaded.glob("vae/*.json")).unlink()
    result = qvg_download("self-forcing")
    assert result.exit_code == 0, result.stderr
    assert f"at {first[:12]} (the commit of the last download)" in result.stderr
    assert record_of(downloaded)["repositories"][1]["commit"] == first


def test_a_named_revision_moves_on(published, downloaded, qvg_download, base_files):
    inode = (downloaded / WEIGHTS).stat().st_ino
    newer = published.repositories[BASE].push({**base_files, "vae/notes.json": b"{}"})
    result = qvg_download("self-forcing", "--revision", f"{BASE}=main")
    assert result.exit_code == 0, result.stderr
    assert record_of(downloaded)["repositories"][1]["commit"] == newer
    assert (downloaded / "vae" / "notes.json").read_text() == "{}"
    # The checkpoint did not change: what it was converted to is used again, and so are the other files.
    assert (downloaded / WEIGHTS).stat().st_ino == inode
    assert [request.path.split("/", 5)[-1] for request in published.asked("GET", ".json")] == [
        "vae/notes.json"
    ]
    assert not published.asked("STORE", "")


def test_a_new_checkpoint_is_converted_anew(published, downloaded, qvg_download, generator):
    changed = {name: tensor + 1 for name, tensor in generator.items()}
    published.repositories[MODEL].push({CHECKPOINT: saved({"generator_ema": changed})}, branch="next")
    assert qvg_download("self-forcing", "--revision", f"{MODEL}=next").exit_code == 0
    found = WanTransformer3DModel.from_pretrained(downloaded / "transformer").state_dict()
    name = "blocks.0.attn1.norm_q.weight"
    assert torch.equal(found[name].bfloat16(), changed["model.blocks.0.self_attn.norm_q.weight"].bfloat16())


def test_the_hubs_cache_is_never_written_through(downloaded, tiny_weights):
    assert not (downloaded / "transformer" / "config.json").is_symlink()
    link = downloaded / "vae" / "config.json"
    assert link.is_symlink()
    assert link.read_bytes() == (tiny_weights / "vae" / "config.json").read_bytes()


def test_files_that_have_gone_are_named_and_fetched_again(downloaded, qvg_download, tmp_path):
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(MissingModelError, match="links to a file that is gone") as raised:
        weights_folder("self-forcing")
    assert raised.value.hint == "download it again with: qvg download self-forcing"
    result = qvg_download("self-forcing")
    assert result.exit_code == 0
    assert "converting" not in result.stderr
    assert weights_folder("self-forcing") == downloaded


def test_what_is_missing_is_answered_with_the_command(qvg, hub, tmp_path):
    result = qvg(
        "generate", "a ball", "--backend", "self-forcing", "--device", "cpu", "--out", tmp_path / "out"
    )
    assert result.exit_code == 3
    assert f"error: no weights at {tmp_path}/qvg/self-forcing" in result.stderr
    assert "qvg download self-forcing" in result.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing_half(published, qvg_download, folder, monkeypatch, error):
    def convert(family, source, config, into, **options):
        into.mkdir()
        (into / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SelfForcing, "convert_checkpoint", convert)
        result = qvg_download("self-forcing")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "defect" not in result.stderr
    assert [path.name for path in folder.parent.iterdir()] == [".self-forcing.lock"]
    published.requests.clear()
    assert qvg_download("self-forcing").exit_code == 0
    assert not published.asked("STORE", "")


def test_an_interrupted_update_keeps_the_old_folder(
    published, downloaded, qvg_download, monkeypatch, generator
):
    published.repositories[MODEL].push({CHECKPOINT: saved({"generator": generator})})
    before = record_of(downloaded)

    def convert(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(SelfForcing, "convert_checkpoint", convert)
    assert qvg_download("self-forcing", "--revision", f"{MODEL}=main").exit_code == 130
    assert record_of(downloaded) == before
    assert weights_folder("self-forcing") == downloaded


def test_a_checkpoint_of_another_model_is_named_and_leaves_nothing(
    published, qvg_download, folder, generator
):
    lacking = {name: tensor for name, tensor in generator.items() if name != "model.head.head.bias"}
    published.repositories[MODEL].push({CHECKPOINT: saved({"generator_ema": lacking})})
    result = qvg_download("self-forcing")
    assert result.exit_code == 3
    assert "error: tensor proj_out.bias is missing from " in result.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[1]", "the downloaded config.json for transformer is not readable"),
        (b"{", "the downloaded config.json for transformer is not readable"),
        (b'{"num_wings": 2}', "config.json does not describe this transformer: "),
    ],
)
def test_a_config_of_something_else_is_named(published, qvg_download, folder, base_files, config, message):
    published.repositories[BASE].push({**base_files, "transformer/config.json": config})
    result = qvg_download("self-forcing")
    assert result.exit_code == 3
    assert f"error: {message}" in result.stderr
    assert not folder.exists()


class Payload:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_the_checkpoint_never_runs(published, qvg_download, folder, tmp_path):
    published.repositories[MODEL].push({CHECKPOINT: saved({"generator_ema": Payload(tmp_path / "ran")})})
    result = qvg_download("self-forcing")
    assert result.exit_code == 3
    assert "contains more than tensors and was not loaded" in result.stderr
    assert not (tmp_path / "ran").exists()
    assert not folder.exists()


def test_too_little_space_is_found_before_anything_is_fetched(published, qvg_download, free_space):
    free_space(2**20)
    result = qvg_download("self-forcing")
    assert result.exit_code == 1
    assert "1.0 MiB free" in result.stderr
    assert "QVG_HOME" in result.stderr
    assert not fetched(published)


def test_what_is_there_needs_no_space(published, downloaded, qvg_download, free_space):
    free_space(0)
    assert qvg_download("self-forcing").exit_code == 0


def test_a_dry_run_writes_nothing(published, qvg_download, tmp_path, checkpoint):
    result = qvg_download("self-forcing", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"{CHECKPOINT}  (to download)" in result.stdout
    assert not fetched(published)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_is_there(downloaded, qvg_download):
    result = qvg_download("self-forcing", "--dry-run")
    assert f"{CHECKPOINT}  (there)" in result.stdout
    assert "to download: 0 bytes" in result.stdout


def test_list(published, qvg_download, folder):
    before = qvg_download("--list", "self-forcing").stdout
    assert "self-forcing: Wan2.1-T2V-1.3B distilled" in before
    assert f"  {MODEL} at main" in before
    qvg_download("self-forcing")
    published.requests.clear()
    after = qvg_download("--list", "self-forcing").stdout
    assert re.search(rf"  [\d.]+ [KM]iB, downloaded in {folder}\n", after)
    assert f"  {MODEL} at commit {published.repositories[MODEL].branches['main']}" in after
    assert not published.requests


def test_quiet(published, qvg_download, folder):
    result = qvg_download("self-forcing", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{folder}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model given"),
        (["selfforcing"], "unknown model 'selfforcing'"),
        (["self-forcing", "--revision", "main"], "--revision main is not REPOSITORY=REVISION"),
        (["self-forcing", "--revision", f"{MODEL}="], f"--revision {MODEL}= is not REPOSITORY=REVISION"),
        (["self-forcing", "--revision", "some/other=main"], "--revision some/other=main is not"),
    ],
)
def test_usage(qvg_download, arguments, message):
    result = qvg_download(*arguments)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert "hint: " in result.stderr


def test_a_file_that_the_repository_lacks(published, qvg_download):
    published.repositories[MODEL].push({"README.md": b""})
    result = qvg_download("self-forcing")
    assert result.exit_code == 3
    assert f"error: {MODEL} has no {CHECKPOINT} at this revision" in result.stderr
    assert f"--revision {MODEL}=REVISION" in result.stderr


def test_what_others_put_there_is_not_replaced(published, downloaded, qvg_download):
    (downloaded / "vae" / "own.safetensors").write_bytes(b"mine")
    result = qvg_download("self-forcing", "--revision", f"{MODEL}=main")
    assert result.exit_code == 1
    assert f"error: {downloaded}/vae/own.safetensors was not created by qvg download" in result.stderr
    assert not published.requests
    assert (downloaded / "vae" / "own.safetensors").read_bytes() == b"mine"


def test_a_folder_of_the_users_own_is_not_replaced(published, qvg_download, folder):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"mine")
    result = qvg_download("self-forcing")
    assert result.exit_code == 1
    assert (folder / "model.safetensors").read_bytes() == b"mine"


def test_a_stop_between_the_two_moves_is_put_right(downloaded, qvg_download):
    downloaded.rename(downloaded.parent / ".self-forcing.old")
    result = qvg_download("self-forcing")
    assert "self-forcing is already downloaded" in result.stderr


def test_what_a_killed_run_left_is_removed(published, qvg_download, folder):
    part = folder.parent / ".self-forcing.part"
    part.mkdir(parents=True)
    (part / "half").write_bytes(b"half")
    assert qvg_download("self-forcing").exit_code == 0
    assert not part.exists()


def test_a_broken_record_is_written_anew(published, downloaded, qvg_download):
    (downloaded / "download.json").write_text("{")
    # Without a record, a file of ours cannot be told from one of the user's.
    assert qvg_download("self-forcing").exit_code == 1
    (downloaded / WEIGHTS).unlink()
    (downloaded / "transformer" / "config.json").unlink()
    assert qvg_download("self-forcing").exit_code == 0
    assert record_of(downloaded)["format"] == 1


def test_a_home_that_cannot_be_written(published, qvg_download, tmp_path):
    (tmp_path / "qvg").write_text("a file")
    result = qvg_download("self-forcing")
    assert result.exit_code == 1
    assert f"error: cannot write to {tmp_path}/qvg" in result.stderr
    assert "set QVG_HOME" in result.stderr
    assert not published.requests


def test_other_backends_need_no_code_of_their_own(hub, qvg_download, base_files, free_space, tmp_path):
    from qvg_cli.models.hyworldplay.model import WalkTransformer
    from qvg_cli.models.wan.checkpoint import open_wan

    config = {**TINY_WALK, "_class_name": "WanTransformer3DModel", "_diffusers_version": "0"}
    state = WalkTransformer(**TINY_WALK).state_dict()
    hub.repository(
        "tencent/HY-WorldPlay",
        {
            "wan_transformer/config.json": json.dumps(config).encode(),
            "wan_transformer/diffusion_pytorch_model.safetensors": b"not needed",
            "wan_distilled_model/model.pt": saved({"generator": state, "generator_ema": {}}),
        },
    )
    hub.repository("Wan-AI/Wan2.2-TI2V-5B-Diffusers", base_files)
    result = qvg_download("hyworldplay")
    assert result.exit_code == 0, result.stderr
    assert not hub.asked("GET", "wan_transformer/diffusion_pytorch_model.safetensors")
    folder = weights_folder("hyworldplay")
    found = open_wan(WalkTransformer, folder / "transformer").load(torch.bfloat16).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name].to(found[name].dtype)) for name in state)
    # The converter writes a config.json of its own: not into the hub's cache, which the folder linked to.
    assert json.loads((folder / "transformer" / "config.json").read_text()).keys() == {
        "_class_name",
        *TINY_WALK,
    }
    (cached,) = (tmp_path / "hf").rglob("wan_transformer/config.json")
    assert json.loads(cached.read_text()) == config


TINY_WALK = {
    "num_attention_heads": 1,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


@pytest.fixture
def longlive(published, generator):
    """The repository of configs/longlive.yaml: two sets of weights, and an adapter beside a critic's."""
    averaged = {name: tensor + 1 for name, tensor in generator.items()}
    down, up = torch.full((2, 64), 0.5), torch.full((64, 2), 0.25)
    stem = "base_model.model.blocks.0.self_attn.q"
    adapter = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    files = {
        "models/longlive_base.pt": saved({"generator_ema": averaged, "generator": generator}),
        "models/lora.pt": saved({"generator_lora": adapter, "critic_lora": {"x": torch.zeros(1)}}),
    }
    published.repository("Efficient-Large-Model/LongLive-1.3B", files, licence="cc-by-nc-sa-4.0")
    return published


def test_weights_key_and_adapter_decide_what_is_converted(longlive, qvg_download, generator, tmp_path):
    result = qvg_download("longlive")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "qvg" / "longlive"
    state = load_file(folder / WEIGHTS)
    # Alpha 256 over rank 2, times the product of the matrices.
    raw = generator["model.blocks.0.self_attn.q.weight"]
    assert torch.equal(state["blocks.0.attn1.to_q.weight"], (raw + 128 * 0.25).bfloat16())
    other = generator["model.blocks.0.self_attn.k.weight"]
    assert torch.equal(state["blocks.0.attn1.to_k.weight"], other.bfloat16())
    assert not list(folder.rglob("*.pt"))
    assert "longlive is already downloaded" in qvg_download("longlive").stderr


def test_weights_that_are_shared_are_fetched_once(downloaded, qvg_download, published):
    result = qvg_download("self-forcing-anti-drift")
    assert (result.exit_code, result.stdout) == (0, f"{downloaded}\n"), result.stderr
    assert "self-forcing-anti-drift uses the weights of self-forcing\n" in result.stderr
    assert not fetched(published)
    shown = qvg_download("--list", "self-forcing-anti-drift").stdout
    assert f"downloaded (weights of self-forcing) in {downloaded}" in shown


def test_the_list_groups_families(qvg_download):
    shown = qvg_download("--list").stdout
    assert re.search(r"^self-forcing +29 GB    not downloaded$", shown, re.MULTILINE)
    first, *others = re.findall(r"^  ([a-z-]+[0-9a-z]*)", shown[shown.index("self-forcing") :], re.MULTILINE)
    assert {first, *others} >= {"longlive", "sgf-chunk", "causal-forcing-1step", "infinite-forcing"}
