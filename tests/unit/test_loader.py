"""Load models from the disk: accepted forms, and damaged, hostile or foreign files, of which nothing is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stable_diffusion import model_loader
from stable_diffusion.loading.checkpoints import LEGACY_NAMES
from stable_diffusion.loading.config import ConfigError, ModelError
from stable_diffusion.loading.scheduler_settings import settings_for
from stable_diffusion.model_loader import Models, load
from tests.tiny import networks, save_model

UNET = Path("unet", "diffusion_pytorch_model.safetensors")
VAE = Path("vae", "diffusion_pytorch_model.safetensors")
TEXT = Path("text_encoder", "model.safetensors")


def change(path: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the tensors of a safetensors file by those that `edit` makes of them."""
    save_file(edit({name: tensor.clone() for name, tensor in load_file(path).items()}), path, metadata={"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def assert_same(ours: Models, kind: str = "sd1", dtype: torch.dtype = torch.float32) -> None:
    """Assert that `ours` holds the tiny model of seed 0, read in float32 from a file of `dtype`, bit by bit."""
    for part, network in networks(kind).items():
        loaded = getattr(ours, part).state_dict()
        assert loaded.keys() == network.state_dict().keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(loaded[name], tensor.to(dtype).float()), name


@pytest.mark.parametrize(
    ("kind", "dtype"), [("sd1", torch.float32), ("sd2", torch.float32), ("sd1", torch.float16), ("sd2", torch.bfloat16)]
)
def test_directory(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    models = load(save_model(tmp_path / kind, kind, dtype=dtype))
    assert_same(models, kind, dtype)
    for network in (models.text_encoder, models.unet, models.vae):
        assert not network.training
        assert all(
            parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in network.parameters()
        )
    assert models.scheduler.prediction_type == {"sd1": "epsilon", "sd2": "v_prediction"}[kind]
    assert models.tokenizer.model_max_length == 77
    padded = models.tokenizer("a red fox", padding="max_length").input_ids
    assert padded[-1] == {"sd1": models.tokenizer.eos_token_id, "sd2": 0}[kind]
    assert (models.name, models.source) == (kind, str(tmp_path / kind))


def test_dtype_that_was_asked_for(original: Path) -> None:
    models = load(str(original), device="cpu", dtype=torch.float16)
    assert {p.dtype for net in (models.text_encoder, models.unet, models.vae) for p in net.parameters()} == {
        torch.float16
    }


def test_bundled_model_is_the_default(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(model_loader.__file__).parents[1]
    assert model_loader.BUNDLED.relative_to(root) == Path("assets", "models", "emoji")
    monkeypatch.setattr(model_loader, "BUNDLED", original)
    assert_same(load(device="cpu"))


def test_an_installed_package_says_how_to_get_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "BUNDLED", tmp_path / "emoji")
    with pytest.raises(ModelError, match="clone the repository"):
        load()


def test_weights_are_not_copied(model: Path) -> None:
    """The parameters are views of the mapped file: they lie in one block of addresses as long as the file's data."""
    models = load(model, device="cpu")
    addresses = sorted((p.data_ptr(), p.numel() * 4) for p in models.unet.parameters())
    span = addresses[-1][0] + addresses[-1][1] - addresses[0][0]
    assert span <= (model / UNET).stat().st_size


def test_float16_files_serve_when_there_are_no_others(model: Path, tmp_path: Path) -> None:
    half = save_model(tmp_path / "half", dtype=torch.float16)
    for file in (UNET, TEXT, VAE):
        (model / file).unlink()
        shutil.copy(half / file, model / file.with_suffix(".fp16.safetensors"))
    assert_same(load(model), dtype=torch.float16)


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 1.0), (torch.float16, 2.0)], ids=str)
def test_which_of_two_variants(model: Path, dtype: torch.dtype, value: float) -> None:
    for file, filling in ((UNET, 1.0), (UNET.with_suffix(".fp16.safetensors"), 2.0)):
        if not (model / file).exists():
            shutil.copy(model / UNET, model / file)
        change(model / file, lambda state, filling=filling: {n: torch.full_like(t, filling) for n, t in state.items()})
    assert load(model, device="cpu", dtype=dtype).unet.conv_in.weight.unique().item() == value


