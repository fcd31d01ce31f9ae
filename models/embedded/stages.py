"""The three stages of training: A the encoder on dense labels, B the decoder behind it, C everything together."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data import EARLY_PICTURES, sample_stream
from dialogue import KEPT_CHOICES, KEPT_SHARES, DialogueBuilder, answer_loss, choose_visual_tokens
from model import DenseHeads, encode, normalise, salience_loss, trainable_encoder

SALIENCE_WEIGHT = 0.1
SLOT_WEIGHTS = {
    "character": 4.0,
    "photo": 3.0,
    "direct character": 3.0,
    "direct photo": 2.0,
    "cls photo": 0.7,
    "y0": 0.5,
    "x0": 0.5,
    "y1": 0.5,
    "x1": 0.5,
    "index": 0.5,
    "row": 0.5,
    "column": 0.5,
    "rank": 0.5,
    "size": 0.3,
    "total": 0.3,
    "same_kind": 0.3,
    "same_colour": 0.3,
}
# Share of stage A that works on half of each picture's patches.
HALF_PICTURES = 0.92
DENSE_SHARE_IN_C = 0.1
QUESTIONS_PER_PICTURE = 10
AVERAGE_DECAY = 0.998


@dataclass
class Stage:
    """Length and pace of one stage."""

    name: str
    steps: int
    batch: int
    rate: float


@dataclass
class Surroundings:
    """What all stages share."""

    cifar: str
    checkpoints: Path
    seed: int
    device: str
    workers: int
    compile: bool
    log_every: int
    save_every: int

    def compiled(self, function):
        return torch.compile(function, dynamic=False) if self.compile else function


class Run:
    """The trained modules of a stage with optimiser, averaged weights, checkpoints and progress lines."""

    def __init__(self, stage: Stage, around: Surroundings, modules: nn.ModuleDict):
        self.stage, self.around, self.modules = stage, around, modules
        self.path = around.checkpoints / f"{stage.name}.pt"
        trained = [p for p in modules.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": 0.03},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), fused=True)
        self.trained = trained
        self.step = 0
        self.average = {k: v.detach().clone() for k, v in modules.state_dict().items()}
        self.sums, self.counts, self.samples, self.since = {}, {}, 0, time.time()
        if self.path.exists():
            state = torch.load(self.path, map_location=around.device)
            modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]

    @property
    def finished(self) -> bool:
        return self.step >= self.stage.steps

    def learn(self, loss: torch.Tensor, samples: int, figures: dict) -> None:
        """One optimiser step; then averaging, progress and checkpoint."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        self._report(samples, figures)
        if self.step % self.around.save_every == 0 or self.finished:
            self._save()

    def _rate(self) -> float:
        """Linear warm-up over 5 % of the steps, a constant stretch, and a linear fall over the last 30 %."""
        rise = min(1.0, (self.step + 1) / (0.05 * self.stage.steps))
        fall = min(1.0, max(0.02, (self.stage.steps - self.step) / (0.3 * self.stage.steps)))
        return self.stage.rate * min(rise, fall)

    def _update_average(self) -> None:
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.modules.state_dict().items():
                if value.dtype.is_floating_point:
                    self.average[name].lerp_(value, 1 - decay)

    def _report(self, samples: int, figures: dict) -> None:
        self.samples += samples
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1
        if self.step % self.around.log_every == 0:
            rate = self.samples / (time.time() - self.since)
            text = "  ".join(f"{k} {self.sums[k] / self.counts[k]:.3f}" for k in self.sums)
            print(f"{self.stage.name} {self.step}/{self.stage.steps}  {rate:.0f}/s  {text}", flush=True)
            self.sums, self.counts, self.samples, self.since = {}, {}, 0, time.time()

    def _save(self) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)


def encoder_modules(model, heads: DenseHeads) -> nn.ModuleDict:
    """What stage A trains."""
    return nn.ModuleDict({
        "tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "embedding": model.model.language_model.embed_tokens,
        "heads": heads,
    })


def all_modules(model, heads: DenseHeads) -> nn.ModuleDict:
    """What stages B and C keep in their checkpoints."""
    return nn.ModuleDict({"model": model.model, "heads": heads})


