"""Round trips between the single file and the model directory change no bit, and bad requests leave nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stable_diffusion.loading import single_file
from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.key_table import PREFIXES, KeyTable
from stable_diffusion.loading.model_config import SETTINGS_FILES, ModelConfig, read_settings
from stable_diffusion.loading.single_file import METADATA_KEY, recognise, stable_diffusion_1, stable_diffusion_2
from stable_diffusion.model_converter import convert, main
from stable_diffusion.model_loader import NETWORKS, load
from tests.tiny import configs, networks, save_model

# What Stability AI's files hold beside what a directory keeps, and the first of them beside what ours keep.
UNUSED = {
    "sd1": {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.ones(()),
    },
    "sd2": {
        "cond_stage_model.model.text_projection": torch.ones(64, 64),
        "cond_stage_model.model.logit_scale": torch.ones(()),
        "cond_stage_model.model.transformer.resblocks.2.ln_1.weight": torch.ones(64),
        "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight": torch.ones(192, 64),
    },
}
TRAINING = {
    "betas": torch.ones(1000, dtype=torch.float64),
    "alphas_cumprod": torch.ones(1000),
    "model_ema.decay": torch.ones(()),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(8, 4, 3, 3),
    "first_stage_model.loss.logvar": torch.ones(()),
}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return every weight of a directory, by its file and name."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def make_file(tmp_path: Path, kind: str = "sd1", dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """Save a tiny model as a directory and as a single file, with its tokenizer beside; return both paths."""
    folder, file = save_model(tmp_path / kind, kind, dtype=dtype), tmp_path / "one.safetensors"
    convert(folder, file)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    return folder, file


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as handle:
        return handle.metadata()


def assert_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def test_a_tiny_autoencoder_has_no_place_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no place for an AutoencoderTiny: use the model's directory"):
        convert(save_model(tmp_path / "sdxs", "sdxs"), tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()
    convert(save_model(tmp_path / "sd1"), tmp_path / "one.safetensors")
    settings = json.dumps({**read_settings(tmp_path / "sd1"), "vae": configs("sdxs")["vae"]})
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "two.safetensors", {METADATA_KEY: settings})
    with pytest.raises(ModelError, match=r"two.safetensors: vae: a single file has no place for an AutoencoderTiny"):
        load(tmp_path / "two.safetensors")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("sd1", torch.float32), ("sd2", torch.float32), ("bk_small", torch.float16), ("bk_tiny", torch.bfloat16)),
        *(("sd1", torch.bfloat16), ("sd2", torch.float16)),
    ],
)
def test_directory_to_file_and_back(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    (folder, file), back = make_file(tmp_path, kind, dtype), tmp_path / "back"
    convert(file, back)
    assert_identical(tensors(folder), tensors(back))
    for name in SETTINGS_FILES.values():
        assert json.loads((folder / name).read_text()) == json.loads((back / name).read_text())
    text = "a red fox, über 3 moons!"
    tokenizers = [load(path).tokenizer for path in (folder, file, back)]
    assert len({str(tokenizer(text, padding="max_length").input_ids) for tokenizer in tokenizers}) == 1


def test_file_to_directory_and_back(kind: str, tmp_path: Path) -> None:
    """The weights of a directory come back bit by bit; unused ones are left out by name."""
    _, file = make_file(tmp_path, kind)
    kept = load_file(file)
    save_file({**kept, **UNUSED[kind], **TRAINING}, tmp_path / "published.safetensors", metadata(file))
    convert(tmp_path / "published.safetensors", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "again.safetensors")
    assert_identical(kept, load_file(tmp_path / "again.safetensors"))
    assert load(tmp_path / "published.safetensors").unet.conv_in.weight.equal(networks(kind)["unet"].conv_in.weight)


def test_half(tmp_path: Path) -> None:
    folder, _ = make_file(tmp_path)
    convert(folder, tmp_path / "half.safetensors", half=True)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    convert(tmp_path / "half.safetensors", tmp_path / "directory")
    halved = {name: tensor.half() for name, tensor in tensors(folder).items()}
    assert_identical(halved, tensors(tmp_path / "directory"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({**state, "conv_in.bias": state["conv_in.bias"] * 1e9}, path)
    with pytest.raises(ModelError, match=r"weights beyond float16 \(conv_in.bias\): convert without --half"):
        convert(folder, tmp_path / "beyond.safetensors", half=True)
    assert not (tmp_path / "beyond.safetensors").exists()


@pytest.mark.parametrize(("kind", "flat"), [("sd1", True), ("sd2", False)])
def test_ckpt(kind: str, flat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published .ckpt files: pickled, wrapped in state_dict or not, and silent about their settings."""
    folder, file = make_file(tmp_path, kind)
    state = {**load_file(file), **UNUSED[kind], **TRAINING}
    torch.save(state if flat else {"state_dict": state, "epoch": 1, "callbacks": {}}, tmp_path / "one.ckpt")
    with pytest.raises(ModelError, match=r"tokenizer|one.ckpt .* weights of"):
        load(tmp_path / "one.ckpt")  # the published models are larger
    monkeypatch.setattr(single_file, f"stable_diffusion_{kind[-1]}", lambda *_: read_settings(folder))
    monkeypatch.setattr(single_file, "CONTEXT_2", 64)
    models = load(tmp_path / "one.ckpt")
    for part, network in networks(kind).items():
        assert_identical(network.state_dict(), getattr(models, part).state_dict())
    assert (models.name, models.source) == ("one", str(tmp_path / "one.ckpt"))


