"""The autoencoder of 256 px and the tiny one: their first weights, their training pictures, and that both learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from stable_diffusion.loading.config import TinyVAEConfig
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.schedule import NoiseSchedule
from stable_diffusion.tiny_vae import TinyVAE
from stable_diffusion.vae import VAE
from training.judging.sharpness import painted, strong_edges
from training.networks.cache_predictions import halved, photo_pieces, predict
from training.networks.export import export_tiny
from training.networks.fit import fit, linear_end
from training.networks.train_tiny_vae import CONFIG_TINY, load_tiny, tiny_loss
from training.networks.train_unet import SCHEDULER, TextToLatents
from training.networks.train_vae import CONFIG, reconstruction_loss
from training.networks.train_vae_256 import (
    CONFIG_256,
    MEASURED,
    REALISM,
    AutoencoderWithCritic,
    Pieces,
    adversarial_loss,
    agreement_loss,
    grown,
    load_vae_256,
    take_decoder,
)

OPTIONS = {"rate": 1e-3, "schedule": linear_end(0), "warmup": 1, "ema_decay": 0.5}


@pytest.fixture
def known() -> VAE:
    torch.manual_seed(0)
    return VAE(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of examples whose pictures and latents hold the example's number and the place in it."""
    out, count = tmp_path / "predictions", MEASURED + 3
    out.mkdir()
    pictures = np.zeros((count, 256, 256, 3), np.uint8)
    pictures[..., 0] = np.arange(count)[:, None, None]
    pictures[..., 1:] = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1)
    latents = np.zeros((count, 8, 16, 16), np.float16)
    latents[:, 0] = np.arange(count)[:, None, None]
    latents[:, 1:3] = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"))
    np.save(out / "pictures.npy", pictures)
    np.save(out / "latents.npy", latents)
    np.save(out / "predictions.npy", latents + np.float16(100))
    return out


class TestPieces:
    def test_a_piece_of_the_picture_comes_with_that_of_its_latents(self, folder: Path) -> None:
        pictures, latents, given = Pieces([folder]).batch(200, torch.Generator().manual_seed(0))
        assert (pictures.shape, latents.shape, given.shape) == ((200, 3, 128, 128), (200, 8, 8, 8), (200, 8, 8, 8))
        corner = (127.5 * (pictures[:, :, 0, 0] + 1)).round()
        assert torch.equal(corner[:, 0], latents[:, 0, 0, 0])
        assert torch.equal(corner[:, 1:], 16 * latents[:, 1:3, 0, 0])
        assert len(corner[:, 1:].unique(dim=0)) > 50
        assert corner[:, 0].max() <= 2  # the rest is measured on

    def test_latents_to_paint_from_are_clean_noisy_or_the_networks_own(self, folder: Path) -> None:
        _, latents, given = Pieces([folder]).batch(1000, torch.Generator().manual_seed(0))
        errors = (given - latents).flatten(1)
        own, clean = errors.mean(1) > 50, (errors == 0).all(1)
        # Shares of 0.55 and 0.15 among a thousand have deviations of 0.016 and 0.011
        assert own.float().mean().item() == pytest.approx(0.55, abs=0.06)
        assert clean.float().mean().item() == pytest.approx(0.15, abs=0.04)
        assert 0.2 < errors[~own & ~clean].std(1).max() < 0.4

    def test_photos_are_taken_in_pieces(self, tmp_path: Path) -> None:
        Image.new("RGB", (300, 200), (10, 20, 30)).save(tmp_path / "photo.png")
        pieces = photo_pieces([tmp_path / "photo.png"], 20, seed=0)
        assert pieces.shape == (20, 256, 256, 3)
        assert np.unique(np.sort(pieces.reshape(-1, 3), axis=1), axis=0).tolist() == [[10, 20, 30]]

    def test_half_the_size_is_the_mean_of_four(self) -> None:
        pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
        means = F.avg_pool2d(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), 2).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(halved(pictures), means.round().numpy())


def test_a_network_that_knows_the_velocity_predicts_the_latents_themselves() -> None:
    class Oracle(TextToLatents):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, x_t, t, tokens):  # x_0 = alpha x_t - sigma v, so v = (alpha x_t - x_0) / sigma
            alpha, sigma = schedule.alpha_sigma(t, x_t)
            return (alpha * x_t - x_0) / sigma

    schedule = NoiseSchedule(SCHEDULER)
    latents = np.random.default_rng(0).standard_normal((5, 8, 4, 4)).astype(np.float16)
    x_0 = torch.from_numpy(latents).float()
    predictions = predict(Oracle(), latents, torch.zeros(5, 32, dtype=torch.int32), seed=0)
    np.testing.assert_allclose(predictions, latents, atol=2e-3)  # float16 has eleven bits: 4 * 2^-11


