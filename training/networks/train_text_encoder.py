"""Teach a new text encoder from the old one: `python -m training.networks.train_text_encoder --minutes 60`.

The finished network's own answer to a plain caption is the target for its answer to a sentence that means the same, at
the same x_t. Such a target has no noise in it, where the ordinary loss drowns a word in it. U-Net and old encoder are
frozen; the new encoder and the keys and values of the cross-attentions are trained (`TextConditioner`).

`--target attention` compares what the cross-attentions answer to the old network's queries. That needs one evaluation
of the U-Net for several sentences and no backward pass through it, and teaches the vocabulary. `--target velocity`
compares the velocities themselves, and comes last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from stable_diffusion.attention import Attention, attend
from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.ddpm import q_sample
from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.model_loader import load
from stable_diffusion.schedule import NoiseSchedule
from training.data.dataset import recolourable
from training.data.grammar import base_noun, everyday, nouns, with_article
from training.data.heldout import Heldout
from training.data.paint import BACKGROUNDS, COLOURS
from training.data.sentences.paraphraser import HELDOUT, Pair, Paraphraser

from .cache_latents import load_facts, load_latents
from .export import write_json
from .fit import Loss, LossByNoise, fit, linear_end, precision
from .text_conditioner import TextConditioner, cross_attentions, grow, widths
from .train_tokenizer import FILES as TOKENIZER_FILES
from .train_tokenizer import caption_tokens
from .train_unet import SCHEDULER, draw_timesteps

TIMESTEP_POWER = 1.5  # of the density of timesteps: the late ones decide the contents of a picture
EVERYDAY_WEIGHT = 3.0  # of examples that show what people ask for first, against 1 for the rest
WARMUP, EMA_DECAY = 50, 0.99
WORD_SHARE = (
    5.0  # of the rate, for token embeddings: a rare word is in one batch of many, and far from where it belongs
)
ANY_THING = 0.5  # share of the examples about any one drawing, over the latents of another picture
COLOURED, ON_COLOUR = 0.3, 0.3  # shares of them in a named colour, where that can be, and on a named background
THINGS = 60  # captions of things, evenly spaced, that are measured beside held-out sentences
LEVELS = 3  # noise levels at which held-out sentences are compared
LATEST, EARLIEST = 999, 699


class Teacher(nn.Module):
    """The finished network, which answers plain captions."""

    def __init__(self, folder: Path):
        super().__init__()
        models = load(folder, dtype=torch.float32)
        self.tokenizer, self.text_encoder, self.unet = models.tokenizer, models.text_encoder, models.unet
        self.schedule = NoiseSchedule(SCHEDULER)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return the velocity (B, C, h, w) of x_t for the tokens (B, S) of plain captions."""
        return self.unet(x_t, t.float(), self.unet.read(self.text_encoder(tokens)))

    @torch.no_grad()
    def attentions(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> list[tuple[Attention, Tensor, Tensor]]:
        """Return each cross-attention with its queries (B, L, C) and its answer (B, L, C) to the plain captions."""
        with recorded(cross_attentions(self.unet).values()) as calls:
            self.velocity(x_t, t, tokens)
        return [(module, module.to_q(x), answer) for module, x, answer in calls]


@contextmanager
def recorded(modules: Iterable[Attention]) -> Iterator[list[tuple[Attention, Tensor, Tensor]]]:
    """Record the first input and the output of each module at every call inside."""
    calls: list[tuple[Attention, Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0], output)))
        for module in modules
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def attention_loss(teacher: Teacher, by_noise: LossByNoise) -> Loss:
    """Return a loss: the squared error of each cross-attention's answer, over its variance between captions."""
    spans = widths(teacher.unet)

    def loss(
        conditioner: TextConditioner, sentences: Tensor, plain: Tensor, latents: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        x_t = q_sample(teacher.schedule, latents, t, noise)
        words = conditioner(sentences)
        copies = len(sentences) // len(plain)
        errors = []
        for (module, query, answer), (start, end) in zip(teacher.attentions(x_t, t, plain), spans, strict=True):
            key, value = words[:, :, start:end].chunk(2, dim=2)
            said = module.to_out[0](attend(query.repeat_interleave(copies, 0), key, value, module.heads))
            error = (said.float() - answer.float().repeat_interleave(copies, 0)).square().flatten(1).mean(1)
            errors.append(error / answer.float().var(dim=0).mean().clamp(min=1e-6))
        return by_noise.add(t.repeat_interleave(copies, 0), torch.stack(errors).mean(0))

    return loss


def velocity_loss(teacher: Teacher, by_noise: LossByNoise) -> Loss:
    """Return a loss: the squared error of the velocities."""

    def loss(
        conditioner: TextConditioner, sentences: Tensor, plain: Tensor, latents: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        x_t = q_sample(teacher.schedule, latents, t, noise)
        target = teacher.velocity(x_t, t, plain)
        copies = len(sentences) // len(plain)
        x_t, t, target = (tensor.repeat_interleave(copies, 0) for tensor in (x_t, t, target))
        error = teacher.unet(x_t, t.float(), conditioner(sentences)).float() - target.float()
        return by_noise.add(t, error.square().flatten(1).mean(1))

    return loss


def facts_of(row: int, rows: Sequence[dict]) -> dict[str, Any]:
    """Return the facts of a picture that shows one drawing of the data set on white (`Composer.sample`)."""
    shown = rows[row]
    nothing = dict.fromkeys(("size", "place", "relation"))
    one = {"count": 1, "rows": [row], "concepts": [shown["concept"]], "labels": [shown["label"]], "colours": [None]}
    return nothing | one | {"style": shown["style"], "background": "white"}


class Examples:
    """Latents with facts, of which sentences are made anew at each step.

    Composed pictures mostly show everyday things. So that no name is lost, `any_thing` of the examples are about one
    drawn from all alike, and the first of several sentences is its plain caption. Their latents show another picture:
    at late timesteps little of it is left, and the teacher sees the same.
    """

    def __init__(self, folders: Sequence[Path], paraphraser: Paraphraser, old: CLIPTokenizer, new: CLIPTokenizer):
        self.heldout = Heldout.load()
        self.drawings: dict[str, list[int]] = {}
        for row, shown in enumerate(paraphraser.rows):
            if (shown["concept"], shown["style"]) not in self.heldout.cells:
                self.drawings.setdefault(shown["label"], []).append(row)
        self.labels = list(self.drawings)
        self.latents = torch.cat([load_latents(folder)[0] for folder in folders])
        captions = [caption for folder in folders for caption in load_latents(folder)[1]]
        self.facts, self.paraphraser, self.old, self.new = load_facts(folders), paraphraser, old, new
        self.weights = torch.tensor([EVERYDAY_WEIGHT if everyday(caption) else 1.0 for caption in captions])

    def batch(self, pictures: int, copies: int, power: float, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the tokens of sentences (pictures * copies, S) and plain captions (pictures, S'), latents, t, noise.

        The sentences of one picture state the same facts, of which the plain caption states those that all of them do.
        """
        rows = self.weights.multinomial(pictures, replacement=True, generator=generator)
        rng = Random(int(torch.randint(2**62, (), generator=generator)))
        pairs = [pair for row in rows.tolist() for pair in self._pairs(row, rng, copies)]
        latents = self.latents[rows].float()
        return (
            caption_tokens(self.new, [pair.sentence for pair in pairs]).long(),
            caption_tokens(self.old, [pair.plain for pair in pairs[::copies]]).long(),
            latents,
            draw_timesteps(pictures, SCHEDULER.num_train_timesteps, power, generator),
            torch.randn(latents.shape, generator=generator),
        )

    def _pairs(self, row: int, rng: Random, copies: int) -> list[Pair]:
        if rng.random() >= ANY_THING:
            return self.paraphraser.pairs(self.facts[row], rng, copies)
        drawing = rng.choice(self.drawings[rng.choice(self.labels)])
        facts = facts_of(drawing, self.paraphraser.rows) | self._colours(drawing, rng)
        pairs = self.paraphraser.pairs(facts, rng, copies)
        if copies > 1:
            pairs[0] = Pair(pairs[0].plain, pairs[0].plain, "en")
        return pairs

    def _colours(self, row: int, rng: Random) -> dict[str, Any]:
        """Return facts about the colours of a drawing and its background, never those that are held out."""
        shown, colour, background = self.paraphraser.rows[row], None, "white"
        if recolourable(shown) and rng.random() < COLOURED:
            noun = base_noun(shown["label"])
            colour = rng.choice([one for one in COLOURS if (one, noun) not in self.heldout.colour_nouns])
        if rng.random() < ON_COLOUR:
            background = rng.choice([one for one in BACKGROUNDS if one != colour])
        return {"colours": [colour], "background": background}


def quick() -> torch.autocast:
    """Return a context in which networks compute in bfloat16, where the processor does so natively."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16")


class HeldoutSentences:
    """Sentences that training never sees, compared with their plain captions where the teacher's drawing passes.

    The error is that of the velocity, against the error of an encoder that reads nothing: 0 is the teacher's answer, 1
    that of the empty caption. `captions`, of the kind "things", are to be read as themselves.
    """

    def __init__(self, teacher: Teacher, path: Path = HELDOUT, seed: int = 0, captions: Sequence[str] = ()):
        listed = json.loads(path.read_text(encoding="utf-8")) | {"things": [(caption, caption) for caption in captions]}
        self.kinds = [kind for kind, items in listed.items() for _ in items]
        self.sentences = [sentence for items in listed.values() for sentence, _ in items]
        plain = caption_tokens(teacher.tokenizer, [caption for items in listed.values() for _, caption in items]).long()
        empty = caption_tokens(teacher.tokenizer, [""]).long().expand(len(plain), -1)
        self.teacher = teacher
        self.ways = self._ways(plain, seed)
        with quick():
            self._most = self._errors([teacher.velocity(x_t, t, empty).float() for x_t, t, _ in self.ways])

    @torch.no_grad()
    def _ways(self, plain: Tensor, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """x_t, t and the teacher's velocity at each noise level, by unguided DDIM (Eq. 12, arXiv:2010.02502)."""
        unet, schedule = self.teacher.unet, self.teacher.schedule
        side, generator = unet.config.sample_size, torch.Generator().manual_seed(seed)
        x_t = torch.randn((len(plain), unet.config.in_channels, side, side), generator=generator)
        levels = torch.linspace(LATEST, EARLIEST, LEVELS).round().long().tolist()
        ways = []
        for level, after in zip(levels, [*levels[1:], None], strict=True):
            t = torch.full((len(plain),), level)
            with quick():
                velocity = self.teacher.velocity(x_t, t, plain).float()
            ways.append((x_t, t, velocity))
            if after is not None:
                alpha, sigma = schedule.alpha_sigma(t, x_t)
                x_0, eps = alpha * x_t - sigma * velocity, alpha * velocity + sigma * x_t
                x_t = schedule.add_noise(x_0, eps, torch.full_like(t, after))
        return ways

    def _errors(self, velocities: Sequence[Tensor]) -> Tensor:
        """Return the squared error (N,) of answers at all noise levels."""
        each = [
            (velocity - target).square().flatten(1).mean(1)
            for velocity, (_, _, target) in zip(velocities, self.ways, strict=True)
        ]
        return torch.stack(each).mean(0)

    @torch.no_grad()
    def measure(self, conditioner: TextConditioner, tokenizer: CLIPTokenizer) -> dict[str, float]:
        """Return the mean error of each kind of sentence."""
        with quick():
            words = conditioner(caption_tokens(tokenizer, self.sentences).long())
            velocities = [self.teacher.unet(x_t, t.float(), words).float() for x_t, t, _ in self.ways]
        errors = self._errors(velocities)
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for kind, error, most in zip(self.kinds, errors.tolist(), self._most.tolist(), strict=True):
            found[kind].append((error, most))
        return {kind: sum(e for e, _ in both) / sum(m for _, m in both) for kind, both in found.items()}


def translations(paraphraser: Paraphraser) -> dict[str, str]:
    """Return names and colours of all languages, in small letters, with the English name that the old encoder knows."""
    labels = {row["concept"]: row["label"] for row in paraphraser.rows}
    found: dict[str, str] = {}
    for language in paraphraser.languages.values():
        for concept, names in language.names.items():
            if concept in labels:
                found.setdefault(names.name.lower(), nouns(labels[concept])[0])
        for label, words in language.words.get("things", {}).items():
            found |= {word.lower(): nouns(label)[0] for word in words}
        for colour, words in language.words.get("colours", {}).items():
            found |= {word.lower(): colour for word in words}
    return found


def new_conditioner(
    teacher: Teacher, tokenizer: CLIPTokenizer, paraphraser: Paraphraser, layers: int, start: Path | None
) -> TextConditioner:
    """Return a conditioner with the teacher's knowledge, or with that of the folder `start` (`save_conditioner`).

    A folder without a configuration has the teacher's layout and vocabulary.
    """
    conditioner, known = TextConditioner(teacher.text_encoder, teacher.unet), teacher.tokenizer
    if start is not None:
        if (start / "config.json").exists():
            config = CLIPTextConfig.from_dict(json.loads((start / "config.json").read_text(encoding="utf-8")))
            conditioner.text_encoder = CLIPTextEncoder(config)
            known = CLIPTokenizer.from_pretrained(str(start), local_files_only=True)
        conditioner.text_encoder.load_state_dict(load_file(start / "text_encoder.safetensors"))
        conditioner.load_unet_weights(load_file(start / "cross_attention_keys_values.safetensors"))
    conditioner.text_encoder = grow(conditioner.text_encoder, known, tokenizer, layers, translations(paraphraser))
    return conditioner.requires_grad_(True).train()


def save_conditioner(conditioner: TextConditioner, tokenizer_dir: Path, folder: Path) -> None:
    """Write encoder and projections in float16, each in a file, with the encoder's configuration and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in (
        ("text_encoder", conditioner.text_encoder.state_dict()),
        ("cross_attention_keys_values", conditioner.unet_weights()),
    ):
        save_file({key: tensor.half().contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_dir / name, folder / name)
    write_json(folder / "config.json", dataclasses.asdict(conditioner.text_encoder.config))


def main() -> None:
    """Teach the text encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, help="to spend on this target, over all restarts")
    parser.add_argument("--target", choices=("attention", "velocity"), default="attention")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the minutes in which the rate falls to zero")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=24, help="of a batch")
    parser.add_argument("--copies", type=int, default=6, help="sentences about each picture")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--length", type=int, help="tokens of a sentence, default: the tokenizer's; 32 first takes half as long"
    )
    parser.add_argument("--timestep-power", type=float, default=TIMESTEP_POWER)
    parser.add_argument("--precision", choices=("no", "bf16"), help="default: bf16 where the processor computes it")
    parser.add_argument("--latents", type=Path, nargs="+", required=True, help="folders of latents with facts")
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--start", type=Path, help="folder of weights to start from, instead of the model's own")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer-sentences"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, default=Path("runs/text-encoder"))
    args = parser.parse_args()

    torch.manual_seed(0)
    teacher, paraphraser = Teacher(args.model), Paraphraser.load(args.data)
    tokenizer = CLIPTokenizer.from_pretrained(str(args.tokenizer), local_files_only=True)
    tokenizer.model_max_length = args.length or tokenizer.model_max_length
    examples = Examples(args.latents, paraphraser, teacher.tokenizer, tokenizer)
    captions = [with_article(nouns(label)[0]) for label in examples.labels[:: max(1, len(examples.labels) // THINGS)]]
    heldout, by_noise = HeldoutSentences(teacher, captions=captions), LossByNoise(SCHEDULER.num_train_timesteps)

    def look(step: int, averaged: TextConditioner) -> None:
        save_conditioner(averaged, args.tokenizer, args.out)
        errors = heldout.measure(averaged, tokenizer)
        with (args.out / "heldout.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "errors": errors}) + "\n")
        print(f"step {step}  held out", *(f"{kind} {error:.2f}" for kind, error in errors.items()), flush=True)

    fit(
        new_conditioner(teacher, tokenizer, paraphraser, args.layers, args.start),
        {"attention": attention_loss, "velocity": velocity_loss}[args.target](teacher, by_noise),
        lambda generator: examples.batch(args.pictures, args.copies, args.timestep_power, generator),
        args.out,
        rate=args.rate,
        schedule=linear_end(args.decay),
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        minutes=args.minutes,
        stage=args.target,
        look=look,
        mixed_precision=args.precision,
        word_share=WORD_SHARE,
        by_noise=by_noise,
    )


if __name__ == "__main__":
    main()