def test_old_shapes_and_names(tmp_path: Path) -> None:
    """The VAE's attention as matrices, and a text tower without `text_model`: both are found in merged files."""
    folder, file = make_file(tmp_path)
    state = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(file).items()}
    state = {name: t[:, :, 0, 0].clone() if ".attn_1." in name and t.ndim == 4 else t for name, t in state.items()}
    save_file(state, file, metadata(file))
    convert(file, tmp_path / "back")
    assert_identical(tensors(folder), tensors(tmp_path / "back"))


# Which model a file holds.


def on_meta(settings: dict) -> dict[str, Tensor]:
    """Return the tensors of a published single file, on the meta device."""
    config = ModelConfig.from_settings(settings)
    tables = [KeyTable.of(part, config, network) for part, network in NETWORKS.items()]
    return {row.name: torch.empty(row.shape, device="meta") for table in tables for row in table.rows}


def never(settings: object) -> str:
    raise AssertionError("the network is asked although the file tells")


def test_published_families_are_recognised(tmp_path: Path) -> None:
    file = tmp_path / "published.ckpt"
    assert recognise(file, on_meta(stable_diffusion_1()), never) == stable_diffusion_1()
    for kind in ("v_prediction", "epsilon"):
        assert recognise(file, on_meta(stable_diffusion_2()), lambda _, kind=kind: kind) == stable_diffusion_2(kind)
    beside = tmp_path / "published.yaml"
    beside.write_text("model:\n  params:\n    unet_config: {}\n")
    assert recognise(file, on_meta(stable_diffusion_2()), never) == stable_diffusion_2("epsilon")
    beside.write_text("model:\n  params:\n    parameterization: v\n")
    assert recognise(file, on_meta(stable_diffusion_2()), never) == stable_diffusion_2("v_prediction")
    for text in (
        "model: 3",
        "model:\n  params:\n    parameterization: x0\n",
        "a: [",
        "!!python/object/apply:os.getcwd []",
    ):
        beside.write_text(text)
        with pytest.raises(ModelError, match=r"published.yaml does not have v or eps"):
            recognise(file, on_meta(stable_diffusion_2()), never)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioner.embedders.0.model.x": (1,)}, "Stable Diffusion XL has two text encoders"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "three text encoders"),
        ({"double_blocks.0.img_attn.x": (1,)}, "Flux is a transformer"),
        ({"control_model.x": (1,)}, "ControlNet"),
        ({"lora_unet_x": (1,)}, "is a LoRA"),
        ({"down_blocks.0.x": (1,)}, "one part of a model directory: give the directory"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "9 channels: an inpainting model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 5, 3, 3)}, "5 channels: a depth model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3)}, "8 channels: an editing model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 7, 3, 3)}, "7 channels: an upscaler"),
    ],
)
def test_relatives_are_refused(change: dict[str, tuple[int, ...]], message: str, tmp_path: Path) -> None:
    state = on_meta(stable_diffusion_1()) | {name: torch.empty(shape, device="meta") for name, shape in change.items()}
    with pytest.raises(ModelError, match=f"file.ckpt is not supported, .*{message}.*only Stable Diffusion 1.x and 2.x"):
        recognise(tmp_path / "file.ckpt", state, never)


