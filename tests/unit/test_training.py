"""Training of the bundled model: tokenizer, cached latents, resumable runs, and an export that diffusers reads."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, CLIPTokenizer

from stable_diffusion.clip import CLIP
from stable_diffusion.loading.config import ATTENTION_DOWN, ATTENTION_UP, PLAIN_DOWN, PLAIN_UP, UNetConfig, VAEConfig
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.schedule import NoiseSchedule
from stable_diffusion.vae import VAE
from training.judging.curves import read_log
from training.networks import train_unet
from training.networks.cache_latents import channel_statistics, encode, load_latents, load_vae, standardise
from training.networks.export import export, export_clip
from training.networks.fit import LossByNoise, fit, linear_end
from training.networks.optimizer import MuonAdamW
from training.networks.train_clip import IMAGES, CaptionedPictures, clip_loss, contrastive_loss, new_clip
from training.networks.train_tokenizer import (
    END,
    MAX_LENGTH,
    START,
    caption_tokens,
    learn_merges,
    write_tokenizer,
)
from training.networks.train_unet import (
    SCHEDULER,
    CaptionedLatents,
    Sheets,
    TextToLatents,
    denoising_loss,
    draw_timesteps,
    text_config,
    train,
)
from training.networks.train_vae import CONFIG, SQUARED_WEIGHT, Crops, autoencoder_loss, reconstruction_loss
from training.sheets import contact_sheet

CAPTIONS = [
    "a red fox, fluent 3d style, on a blue background",
    "a cat next to a pizza",
    "three red apples, noto style",
    "a blue car in the top left corner",
]
FOREIGN = ["A  RED fox's DEN", "狐狸在雪地里", "a 🦊 on the 🌙", "ünïcödé <b>&amp;</b>", "", "x" * 500, "\x00\x7f"]
UNET = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=(PLAIN_DOWN, ATTENTION_DOWN),
    up_block_types=(ATTENTION_UP, PLAIN_UP),
    layers_per_block=1,
    attention_head_dim=(1, 2),
    cross_attention_dim=train_unet.UNET.cross_attention_dim,
    in_channels=8,
    out_channels=8,
    sample_size=4,
)
VAE_CONFIG = VAEConfig(
    block_out_channels=(8, 8, 16, 16),
    latent_channels=8,
    norm_num_groups=4,
    sample_size=32,
    scaling_factor=1.0,
    mid_block_add_attention=False,
)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, learn_merges(CAPTIONS * 3, 60))
    return folder


@pytest.fixture
def tokenizer(tokenizer_dir: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(tokenizer_dir))


@pytest.fixture
def model(tokenizer: CLIPTokenizer) -> TextToLatents:
    torch.manual_seed(0)
    return TextToLatents(UNET, text_config(tokenizer))


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(1)
    return VAE(VAE_CONFIG).eval().requires_grad_(False)


@pytest.fixture
def latents_dir(tmp_path: Path) -> Path:
    """Return a folder of four captioned latents, whose first channel counts them."""
    folder = tmp_path / "latents"
    folder.mkdir()
    latents = np.random.default_rng(0).normal(3, 2, (4, 8, 4, 4)).astype(np.float16)
    latents[:, 0] = np.arange(4)[:, None, None]
    np.save(folder / "latents.npy", latents)
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    return folder


class TestTokenizer:
    def test_special_tokens_have_the_highest_ids(self, tokenizer: CLIPTokenizer) -> None:
        size = len(tokenizer)
        assert (tokenizer.bos_token, tokenizer.bos_token_id) == (START, size - 2)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END, size - 1)
        assert tokenizer.pad_token_id == size - 1
        assert tokenizer.model_max_length == MAX_LENGTH

    def test_any_text_is_read(self, tokenizer: CLIPTokenizer) -> None:
        """Without the unknown token; captions come back, and a frequent word is one token."""
        assert len(tokenizer("red", add_special_tokens=False).input_ids) == 1
        for text in CAPTIONS + FOREIGN:
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            assert tokenizer.unk_token_id not in ids
            assert text in FOREIGN or tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")

    def test_every_reader_gives_the_same_ids(self, tokenizer: CLIPTokenizer, tokenizer_dir: Path, tmp_path: Path):
        tokenizer.save_pretrained(str(tmp_path))
        others = [AutoTokenizer.from_pretrained(str(tokenizer_dir)), CLIPTokenizer.from_pretrained(str(tmp_path))]
        expected = tokenizer(CAPTIONS + FOREIGN, truncation=True).input_ids
        for other in others:
            assert other(CAPTIONS + FOREIGN, truncation=True).input_ids == expected

    def test_captions_are_cut_and_padded_as_the_tokenizer_itself_would(self, tokenizer: CLIPTokenizer) -> None:
        texts = CAPTIONS + FOREIGN
        options = {"padding": "max_length", "max_length": MAX_LENGTH, "truncation": True}
        expected = tokenizer(texts, return_tensors="pt", **options).input_ids
        fresh = copy.deepcopy(tokenizer)
        fresh.backend_tokenizer.no_padding()
        fresh.backend_tokenizer.no_truncation()
        tokens = caption_tokens(fresh, texts)
        assert tokens.dtype == torch.int32
        assert torch.equal(tokens, expected.int())
        assert fresh.backend_tokenizer.padding is fresh.backend_tokenizer.truncation is None


class TestLatents:
    def test_captions_stay_with_their_latents(self, latents_dir: Path) -> None:
        latents, captions = load_latents(latents_dir)
        assert latents.shape == (4, 8, 4, 4)
        assert captions == CAPTIONS
        assert latents[:, 0, 0, 0].tolist() == [0, 1, 2, 3]

    def test_what_is_missing_names_the_remedy(self, tmp_path: Path) -> None:
        for read, remedy in ((load_latents, "cache_latents"), (load_vae, "train_vae")):
            with pytest.raises(FileNotFoundError, match=remedy):
                read(tmp_path / "none.pt")

    def test_standardising_changes_latents_and_not_pictures(self, vae: VAE) -> None:
        pictures = torch.rand(6, 3, 32, 32) * 2 - 1
        before = vae.posterior(pictures)
        drawn, latents = vae.decode(before.mean), before.mean
        mean, std = channel_statistics(latents)
        standardise(vae, mean, std)
        after = vae.posterior(pictures)
        torch.testing.assert_close(after.mean, (latents - mean) / std, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(after.logvar.exp().sqrt() * std, before.logvar.exp().sqrt())
        torch.testing.assert_close(vae.decode(after.mean), drawn, rtol=1e-4, atol=1e-5)

    def test_encoding_in_batches_keeps_order_and_shape(self, vae: VAE) -> None:
        pictures = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), np.uint8)
        latents = encode(vae, pictures)
        assert latents.shape == (80, 8, 2, 2)
        assert latents.dtype == np.float16
        np.testing.assert_allclose(latents[75:], encode(vae, pictures[75:]), atol=0.05)

    def test_pictures_are_enlarged_for_an_encoder_of_larger_ones(self, vae: VAE) -> None:
        pictures = np.full((2, 16, 16, 3), (255, 128, 0), np.uint8)
        latents = encode(vae, pictures, enlarged=2)
        assert latents.shape == (2, 8, 4, 4)
        np.testing.assert_allclose(latents, encode(vae, np.repeat(np.repeat(pictures, 2, 1), 2, 2)), atol=0.05)


class TestTraining:
    def test_batches_are_now_and_then_without_a_caption(self, latents_dir: Path, tokenizer: CLIPTokenizer) -> None:
        examples = CaptionedLatents([latents_dir], tokenizer)
        latents, tokens = examples.batch(2000, torch.Generator().manual_seed(0))
        assert (latents.shape, latents.dtype) == ((2000, 8, 4, 4), torch.float32)
        assert tokens.shape == (2000, MAX_LENGTH)
        assert set(latents[:, 0, 0, 0].tolist()) == {0, 1, 2, 3}
        empty = (tokens == examples.empty).all(1).float().mean().item()
        assert empty == pytest.approx(train_unet.EMPTY_SHARE, abs=0.03)

    def test_everyday_things_are_drawn_more_often(self, latents_dir: Path, tokenizer: CLIPTokenizer) -> None:
        captions = ["a cat", "a wedding", "a shinto shrine", "a carp streamer"]
        (latents_dir / "captions.json").write_text(json.dumps(captions))
        latents, _ = CaptionedLatents([latents_dir], tokenizer).batch(4000, torch.Generator().manual_seed(0))
        shares = latents[:, 0, 0, 0].long().bincount() / 4000
        torch.testing.assert_close(shares, torch.tensor([2 / 5, 1 / 5, 1 / 5, 1 / 5]), atol=0.03, rtol=0)

    def test_the_loss_is_taken_on_standardised_latents(self, model: TextToLatents) -> None:
        """A network that predicts nothing errs by the velocity itself: of unit variance, if its latents are."""
        model.initialise()
        torch.manual_seed(0)
        latents = 5 + 3 * torch.randn(256, 8, 4, 4)
        model.latent_mean, model.latent_std = channel_statistics(latents)
        tokens, t = torch.ones(256, MAX_LENGTH, dtype=torch.long), torch.randint(1000, (256,))
        loss = denoising_loss(
            NoiseSchedule(SCHEDULER), LossByNoise(1000), model, latents, tokens, t, torch.randn_like(latents)
        )
        # 32,768 squares of unit normals average to 1 +- sqrt(2 / 32768) = 0.008
        assert loss.item() == pytest.approx(1, abs=0.03)

    def test_the_reconstruction_loss_of_a_shift_is_the_one_in_closed_form(self) -> None:
        target = torch.rand(2, 3, 16, 16) - 0.5
        assert reconstruction_loss(target, target) == 0
        expected = 4 * 0.1 + SQUARED_WEIGHT * 0.1**2  # four levels of the pyramid, no gradient
        assert reconstruction_loss(target + 0.1, target).item() == pytest.approx(expected, rel=1e-4)

    def test_several_folders_are_one_set(self, latents_dir: Path, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
        more = tmp_path / "more"
        more.mkdir()
        np.save(more / "latents.npy", np.full((1, 8, 4, 4), 9, np.float16))
        (more / "captions.json").write_text('["a wedding"]')
        examples = CaptionedLatents([latents_dir, more], tokenizer)
        latents, tokens = examples.batch(200, torch.Generator().manual_seed(0))
        added = latents[:, 0, 0, 0] == 9
        assert 0 < added.sum() < 200
        wedding = caption_tokens(tokenizer, ["a wedding", ""]).long()
        assert all(any(torch.equal(words, known) for known in wedding) for words in tokens[added])

    def test_a_fresh_network_predicts_nothing_and_then_learns(self, model: TextToLatents, tmp_path: Path) -> None:
        model.initialise()
        generator = torch.Generator().manual_seed(0)
        x_0, tokens = torch.randn(1, 8, 4, 4, generator=generator).expand(32, -1, -1, -1), torch.ones(32, MAX_LENGTH)
        assert model(x_0, torch.zeros(32), tokens.long()).abs().max() == 0
        schedule, losses = NoiseSchedule(SCHEDULER), []

        def loss(*batch) -> torch.Tensor:
            losses.append(denoising_loss(schedule, LossByNoise(1000), *batch))
            return losses[-1]

        def draw(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
            t = draw_timesteps(32, 1000, 0.75, generator)
            return x_0, tokens.long(), t, torch.randn(x_0.shape, generator=generator)

        fit(model, loss, draw, tmp_path, rate=1e-3, schedule=linear_end(0), warmup=1, ema_decay=0.99, steps=40)
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])

    @pytest.mark.parametrize("power", [0.0, 0.75, 3.0])
    def test_timesteps_grow_denser_like_their_power(self, power: float) -> None:
        t = draw_timesteps(100_000, 1000, power, torch.Generator().manual_seed(0))
        assert t.dtype == torch.int64
        assert (t.min() < 60, t.max()) == (True, 999)
        for share in (0.25, 0.5, 0.75):  # below x lies x^(power + 1) of a density that grows like x^power
            assert (t < 1000 * share).float().mean().item() == pytest.approx(share ** (power + 1), abs=0.01)

    def test_a_run_goes_on_from_its_checkpoint(
        self, latents_dir: Path, tokenizer: CLIPTokenizer, tmp_path: Path
    ) -> None:
        out, looks = tmp_path / "run", []
        args = {"rate": 1e-3, "batch": 2, "resolution": 64, "minutes": 10.0, "decay": 5.0, "timestep_power": 0.0}
        examples = CaptionedLatents([latents_dir], tokenizer)
        for steps in (3, 6):
            model = TextToLatents(UNET, text_config(tokenizer))
            options = argparse.Namespace(**args, out=out, steps=steps)
            train(model, examples, lambda step, averaged: looks.append(step), options)
            saved = torch.load(out / "checkpoint.pt", weights_only=True)
            assert (saved["step"], saved["samples"]) == (steps, 2 * steps)
        assert saved["clock"]["64"] > 0
        assert looks == [3, 6]

    def test_a_sheet_is_drawn_with_the_latents_of_the_network(
        self, model: TextToLatents, vae: VAE, tokenizer: CLIPTokenizer, tmp_path: Path
    ) -> None:
        sheets, before = Sheets(tmp_path, 32, tokenizer, vae), copy.deepcopy(vae.state_dict())
        model.eval()
        sheets(1, model)
        model.latent_mean += 3
        sheets(2, model)
        one, other = (np.asarray(Image.open(tmp_path / f"sheet-00000{step}.png")) for step in (1, 2))
        assert one.shape == other.shape
        assert (one != other).any()
        assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())


class TestAutoencoder:
    def test_it_learns_from_crops_of_the_artwork(self, tmp_path: Path) -> None:
        pictures = np.random.default_rng(0).integers(0, 256, (100, 128, 128, 4), np.uint8)
        np.save(tmp_path / "pictures.npy", pictures)
        crops = Crops(tmp_path, photos=tmp_path)
        assert crops.heldout(64).shape == (2, 3, 128, 128)
        one, again, other = (crops.batch(3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert (one[0].shape, one[1].shape) == ((3, 3, 64, 64), (3, CONFIG.latent_channels, 8, 8))
        assert (one[0].min() >= -1, one[0].max() <= 1) == (True, True)
        assert torch.equal(one[0], again[0])
        assert not torch.equal(one[0], other[0])

        torch.manual_seed(0)
        network, losses = VAE(VAE_CONFIG), []

        def loss(*batch) -> torch.Tensor:
            losses.append(autoencoder_loss(*batch))
            return losses[-1]

        def draw(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
            return torch.full((4, 3, 16, 16), 0.5), torch.randn(4, 8, 2, 2, generator=generator)

        options = {"rate": 3e-3, "schedule": linear_end(0), "warmup": 1, "ema_decay": 0.9, "steps": 20}
        fit(network, loss, draw, tmp_path / "run", **options)
        assert losses[-1] < 0.5 * losses[0]


@pytest.fixture
def exported(model: TextToLatents, vae: VAE, tokenizer_dir: Path, tmp_path: Path) -> Path:
    # Weights that float16 holds exactly: what is read back is then equal to what was written.
    for network in (model, vae):
        for tensor in network.state_dict().values():
            tensor.copy_(tensor.half())
    export(tmp_path / "model", model, vae, tokenizer_dir, shard_bytes=200_000)
    return tmp_path / "model"


def test_a_learning_curve_forgets_what_a_restart_took_back(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    points = [(1000, 3.0), (2000, 2.0), (3000, 1.0), (2500, 1.5), (3500, 0.5)]
    log.write_text("\n".join(json.dumps({"samples": seen, "loss": loss}) for seen, loss in points) + "\n")
    assert read_log(log) == ([1, 2, 2.5, 3.5], [3.0, 2.0, 1.5, 0.5])


class TestExport:
    def test_diffusers_reads_every_part_and_agrees(self, exported: Path, model: TextToLatents, vae: VAE) -> None:
        diffusers = pytest.importorskip("diffusers")
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(str(exported), torch_dtype=torch.float32)
        model.eval()
        tokens = theirs.tokenizer(CAPTIONS, padding="max_length", return_tensors="pt").input_ids
        latents, t = torch.randn(4, 8, 4, 4), torch.tensor([0, 10, 500, 999])
        with torch.no_grad():
            context = model.text_encoder(tokens)
            torch.testing.assert_close(theirs.text_encoder(tokens)[0], context, rtol=1e-5, atol=1e-5)
            v = theirs.unet(latents, t, context).sample
            torch.testing.assert_close(v, model.unet(latents, t, model.unet.read(context)), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(theirs.vae.decode(latents).sample, vae.decode(latents), rtol=1e-5, atol=1e-5)
            pictures = torch.rand(1, 3, 32, 32)
            mean = theirs.vae.encode(pictures).latent_dist.mean
            torch.testing.assert_close(mean, vae.encode(pictures), rtol=1e-5, atol=1e-5)
        assert theirs.vae.config.scaling_factor == 1.0
        config = theirs.text_encoder.config
        assert (config.eos_token_id, config.vocab_size) == (theirs.tokenizer.eos_token_id, len(theirs.tokenizer))
        alphas_cumprod = NoiseSchedule(SCHEDULER).alphas_cumprod.float()
        torch.testing.assert_close(theirs.scheduler.alphas_cumprod, alphas_cumprod, rtol=1e-4, atol=1e-6)

    def test_shards_are_small_and_listed_and_replaced(
        self, exported: Path, model: TextToLatents, vae: VAE, tokenizer_dir: Path
    ) -> None:
        index = json.loads((exported / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
        files = {path.name: path.stat().st_size for path in (exported / "unet").glob("*.safetensors")}
        assert len(files) > 1
        assert set(index["weight_map"].values()) == set(files)
        assert sum(files.values()) >= index["metadata"]["total_size"]
        assert max(files.values()) < 250_000
        export(exported, model, vae, tokenizer_dir)
        assert [path.name for path in (exported / "unet").glob("*.safetensors")] == [
            "diffusion_pytorch_model.safetensors"
        ]

    def test_a_sheet_is_drawn_by_the_library(self, exported: Path) -> None:
        sheet = contact_sheet(Pipeline.from_pretrained(exported), CAPTIONS, tile=64, columns=2, steps=2)
        assert sheet.width == 2 * 72 + 8
        assert len(sheet.getcolors(2**24)) > 10


class TestCLIP:
    def test_the_loss_is_least_where_each_picture_is_nearest_to_its_own_text(self) -> None:
        apart = torch.eye(4)
        right, shuffled = (contrastive_loss(apart, texts, torch.tensor(3.0)) for texts in (apart, apart.roll(1, 0)))
        torch.testing.assert_close(right, torch.log1p(3 * torch.exp(-torch.tensor(3.0).exp())))
        assert shuffled > right + 10

    def test_it_learns_which_picture_belongs_to_which_text(self, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model, batch = new_clip(tokenizer), (torch.randn(4, 3, 64, 64), caption_tokens(tokenizer, CAPTIONS).long())
        options = {"rate": 2e-3, "schedule": linear_end(0), "warmup": 1, "ema_decay": 0.9, "steps": 15}
        fit(model, clip_loss, lambda generator: batch, tmp_path, **options)
        with torch.no_grad():
            scores = model.embed_images(batch[0]) @ model.embed_texts(batch[1]).T
        assert scores.argmax(1).tolist() == [0, 1, 2, 3]

    def test_autocast_does_not_round_the_similarities(self) -> None:
        torch.manual_seed(0)
        images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 32), dim=-1)
        scale = torch.tensor(100.0).log()
        expected = contrastive_loss(images, texts, scale)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(contrastive_loss(images, texts, scale), expected)

    def test_half_of_the_batches_are_of_one_background(self, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
        captions = ["a cat, on a light blue background", "a cat on an orange background", "a cat, noto style"] * 30
        shades = np.array([[0, 100, 200]] * 30, np.uint8).reshape(-1, 1, 1, 1)
        np.save(tmp_path / "pictures.npy", np.tile(shades, (1, 128, 128, 3)))
        (tmp_path / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
        examples, generator = CaptionedPictures([tmp_path], tokenizer), torch.Generator().manual_seed(0)
        alike = 0
        for _ in range(60):
            pictures, tokens = examples.batch(16, generator)
            assert pictures.shape == (16, 3, 64, 64)
            assert len(tokens) == 16
            shown = {round(127.5 * (value + 1)) for value in pictures.mean((1, 2, 3)).tolist()}
            assert shown <= {0, 100, 200}
            alike += len(shown) == 1
            if len(shown) == 1:
                assert len(tokens.unique(dim=0)) == 1
        assert 15 < alike < 45

    def test_transformers_reads_what_is_exported(
        self, tokenizer: CLIPTokenizer, tokenizer_dir: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        model = new_clip(tokenizer).half().float()  # as exported
        pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (90, 128, 3), np.uint8)) for i in (1, 2)]
        export_clip(tmp_path / "clip", CLIP(model.eval(), tokenizer, IMAGES), tokenizer_dir)
        ours = CLIP.from_pretrained(tmp_path / "clip").similarity(pictures, CAPTIONS)
        reference = CLIPModel.from_pretrained(tmp_path / "clip", dtype=torch.float32).eval()
        inputs = CLIPProcessor.from_pretrained(tmp_path / "clip")(
            text=CAPTIONS, images=pictures, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            theirs = reference(**inputs).logits_per_image / reference.logit_scale.exp()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class TestOptimizer:
    def test_a_model_that_was_moved_is_not_left_untrained_in_silence(self, model: TextToLatents) -> None:
        optimizer = MuonAdamW(model, 1e-2)
        model.double()
        with pytest.raises(AssertionError, match="moved"):
            optimizer.step()

    def test_every_parameter_moves_and_a_restart_goes_on_the_same_way(self, model: TextToLatents) -> None:
        def step(model: TextToLatents, optimizer: MuonAdamW) -> None:
            generator = torch.Generator().manual_seed(1)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

        start = copy.deepcopy(model)
        optimizer = MuonAdamW(model, 1e-2)
        step(model, optimizer)
        assert all(not torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True))
        twin = copy.deepcopy(model)
        resumed = MuonAdamW(twin, 1e-2)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(model, optimizer)
        step(twin, resumed)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b)

    def test_muon_takes_the_matrices_of_the_time_and_no_embeddings(self, model: TextToLatents) -> None:
        taken = {id(parameter) for parameter in MuonAdamW(model, 1e-2).matrices}
        names = {name for name, parameter in model.named_parameters() if id(parameter) in taken}
        assert {f"unet.time_embedding.linear_{i}.weight" for i in (1, 2)} <= names
        assert not [name for name in names if "token_embedding" in name or "position_embedding" in name]

    def test_token_embeddings_have_a_rate_of_their_own(self, model: TextToLatents) -> None:
        embeddings = model.text_encoder.text_model.embeddings
        moved = {}
        for share in (None, 5.0):
            twin = copy.deepcopy(model)
            optimizer = MuonAdamW(twin, 1e-2, share)
            for parameter in twin.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            now = twin.text_encoder.text_model.embeddings
            moved[share] = [
                (getattr(now, name).weight - getattr(embeddings, name).weight).abs().mean().item()
                for name in ("token_embedding", "position_embedding")
            ]
        assert moved[5.0][0] == pytest.approx(10 * moved[None][0], rel=0.1)
        assert moved[5.0][1] == pytest.approx(moved[None][1], rel=0.1)