class TestVAE256:
    def test_it_begins_as_the_known_one_at_half_size(self, known: VAE) -> None:
        vae, hidden = grown(known), torch.randn(2, 64, 8, 8)
        assert vae.config.downscale == 2 * known.config.downscale
        plain = torch.rand(2, 3, 1, 1).expand(-1, -1, 16, 16)  # on which filters of any reach agree
        ours = vae.encoder.down_blocks[0](vae.encoder.conv_in(plain))
        theirs = known.encoder.conv_in(F.avg_pool2d(plain, 2))
        torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1])
        doubled = F.interpolate(known.decoder.up_blocks[3](hidden), scale_factor=2)
        torch.testing.assert_close(vae.decoder.up_blocks[4](vae.decoder.up_blocks[3](hidden)), doubled)
        deeper = torch.randn(2, 32, 16, 16)
        for level in range(4):
            deeper, expected = (
                blocks[at](deeper)
                for blocks, at in ((vae.encoder.down_blocks, level + 1), (known.encoder.down_blocks, level))
            )
            assert torch.equal(deeper, expected)

    def test_each_player_learns_from_its_own_loss_alone(self, known: VAE) -> None:
        pair = AutoencoderWithCritic(grown(known)).eval()  # so that the spectral norm stands still
        pictures, latents = torch.rand(2, 3, 64, 64), torch.randn(2, 8, 4, 4)
        critic, painter = list(pair.critic.parameters()), pair.vae.decoder.conv_in.weight
        drawn = pair.vae.decode(latents)
        hinge = F.relu(1 - pair.critic(pictures)).mean() + F.relu(1 + pair.critic(drawn.detach())).mean()
        opinion = reconstruction_loss(drawn, pictures) - REALISM * pair.critic(drawn).mean()
        alone = [*torch.autograd.grad(hinge, critic), *torch.autograd.grad(opinion, [painter])]
        both = torch.autograd.grad(adversarial_loss(pair, pictures, latents), [*critic, painter])
        torch.testing.assert_close(list(both), alone, rtol=1e-4, atol=1e-6)

    def test_the_halves_are_trained_apart_and_put_together(self, known: VAE, folder: Path, tmp_path: Path) -> None:
        pieces, vae = Pieces([folder]), grown(known)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        pair = AutoencoderWithCritic(vae)
        fit(pair, adversarial_loss, lambda g: pieces.batch(1, g)[::2], tmp_path / "decoder", steps=2, **OPTIONS)
        other = grown(known)
        take_decoder(other, tmp_path / "decoder" / "checkpoint.pt")
        other.decoder.requires_grad_(False)

        def loss(model, *batch):
            return agreement_loss(known, model, *batch)

        fit(other, loss, lambda g: pieces.batch(1, g)[:1], tmp_path / "encoder", steps=2, **OPTIONS)
        whole = load_vae_256(*(tmp_path / half / "checkpoint.pt" for half in ("encoder", "decoder"))).state_dict()
        first, averaged = grown(known).state_dict(), torch.load(tmp_path / "decoder" / "checkpoint.pt")["ema"]
        assert all(torch.equal(w, averaged[f"vae.{n}"]) for n, w in whole.items() if n.startswith("decoder."))
        for half in ("encoder.", "decoder."):
            assert any(not torch.equal(w, first[n]) for n, w in whole.items() if n.startswith(half))

    def test_a_missing_checkpoint_says_which_half_to_train(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"train_vae_256 encoder"):
            load_vae_256(tmp_path / "none.pt", tmp_path / "none.pt")


class TestTiny:
    def test_it_learns_to_paint_and_to_encode(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        losses = []
        batch = torch.rand(4, 3, 1, 1).expand(-1, -1, 64, 64) * 2 - 1, torch.randn(4, 8, 4, 4), torch.randn(4, 8, 4, 4)

        def loss(*given):
            losses.append(tiny_loss(*given))
            return losses[-1]

        fit(TinyVAE(CONFIG_TINY), loss, lambda generator: batch, tmp_path, steps=15, **{**OPTIONS, "rate": 3e-3})
        assert losses[-1] < 0.8 * losses[0]
        assert load_tiny(tmp_path / "checkpoint.pt").config.downscale == CONFIG_256.downscale

    def test_diffusers_reads_it_and_paints_the_same(self, tmp_path: Path) -> None:
        diffusers = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        vae = TinyVAE(CONFIG_TINY).half().float()  # what float16 holds
        export_tiny(tmp_path / "vae_tiny", vae)
        assert (tmp_path / "vae_tiny" / "diffusion_pytorch_model.safetensors").stat().st_size < 1e6
        theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "vae_tiny", torch_dtype=torch.float32)
        latents, pictures = 3 * torch.randn(2, 8, 5, 4), torch.rand(2, 3, 80, 64) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(theirs.decode(latents).sample, vae.decode(latents), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(theirs.encode(pictures).latents, vae.encode(pictures), rtol=1e-4, atol=1e-5)
        written = json.loads((tmp_path / "vae_tiny" / "config.json").read_text())
        assert TinyVAEConfig.from_dict(written) == CONFIG_TINY


class TestSharpness:
    def test_the_steepest_edges_are_told_in_levels_a_pixel(self) -> None:
        step = torch.full((1, 3, 64, 64), -1.0)
        step[..., 32:] = 1.0
        assert strong_edges(step) == 255  # one column of 63: more than a hundredth
        ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
        assert strong_edges(ramp) == pytest.approx(255 / 63, rel=1e-3)

    def test_what_is_painted_small_is_enlarged(self) -> None:
        pipeline = Pipeline.from_pretrained()
        pictures = torch.rand(1, 3, 256, 256) * 2 - 1
        assert painted(pipeline.models.vae, pictures).shape == pictures.shape
