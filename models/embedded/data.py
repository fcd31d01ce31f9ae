"""Endless streams of training samples, made on the fly in worker processes."""

import itertools

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dialogue import DialogueBuilder
from labels import IGNORE, SLOTS, dense_labels, visible_patches
from questions import Questioner, Turn
from scenes import PhotoSource, Scene, render, sample_letter_sheet, sample_mosaic, sample_scene, sample_whole_photo

# How often the encoder's own stage sees each kind of picture; the stages with a decoder see scenes only.
ENCODER_MIX = (("scene", 0.42), ("whole photo", 0.08), ("mosaic", 0.20), ("letter sheet", 0.30))
# Characters and photos do not start to be learnt while easier labels shape the gradients: the first pictures are for them.
EARLY_MIX = (("mosaic", 0.25), ("letter sheet", 0.75))
EARLY_SLOTS = ("character", "photo")
EARLY_PICTURES = 16_000
# Relative weight of each kind of question behind a picture; one description is always asked.
QUESTION_WEIGHTS = {
    "is-there": 3.0,
    "how-many": 1.0,
    "what-colour": 1.0,
    "what-shape": 0.7,
    "which-is-left-of": 1.0,
    "read-the-word": 3.0,
    "what-is-in-the-photo": 2.5,
    "where-is": 3.0,
    "what-size": 0.4,
    "what-place": 0.7,
}


def sample_encoder_picture(rng: np.random.Generator, photos: PhotoSource, number: int) -> tuple[Scene, bool]:
    """The `number`-th picture for the dense labels, and whether its objects have an order and a count."""
    names, shares = zip(*(EARLY_MIX if number < EARLY_PICTURES else ENCODER_MIX))
    kind = names[rng.choice(len(names), p=shares)]
    if kind == "whole photo":
        return sample_whole_photo(rng, photos), True
    if kind == "mosaic":
        return sample_mosaic(rng, photos), False
    if kind == "letter sheet":
        plain = 1.0 if number < EARLY_PICTURES / 3 else 0.4 if number < EARLY_PICTURES else 0.1
        return sample_letter_sheet(rng, plain=rng.random() < plain), False
    return sample_scene(rng, photos, "train"), True


def sample_turns(rng: np.random.Generator, scene: Scene, count: int) -> list[Turn]:
    """A description and `count` more questions, in random order."""
    questioner = Questioner(rng)
    turns = [questioner.describe(scene)]
    tasks = list(QUESTION_WEIGHTS)
    shares = np.array(list(QUESTION_WEIGHTS.values()))
    shares = shares / shares.sum()
    asked = set()
    for _ in range(count * 4):
        if len(turns) > count:
            break
        turn = questioner.ask(tasks[rng.choice(len(tasks), p=shares)], scene)
        if turn is not None and (turn.task, turn.answer) not in asked:
            asked.add((turn.task, turn.answer))
            turns.append(turn)
    return [turns[k] for k in rng.permutation(len(turns))]


class Samples(IterableDataset):
    """Pictures with dense labels; with `questions` > 0 also that many questions behind each picture.

    `seen` is the number of pictures that earlier streams of the stage have made.
    """

    def __init__(self, cifar: str, seed: int, seen: int, questions: int = 0):
        self.cifar, self.seed, self.seen, self.questions = cifar, seed, seen, questions

    def __iter__(self):
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, self.seen, worker.id if worker else 0))
        photos = PhotoSource(self.cifar, "train")
        for number in itertools.count(self.seen, worker.num_workers if worker else 1):
            early = not self.questions and number < EARLY_PICTURES
            if self.questions:
                scene, ranked = sample_scene(rng, photos, "train"), True
            else:
                scene, ranked = sample_encoder_picture(rng, photos, number)
            pixels = torch.from_numpy(render(scene, rng))
            labels = dense_labels(scene, ranked)
            if early:
                labels[0][[k for k, slot in enumerate(SLOTS) if slot not in ("kind", *EARLY_SLOTS)]] = IGNORE
            visible = visible_patches(rng, scene, labels[0], ranked)
            turns = sample_turns(rng, scene, self.questions) if self.questions else []
            yield pixels, tuple(torch.from_numpy(x) for x in (*labels, visible)), turns


class Collator:
    """Stacks samples; with a `DialogueBuilder` it packs their questions too, three batches in four as isolated turns."""

    def __init__(self, builder: DialogueBuilder | None, seed: int):
        self.builder, self.rng = builder, np.random.default_rng(seed)

    def __call__(self, samples: list) -> tuple:
        pixels = torch.stack([s[0] for s in samples])
        labels = tuple(torch.stack(column) for column in zip(*(s[1] for s in samples)))
        sequences = None
        if self.builder is not None:
            sequences = self.builder.build([s[2] for s in samples], isolated=self.rng.random() < 0.75)
        return pixels, labels, sequences


def sample_stream(cifar: str, seed: int, start: int, batch: int, workers: int, builder=None, questions: int = 0):
    """Batches for ever. `start` (a step number) makes a resumed run continue with fresh samples."""
    loader = DataLoader(
        Samples(cifar, seed, start * batch, questions),
        batch_size=batch,
        num_workers=workers,
        collate_fn=Collator(builder, seed + start),
        prefetch_factor=8 if workers else None,
    )
    return iter(loader)