OLD = {new: old for old, new in LEGACY_NAMES.items()}
ACCEPTED: dict[str, tuple[Path, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "text encoder without prefix": (TEXT, lambda state: {n.removeprefix("text_model."): t for n, t in state.items()}),
    "weights without use": (
        TEXT,
        lambda state: {
            **state,
            "text_model.embeddings.position_ids": torch.arange(77)[None],
            "text_projection.weight": torch.zeros(4, 4),
            "logit_scale": torch.zeros(()),
        },
    ),
    "legacy names of the VAE": (VAE, lambda state: {OLD.get(name, name): tensor for name, tensor in state.items()}),
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_other_names(model: Path, form: str) -> None:
    file, edit = ACCEPTED[form]
    change(model / file, edit)
    assert len(OLD) == 16
    assert_same(load(model))


@pytest.mark.parametrize("form", ["plain", "wrapped", "legacy"])
def test_pickled_weights(model: Path, form: str) -> None:
    for file, name in ((UNET, UNET.with_suffix(".bin")), (TEXT, Path("text_encoder", "pytorch_model.bin"))):
        state = load_file(model / file)
        content = {"state_dict": state, "epoch": 3} if form == "wrapped" else state
        torch.save(content, model / name, _use_new_zipfile_serialization=form != "legacy")
        (model / file).unlink()
    assert_same(load(model))


def test_shards(model: Path) -> None:
    state = load_file(model / UNET)
    names = sorted(state)
    placed = {}
    for index, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{index}-of-00002.safetensors"
        save_file({name: state[name] for name in chosen}, model / "unet" / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(chosen, file)
    (model / UNET).unlink()
    index_file = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    assert_same(load(model))
    index_file.write_text(json.dumps({"weight_map": {**placed, "more": file}}))
    with pytest.raises(ModelError, match=r"index.json lists weights that its shards lack \(more\)"):
        load(model)
    index_file.write_text(json.dumps({"weight_map": {**placed, names[0]: "../../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        load(model)
    index_file.write_text(json.dumps({"weight_map": placed}))
    (model / "unet" / file).unlink()
    with pytest.raises(ModelError, match=r"00002-of-00002.safetensors does not exist"):
        load(model)
    index_file.write_text("[]")
    with pytest.raises(ModelError, match="is not an index of shards"):
        load(model)


# Damage.


NORM = "text_model.final_layer_norm.weight"
DAMAGE: dict[str, tuple[Path, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (
        UNET,
        lambda state: {n: t for n, t in state.items() if not n.startswith("down_blocks.0.resnets")},
        r"unet.*lacks weights .*\(down_blocks.0.resnets.0.conv1.bias, .* and \d+ more\)",
    ),
    "unknown": (
        UNET,
        lambda state: state | {f"extra.{i}": torch.zeros(1) for i in range(7)},
        r"unknown weights .*\(extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more\)",
    ),
    "shape": (
        VAE,
        lambda state: state | {"decoder.conv_in.weight": torch.zeros(1, 2, 3, 4)},
        r"vae.*\(decoder.conv_in.weight is \(1, 2, 3, 4\), not \(16, 4, 3, 3\)\)",
    ),
    "nan": (
        TEXT,
        lambda state: state | {NORM: (torch.arange(32.0) - 1).sqrt()},
        r"model.safetensors .*not finite .*final_layer_norm.weight",
    ),
    "infinity": (
        TEXT,
        lambda state: state | {NORM: torch.arange(32.0).log()},
        r"model.safetensors .*not finite .*final_layer_norm.weight",
    ),
    "quantised": (
        UNET,
        lambda state: state | {"conv_in.bias": state["conv_in.bias"].to(torch.int8)},
        r"quantised or sparse weights \(conv_in.bias\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_named(model: Path, damage: str) -> None:
    file, edit, message = DAMAGE[damage]
    change(model / file, edit)
    with pytest.raises(ModelError, match=message):
        load(model)


def test_weights_too_large_for_float16(model: Path) -> None:
    change(model / UNET, lambda state: state | {"conv_in.bias": torch.full((8,), 1e6)})
    load(model, device="cpu")
    with pytest.raises(ModelError, match=r"not finite in float16 .*conv_in.bias.*dtype float32"):
        load(model, device="cpu", dtype=torch.float16)


@pytest.mark.parametrize(("file", "share"), [(UNET, 0.0), (TEXT, 0.0001), (VAE, 0.5), (UNET, 0.999)])
def test_truncated_file(model: Path, file: Path, share: float) -> None:
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=f"{file.name} is damaged or cut short"):
        load(model)


@pytest.mark.parametrize(("zipped", "share"), [(True, 0.0), (True, 0.99), (False, 0.5)])
def test_truncated_pickle(model: Path, share: float, zipped: bool) -> None:
    path = model / UNET.with_suffix(".bin")
    torch.save(load_file(model / UNET), path, _use_new_zipfile_serialization=zipped)
    (model / UNET).unlink()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model.bin is damaged"):
        load(model)


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("form", "name"),
    [("zip", "directory"), ("legacy", "directory"), ("zip", "model.ckpt"), ("bare pickle", "model.pt")],
)
def test_code_in_a_pickle_is_not_run(model: Path, tmp_path: Path, form: str, name: str) -> None:
    marker = tmp_path / "it-ran"
    path = model / UNET.with_suffix(".bin") if name == "directory" else tmp_path / name
    content = {"state_dict": {"model.diffusion_model.out.0.weight": Hostile(marker)}}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    if name == "directory":
        (model / UNET).unlink()
    with pytest.raises(ModelError, match=r"Python code, which is never run: use the model's .safetensors file"):
        load(model if name == "directory" else path)
    assert not marker.exists()


def test_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    """A zip bomb in the form of a checkpoint: a gigabyte of zeros in a megabyte."""
    honest, bomb = tmp_path / "honest.ckpt", tmp_path / "bomb.ckpt"
    torch.save({"weights": torch.zeros(2**20)}, honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < honest.stat().st_size / 10
    with pytest.raises(ModelError, match=r"bomb.ckpt is compressed"):
        load(bomb)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.ones(8).to_sparse(), r"\.bin .* holds more than weights"),
        (torch.ones(8, device="meta"), r"quantised or sparse weights \(conv_in.bias\)"),
        (torch.ones(8).bool(), r"quantised or sparse weights \(conv_in.bias\)"),
    ],
    ids=["sparse", "meta", "bool"],
)
def test_tensors_of_odd_kinds(model: Path, odd: Tensor, message: str) -> None:
    state: dict[Any, Any] = {**load_file(model / UNET), "conv_in.bias": odd, 3: torch.ones(1), "epoch": 7}
    torch.save(state, model / UNET.with_suffix(".bin"))
    (model / UNET).unlink()
    with pytest.raises(ModelError, match=message):
        load(model)


# What is no model, or of another kind.


def test_sources_that_are_no_model(model: Path, tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "nothing", "nothing does not exist: give a model directory"),
        ("missing.safetensors", "does not exist"),
        ("owner/missing.safetensors", "does not exist"),
        ("./here/there", "does not exist"),
        ("long" * 2000, "does not exist"),
        (tmp_path, "is not a model directory: it has no model_index.json"),
        (model / "unet", "is not a model directory"),
        (model / "model_index.json", "is not a weight file"),
    ):
        with pytest.raises(ModelError, match=message):
            load(source, device="cpu")


@pytest.mark.parametrize(
    "file", ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_missing_and_broken_settings(model: Path, file: str) -> None:
    (model / file).write_text("{")
    with pytest.raises(ConfigError, match=f"{file} is not valid JSON"):
        load(model)
    (model / file).unlink()
    with pytest.raises(ConfigError, match=f"{file} does not exist"):
        load(model)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT], ids=str)
def test_missing_weight_file(model: Path, file: Path) -> None:
    (model / file).unlink()
    with pytest.raises(ModelError, match=f"holds no weights of the {file.parent}: expected {file.parent}/"):
        load(model)


PIPELINES = {
    "StableDiffusionXL": "two text encoders",
    "StableDiffusion3": "three text encoders",
    "Flux": "other text encoders",
    "StableDiffusionInpaint": "a masked picture",
    "StableDiffusionDepth2Img": "depth map",
    "StableDiffusionInstructPix2Pix": "latents of a picture",
    "StableDiffusionUpscale": "small picture",
    "StableDiffusionControlNet": "a network of its own",
    "AudioLDM": "of another kind",
}
CHANNELS = {9: "mask", 5: "depth", 8: "editing", 7: "upscaler", 16: "fit"}
FOREIGN: list[tuple[str, dict[str, Any], str]] = [
    *(
        (
            "model_index.json",
            {"_class_name": f"{name}Pipeline"},
            f"'{name}Pipeline' is not supported, .*{reason}; only Stable Diffusion 1.x and 2.x",
        )
        for name, reason in PIPELINES.items()
    ),
    *(
        (
            "unet/config.json",
            {"in_channels": channels, "out_channels": 16 if channels == 16 else 4},
            f"unet: in_channels={channels}.*{reason}",
        )
        for channels, reason in CHANNELS.items()
    ),
    (
        "model_index.json",
        {"vae": ["diffusers", "AsymmetricAutoencoderKL"]},
        "the vae is 'AsymmetricAutoencoderKL', only AutoencoderKL or AutoencoderTiny is supported",
    ),
    ("model_index.json", {"vae": None}, "the vae is None"),
    (
        "unet/config.json",
        {"cross_attention_dim": 48},
        "cross_attention_dim=48 does not fit the text encoder's hidden_size=32",
    ),
]


@pytest.mark.parametrize(("file", "values", "message"), FOREIGN, ids=[message[:30] for *_, message in FOREIGN])
def test_models_of_another_kind(model: Path, file: str, values: dict[str, Any], message: str) -> None:
    change_json(model / file, **values)
    with pytest.raises(ConfigError, match=message):
        load(model)


def test_corrections_that_diffusers_makes(model: Path) -> None:
    change_json(model / "scheduler" / "scheduler_config.json", steps_offset=0, clip_sample=True)
    scheduler = load(model).scheduler
    assert scheduler.steps_offset == 1
    assert scheduler.others["clip_sample"] is False


@pytest.mark.parametrize("class_name", ["PNDMScheduler", "DDIMScheduler", "DDPMScheduler"])
def test_a_scheduler_file_that_is_silent_on_clipping(model: Path, class_name: str) -> None:
    """diffusers' pipeline looks at the file's own class; made from it, another class has its own default."""
    file = model / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    del settings["clip_sample"]
    file.write_text(json.dumps({**settings, "_class_name": class_name}))
    clips = {name: settings_for(name, load(model).scheduler)["clip_sample"] for name in ("ddpm", "ddim", "lcm")}
    assert clips == {"ddpm": class_name == "PNDMScheduler", "ddim": class_name == "PNDMScheduler", "lcm": False}


def test_tokenizers_that_do_not_fit(model: Path) -> None:
    change_json(model / "text_encoder" / "config.json", vocab_size=100, eos_token_id=99)
    with pytest.raises(ModelError, match=r"tokenizer has \d+ tokens, the text encoder only 100"):
        load(model)


@pytest.mark.parametrize("broken", [False, True])
def test_missing_and_broken_tokenizers(model: Path, broken: bool) -> None:
    folder = model / "tokenizer"
    for file in ("tokenizer.json", "merges.txt", "tokenizer_config.json"):
        (folder / file).unlink()
    if broken:
        (folder / "merges.txt").write_text("no merges")
    with pytest.raises(
        ModelError, match="holds a damaged tokenizer" if broken else "it needs vocab.json and merges.txt"
    ):
        load(model)


def test_tokenizer_without_a_limit_gets_the_text_encoders(model: Path) -> None:
    config = model / "tokenizer" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    del values["model_max_length"]
    config.write_text(json.dumps(values))
    assert load(model).tokenizer.model_max_length == 77


@pytest.mark.parametrize("device", ["cuda:7", "nonsense", "meta:x"])
def test_devices_that_are_not_there(original: Path, device: str) -> None:
    with pytest.raises(ModelError, match=f"device {device} can't be used here"):
        load(original, device=device)
