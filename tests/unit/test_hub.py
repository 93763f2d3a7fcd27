"""Models from the hub, asked of a server on loopback."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from stable_diffusion import model_loader
from stable_diffusion.loading.config import ModelError
from stable_diffusion.model_converter import convert
from stable_diffusion.model_loader import load
from stable_diffusion.tiny_vae import TinyVAE
from tests.hub_server import Hub, serve
from tests.tiny import save_model

REPOSITORY = "someone/tiny-model"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = save_model(tmp_path / "served")
    (folder / "README.md").write_text("not needed")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not needed")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"not needed")
    (folder / "whole-model.safetensors").write_bytes(b"not needed")
    with serve({REPOSITORY: folder}) as server:
        use(server.address, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # 10 MB, more than our files
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between retries
        yield server


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the address as HF_ENDPOINT does when the library is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def served(hub: Hub) -> Path:
    return hub.repositories[REPOSITORY]


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub) -> None:
    models = load(REPOSITORY, device="cpu")
    assert sorted(hub.fetched()) == [
        *("model_index.json", "scheduler/scheduler_config.json"),
        *("text_encoder/config.json", "text_encoder/model.safetensors"),
        *(f"tokenizer/{name}" for name in ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")),
        *("unet/config.json", UNET, "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    ]
    assert (models.name, models.source) == (REPOSITORY, REPOSITORY)
    local = load(served(hub), device="cpu")
    for ours, theirs in zip(local.unet.parameters(), models.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    hub.requests.clear()
    load(REPOSITORY, device="cpu")
    load(REPOSITORY, device="cpu", dtype=torch.float16)
    assert hub.fetched() == []


def test_float16_files_are_preferred_for_float16(hub: Hub) -> None:
    half = save_model(served(hub).parent / "half", dtype=torch.float16)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        shutil.copy(half / part / f"{stem}.safetensors", served(hub) / part / f"{stem}.fp16.safetensors")
    models = load(REPOSITORY, device="cpu", dtype=torch.float16)
    weights = [name for name in hub.fetched() if name.endswith((".safetensors", ".bin"))]
    assert sorted(weights) == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert models.unet.conv_in.weight.dtype == torch.float16


def test_shards_are_fetched_with_their_index(hub: Hub) -> None:
    import diffusers

    folder = served(hub)
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    network.save_pretrained(folder / "unet", max_shard_size="100KB")
    models = load(REPOSITORY, device="cpu")
    assert len([name for name in hub.fetched() if "-of-" in name]) >= 2
    assert torch.equal(models.unet.conv_in.weight, network.conv_in.weight)
    snapshots = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*-00002-of-*.safetensors")
    next(snapshots).unlink()
    load(REPOSITORY, device="cpu")


def test_progress_covers_every_byte(hub: Hub) -> None:
    told: list[tuple[str, float]] = []
    load(REPOSITORY, device="cpu", on_progress=lambda text, done: told.append((text, done)))
    downloads = [done for text, done in told if text.startswith(f"Downloading {REPOSITORY}")]
    assert downloads == sorted(downloads)
    assert downloads[-1] == 1.0
    assert [text for text, _ in told[-3:]] == ["Loading text encoder", "Loading unet", "Loading vae"]


def test_cut_connection_is_resumed(hub: Hub) -> None:
    hub.cut[UNET] = 2
    load(REPOSITORY, device="cpu")
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(UNET)]
    assert len(ranges) == 3
    assert ranges[0] == ""
    assert all(asked.startswith("bytes=") for asked in ranges[1:])


def test_lasting_failure_is_explained_and_whole_files_survive(hub: Hub) -> None:
    size = (served(hub) / UNET).stat().st_size
    hub.cut[UNET] = size.bit_length() + 20  # every retry halves what is left, and then nothing more comes
    with pytest.raises(ModelError, match=r"download of someone/tiny-model stopped .*try again"):
        load(REPOSITORY, device="cpu")
    hub.cut.clear()
    hub.requests.clear()
    load(REPOSITORY, device="cpu")
    assert "model_index.json" not in hub.fetched()
    assert UNET in hub.fetched()


def test_damaged_file_is_removed_and_named(hub: Hub) -> None:
    hub.corrupt.add(UNET)
    with pytest.raises(ModelError, match=f"{UNET} of {REPOSITORY} arrived damaged and was removed"):
        load(REPOSITORY, device="cpu")
    hub.corrupt.clear()
    load(REPOSITORY, device="cpu")


def test_models_that_are_refused(hub: Hub) -> None:
    with pytest.raises(ModelError, match=r"no directory no/such-model here, and no such model on the hub.*spelling"):
        load("no/such-model", device="cpu")
    hub.gated.add(REPOSITORY)
    with pytest.raises(ModelError, match="is gated: accept its terms"):
        load(REPOSITORY, device="cpu")
    hub.gated.clear()
    index = served(hub) / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    with pytest.raises(ModelError, match=r"someone/tiny-model .*two text encoders"):
        load(REPOSITORY, device="cpu")
    assert not any(name.endswith(".safetensors") for name in hub.fetched())


def test_repository_that_holds_no_model(hub: Hub) -> None:
    (served(hub) / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"someone/tiny-model on the hub can't be used: .* no model_index.json"):
        load(REPOSITORY, device="cpu")


def test_without_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"
    use(nobody, monkeypatch)
    with pytest.raises(ModelError, match=r"hub can't be reached.*bundled model, which needs none"):
        load(REPOSITORY, device="cpu")
    use(hub.address, monkeypatch)
    online = load(REPOSITORY, device="cpu")
    use(nobody, monkeypatch)
    offline = load(REPOSITORY, device="cpu")
    assert torch.equal(online.unet.conv_in.weight, offline.unet.conv_in.weight)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load(REPOSITORY, device="cpu")
    weights = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob(UNET)
    next(weights).unlink()
    with pytest.raises(ModelError, match="not, or not completely, in its cache"):
        load(REPOSITORY, device="cpu")


def test_environment_decides_the_endpoint(hub: Hub, tmp_path: Path) -> None:
    """A fresh process with HF_ENDPOINT, as a user would run it."""
    program = (
        "import sys; from stable_diffusion.model_loader import load; "
        f"print(load({REPOSITORY!r}, device='cpu').name, 'torch._dynamo' in sys.modules)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=root, capture_output=True, text=True, timeout=600
    )
    # Loading must not import PyTorch's compiler, which takes seconds.
    assert done.stdout.split() == [REPOSITORY, "False"], done.stderr


@pytest.mark.parametrize(("kind", "padding"), [("sd1", 49407), ("sd2", 0)])
def test_a_single_file_needs_no_network(hub: Hub, kind: str, padding: int, tmp_path: Path) -> None:
    """The text tower has CLIP's tokens; no tokenizer lies beside the file, and the hub gets no request."""
    folder, file = save_model(tmp_path / "model", kind), tmp_path / "alone.safetensors"
    tower, weights = folder / "text_encoder" / "config.json", folder / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    embedding = "text_model.embeddings.token_embedding.weight"
    save_file({**state, embedding: torch.randn(49408, state[embedding].shape[1])}, weights)
    numbers = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": padding}
    tower.write_text(json.dumps({**json.loads(tower.read_text()), **numbers}))
    convert(folder, file)
    tokenizer = load(file, device="cpu").tokenizer
    ids = [49406, 320, 736, 3240, 49407]
    assert tokenizer("a red fox", padding="max_length").input_ids == ids + [padding] * 72
    convert(file, tmp_path / "back")
    written = load(tmp_path / "back", device="cpu").tokenizer
    assert written("a red fox", padding="max_length").input_ids == ids + [padding] * 72
    assert hub.requests == []