def dense_loss(model, heads, hidden, projected, attention, labels) -> tuple[torch.Tensor, dict]:
    """The weighted sum of the dense losses, and the accuracy per slot."""
    patches, salience, cls = labels
    embedding = model.model.language_model.embed_tokens.weight
    losses, accuracy = heads.losses(hidden, projected, embedding, patches, cls)
    losses["salience"] = salience_loss(attention, salience) * SALIENCE_WEIGHT
    return sum(SLOT_WEIGHTS.get(name, 1.0) * value for name, value in losses.items()), accuracy


def dense_step(around: Surroundings, model, heads, run_encode, batch, half: bool) -> tuple[torch.Tensor, dict]:
    """Loss and figures of a batch of encoder pictures, on half of their patches if `half`."""
    pixels, labels, _ = batch
    patches, salience, cls, visible = (x.to(around.device) for x in labels)
    if half:
        patches = patches.gather(2, visible[:, None].expand(-1, patches.shape[1], -1))
        salience = salience.gather(1, visible)
    with torch.autocast(around.device, dtype=torch.bfloat16):
        pixels = normalise(pixels.to(around.device))
        hidden, attention = run_encode(model.model.vision_tower, pixels, True, visible if half else None)
        projected = model.model.multi_modal_projector(hidden[:, 1:])
        loss, accuracy = dense_loss(model, heads, hidden, projected, attention, (patches, salience, cls))
    return loss, {"dense loss": loss.detach(), **accuracy}


def train_encoder(stage: Stage, around: Surroundings, model, heads: DenseHeads) -> None:
    """Stage A."""
    run = Run(stage, around, encoder_modules(model, heads))
    stream = sample_stream(around.cifar, around.seed, run.step, stage.batch, around.workers)
    run_encode = around.compiled(encode)
    while not run.finished:
        half = run.step < HALF_PICTURES * stage.steps
        loss, figures = dense_step(around, model, heads, run_encode, next(stream), half)
        run.learn(loss, stage.batch, figures)


def train_decoder(stage: Stage, around: Surroundings, model, heads: DenseHeads, tokenizer, joint: bool) -> None:
    """Stage B, with the encoder as it is, or with `joint` stage C, where all weights take part.

    In stage C the dense labels stay in the loss, and every other batch is one of encoder pictures, as in stage A.
    """
    tower = model.model.vision_tower
    for parameter in [*trainable_encoder(tower), *heads.parameters()]:
        parameter.requires_grad_(joint)
    run = Run(stage, around, all_modules(model, heads))
    seed = around.seed + (2 if joint else 1)
    stream = sample_stream(
        around.cifar, seed, run.step, stage.batch, around.workers, DialogueBuilder(tokenizer), QUESTIONS_PER_PICTURE
    )
    encoder_stream = None
    if joint:
        late = EARLY_PICTURES // stage.batch + 1  # the mix of stage A's first pictures is over
        encoder_stream = sample_stream(around.cifar, seed, late + run.step, stage.batch, around.workers)
    rng = np.random.default_rng((seed, run.step))
    run_encode = around.compiled(encode)
    while not run.finished:
        if joint and run.step % 2:
            loss, figures = dense_step(around, model, heads, run_encode, next(encoder_stream), half=True)
            run.learn(DENSE_SHARE_IN_C * loss, stage.batch, figures)
            continue
        pixels, labels, sequences = next(stream)
        patches, salience, cls, _ = labels
        kept = int(rng.choice(KEPT_CHOICES, p=KEPT_SHARES))
        chosen = choose_visual_tokens(rng, salience, kept)
        compact = bool(rng.random() < 0.5)
        with torch.autocast(around.device, dtype=torch.bfloat16):
            pixels = normalise(pixels.to(around.device))
            with torch.set_grad_enabled(joint):
                hidden, attention = run_encode(tower, pixels, True)
            projected = model.model.multi_modal_projector(hidden[:, 1:])
            loss, right = answer_loss(model, projected, chosen, sequences, compact, around.device)
            figures = {"answer loss": loss.detach(), "answer tokens": right}
            if joint:
                labels = tuple(x.to(around.device) for x in (patches, salience, cls))
                dense, _ = dense_loss(model, heads, hidden, projected, attention, labels)
                loss = loss + DENSE_SHARE_IN_C * dense
        run.learn(loss, stage.batch, figures)


def load_average(path: Path, modules: nn.ModuleDict, device: str) -> int:
    """Loads the averaged weights of a checkpoint; returns its step."""
    state = torch.load(path, map_location=device)
    modules.load_state_dict(state["average"])
    return state["step"]