def test_files_that_hold_no_model(tmp_path: Path) -> None:
    save_file({"numbers": torch.ones(3)}, tmp_path / "numbers.safetensors")
    with pytest.raises(ModelError, match=r"numbers.safetensors does not hold a Stable Diffusion model"):
        load(tmp_path / "numbers.safetensors")
    torch.save([1, 2, 3], tmp_path / "list.ckpt")
    with pytest.raises(ModelError, match=r"list.ckpt holds a list instead of named tensors"):
        load(tmp_path / "list.ckpt")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet", "holds only the U-Net of a model, without the text encoder and the VAE: give"),
        ("vae", "holds only the VAE of a model, without the text encoder and the U-Net: give"),
        ("text_encoder", None),
    ],
)
def test_parts_by_themselves(part: str, message: str | None, tmp_path: Path) -> None:
    """Files of one part: as published, as our converter writes them, and with names that begin inside the part."""
    _, file = make_file(tmp_path)
    start, other = PREFIXES[part], tmp_path / "part.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if name.startswith(start)}
    for settings in (None, metadata(file)) if message else ():
        save_file(state, other, settings)
        with pytest.raises(ModelError, match=message) as caught:
            load(other)
        assert len(str(caught.value)) < 150 + len(str(tmp_path))
    save_file({name.removeprefix(start): tensor for name, tensor in state.items()}, other)
    with pytest.raises(ModelError, match=r"part.safetensors is not supported, it is .*: give"):
        load(other)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"unet": {}}', "null"])
def test_damaged_settings_in_a_file(text: str, tmp_path: Path) -> None:
    save_file({"numbers": torch.ones(3)}, tmp_path / "one.safetensors", {METADATA_KEY: text})
    with pytest.raises(ModelError, match=r"one.safetensors has damaged settings in its metadata"):
        load(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("first_stage_model.quant_conv.bias", None, r"lacks weights of the vae \(first_stage_model.quant_conv.bias\)"),
        ("model.diffusion_model.more", torch.ones(1), r"unknown weights of the unet \(model.diffusion_model.more\)"),
        ("model.diffusion_model.out.2.bias", torch.ones(5), r"of another shape \(.*out.2.bias is \(5,\), not \(4,\)\)"),
        ("model.diffusion_model.out.2.bias", torch.full((4,), torch.nan), r"not finite .*\(conv_out.bias\)"),
    ],
)
def test_damaged_single_file(name: str, tensor: Tensor | None, message: str, tmp_path: Path) -> None:
    _, file = make_file(tmp_path)
    state = load_file(file)
    state.pop(name, None)
    save_file(state if tensor is None else {**state, name: tensor}, file, metadata(file))
    with pytest.raises(ModelError, match=message):
        load(file)


# The command.


def test_files_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    """A server under another account reads what an administrator converted."""
    convert(save_model(tmp_path / "tiny"), tmp_path / "one.safetensors")
    (tmp_path / "any").touch()
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_targets_that_are_refused(tmp_path: Path) -> None:
    folder, file = save_model(tmp_path / "tiny"), tmp_path / "one.safetensors"
    convert(folder, file)
    content = file.read_bytes()
    for source, target, message in (
        (folder, file, "one.safetensors exists already: name another target"),
        (file, folder, "tiny exists already"),
        (folder, tmp_path / "new", "new must name a single file"),
        (folder, tmp_path / "new.ckpt", "new.ckpt must end in .safetensors"),
        (file, tmp_path / "new.safetensors", "new.safetensors must name a directory"),
        (tmp_path / "nothing", tmp_path / "new", "nothing does not exist"),
    ):
        with pytest.raises(ModelError, match=message):
            convert(source, target)
    assert file.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "tiny"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "tiny")

    def fail(path: Path, *_: object) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("stable_diffusion.model_converter.write_tensors", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "one.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_command_line(tmp_path: Path) -> None:
    arguments = [str(save_model(tmp_path / "tiny")), str(tmp_path / "one.safetensors"), "--half"]
    assert main(arguments) == 0
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "stable_diffusion.model_converter", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("exists already: name another target, or remove it first")