def test_a_single_file_with_other_words_than_clips(tmp_path: Path) -> None:
    convert(save_model(tmp_path / "model"), tmp_path / "alone.safetensors")
    with pytest.raises(ModelError, match=r"49408 tokens, the text encoder only \d+.*put the folder `tokenizer`"):
        load(tmp_path / "alone.safetensors", device="cpu")


def test_a_tiny_vae_is_fetched_when_it_is_first_asked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For latents of Stable Diffusion, and once for all models that have them."""
    monkeypatch.setattr(model_loader, "_fetched_tiny_vae", functools.cache(model_loader._tiny_vae))
    hub.repositories["madebyollin/taesd"] = save_model(tmp_path / "sdxs", "sdxs") / "vae"
    models = load(save_model(tmp_path / "local"), device="cpu")
    assert models.decoder_for("auto") is models.vae
    assert hub.fetched() == []
    tiny = models.decoder_for("tiny")
    assert isinstance(tiny, TinyVAE)
    assert sorted(hub.fetched()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert load(models.source, device="cpu").decoder_for("tiny") is tiny


@pytest.mark.parametrize("of_a_model", [True, False])
def test_a_vae_alone_is_fetched(hub: Hub, of_a_model: bool, tmp_path: Path) -> None:
    """From a repository of its own, or out of a model's: nothing but settings and weights."""
    local = save_model(tmp_path / "local")
    other = save_model(tmp_path / "other", seed=7)
    hub.repositories["someone/vae"] = other if of_a_model else other / "vae"
    models = load(local, vae="someone/vae", device="cpu")
    assert torch.equal(models.vae.quant_conv.weight, load(other, device="cpu").vae.quant_conv.weight)
    start = "vae/" if of_a_model else ""
    assert sorted(hub.fetched()) == [f"{start}config.json", f"{start}diffusion_pytorch_model.safetensors"]
