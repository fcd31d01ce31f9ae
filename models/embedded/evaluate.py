"""Held-out pictures with questions, answers by PyTorch, and the score table.

The official figures are decoded by another program from the exported folder: it writes one JSON object a line with `id`
and `answer`, and `score_table` does the rest.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from labels import BINS
from model import VISUAL_TOKENS, encode, normalise
from questions import TASKS, Questioner
from scenes import CANVAS, COLOURS, PHOTO_CLASSES, PLACES, SHAPES, PhotoSource, Thing, render, sample_scene

QUESTIONS_FILE = "questions.jsonl"


# ---------------------------------------------------------------------------------------------------------------------
# Making held-out pictures


def truth_of(thing: Thing, width: int, height: int) -> dict:
    """What is known about an object, its box in pixels of the picture as top, left, bottom, right."""
    y0, x0, y1, x1 = thing.box
    sx, sy = width / CANVAS, height / CANVAS
    truth = {"kind": thing.kind, "size": thing.size, "place": thing.place}
    truth["box"] = [round(y0 * sy, 1), round(x0 * sx, 1), round(y1 * sy, 1), round(x1 * sx, 1)]
    for name in ("colour", "text", "photo_class"):
        if getattr(thing, name) is not None:
            truth[name] = getattr(thing, name)
    return truth


def make_eval(
    folder: Path, cifar: str | None, seed: int, count: int, size: tuple[int, int] = (CANVAS, CANVAS)
) -> None:
    """Writes `count` pictures (PNG) and one line of JSON a question; no word and no photo of the training set occurs.

    Without `cifar` the pictures hold no photos and may be passed on freely.
    """
    width, height = size
    aspect = height / width if width != height else None
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 0xE7A1))
    photos = PhotoSource(cifar, "test") if cifar else None
    questioner = Questioner(rng)
    lines = []
    for number in range(count):
        scene = sample_scene(rng, photos, "test", aspect)
        pixels = render(scene, width=width, height=height)
        image = f"{number:04d}.png"
        Image.fromarray(pixels).save(folder / image, optimize=True)
        truth = [truth_of(t, width, height) for t in scene.things]
        for task in TASKS:
            turn = questioner.ask(task, scene)
            if turn is None:
                continue
            line = {
                "id": f"{number:04d}-{task}",
                "image": image,
                "task": task,
                "question": turn.question,
                "answer": turn.answer,
                "whole_photo": scene.whole_photo is not None,
                "objects": truth,
            }
            lines.append(json.dumps(line))
    (folder / QUESTIONS_FILE).write_text("\n".join(lines) + "\n")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


# ---------------------------------------------------------------------------------------------------------------------
# Answers by PyTorch


def keep_tokens(features: torch.Tensor, attention: torch.Tensor, kept: int, how: str, generator) -> torch.Tensor:
    """Which visual tokens stay: random ones, or those with the highest CLS attention averaged over layers."""
    if kept >= VISUAL_TOKENS:
        return torch.arange(VISUAL_TOKENS)
    score = attention.mean(dim=0) if how == "cls" else torch.rand(VISUAL_TOKENS, generator=generator)
    return score.topk(kept).indices.sort().values


@torch.no_grad()
def answer_questions(model, tokenizer, folder: Path, kept: int, how: str, device: str, limit: int, batch: int = 64):
    """Greedy answers to the questions of a folder made by `make_eval`, one dictionary a question."""
    questions = read_jsonl(folder / QUESTIONS_FILE)[:limit]
    generator = torch.Generator().manual_seed(1)
    table = model.model.language_model.embed_tokens
    visual = {}
    names = sorted({q["image"] for q in questions})
    for at in range(0, len(names), batch):
        some = names[at : at + batch]
        pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(folder / n)).copy()) for n in some]).to(device)
        hidden, attention = encode(model.model.vision_tower, normalise(pixels), with_attention=True)
        projected = model.model.multi_modal_projector(hidden[:, 1:])
        for k, name in enumerate(some):
            chosen = keep_tokens(projected[k], attention[:, k].cpu(), kept, how, generator)
            visual[name] = projected[k, chosen.to(device)]
    start = tokenizer.encode("USER: ", add_special_tokens=True)
    answers = []
    questions.sort(key=lambda q: q["task"])
    for at in range(0, len(questions), batch):
        some = questions[at : at + batch]
        rows = []
        for q in some:
            text = tokenizer.encode(f"\n{q['question']} ASSISTANT:", add_special_tokens=False)
            parts = [table(torch.tensor(start, device=device)), visual[q["image"]], table(torch.tensor(text, device=device))]
            rows.append(torch.cat(parts))
        longest = max(len(r) for r in rows)
        embedded = torch.stack([torch.cat([r.new_zeros(longest - len(r), r.shape[1]), r]) for r in rows])
        mask = torch.stack([torch.arange(longest, device=device) >= longest - len(r) for r in rows]).long()
        tokens = model.generate(
            inputs_embeds=embedded,
            attention_mask=mask,
            max_new_tokens=72,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for q, row in zip(some, tokens):
            answers.append({"id": q["id"], "answer": tokenizer.decode(row, skip_special_tokens=True).strip()})
    return answers


# ---------------------------------------------------------------------------------------------------------------------
# Scores

_PLACE = "(?:at the |in the )(" + "|".join(sorted(PLACES, key=len, reverse=True)) + ")"
_SHAPE = re.compile(rf"(small|big) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?: {_PLACE})?")
_WORD = re.compile(rf"the word (\S+)(?: {_PLACE})?")
_PHOTO = re.compile(rf"a photo of an? ({'|'.join(PHOTO_CLASSES)})(?: {_PLACE})?")


def parse_caption(text: str) -> list[dict]:
    """The objects a caption names."""
    found = []
    for part in text.lower().rstrip(".").split(", "):
        if match := _SHAPE.search(part):
            size, colour, kind, place = match.groups()
            found.append({"kind": kind, "colour": colour, "size": size, "place": place})
        elif match := _WORD.search(part):
            found.append({"kind": "word", "text": match[1].upper(), "place": match[2]})
        elif match := _PHOTO.search(part):
            found.append({"kind": "photo", "photo_class": match[1], "place": match[2]})
    return found


def _take(named: list[dict], truth: dict, keys: tuple[str, ...]) -> bool:
    """Removes the first named object that agrees with the truth in all `keys` that the truth has."""
    for candidate in named:
        if all(candidate.get(k) == truth[k] for k in keys if k in truth):
            named.remove(candidate)
            return True
    return False


def caption_counts(text: str, objects: list[dict], whole_photo: bool) -> dict:
    """Objects right by name (shape and colour; a word as a word, a photo as a photo), and in every detail."""
    truths = [dict(o) for o in objects]
    for truth in truths:
        if truth["kind"] in ("word", "photo"):
            truth.pop("colour", None)
            truth.pop("size", None)
        if whole_photo:
            truth.pop("place")
    named = parse_caption(text)
    loose, strict = list(named), list(named)
    right = sum(_take(loose, t, ("kind", "colour")) for t in truths)
    exact = sum(_take(strict, t, ("kind", "colour", "size", "place", "text", "photo_class")) for t in truths)
    return {"objects": len(truths), "named": len(named), "right": right, "exact": exact}


def parse_box(text: str) -> list[float] | None:
    """Box of four location tokens as fractions of the picture (top, left, bottom, right)."""
    bins = [int(k) for k in re.findall(r"<loc(\d\d)>", text)]
    return [(k + 0.5) / BINS for k in bins[:4]] if len(bins) >= 4 else None


def box_iou(a: list[float], b: list[float]) -> float:
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(height, 0) * max(width, 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return overlap / (area - overlap) if area > overlap else 0.0


def score(questions: list[dict], answers: list[dict]) -> dict[str, tuple[float, int]]:
    """Name of the measure -> (share in percent, number of cases). Unanswered questions count as wrong."""
    given = {a["id"]: a["answer"].strip() for a in answers}
    hits: dict[str, list[float]] = {}
    totals = {"objects": 0, "named": 0, "right": 0, "exact": 0}
    for q in questions:
        answer, task = given.get(q["id"], ""), q["task"]
        if task == "describe":
            for name, value in caption_counts(answer, q["objects"], q["whole_photo"]).items():
                totals[name] += value
        elif task == "where-is":
            truth, guess = parse_box(q["answer"]), parse_box(answer)
            hits.setdefault("box IoU > 0.5", []).append(float(guess is not None and box_iou(truth, guess) > 0.5))
        else:
            hits.setdefault(task, []).append(float(answer.rstrip(".").lower() == q["answer"].lower()))
    table = {}
    if totals["objects"]:
        table["caption: objects right"] = (100 * totals["right"] / totals["objects"], totals["objects"])
        table["caption: right in every detail"] = (100 * totals["exact"] / totals["objects"], totals["objects"])
        table["caption: named and present"] = (100 * totals["right"] / max(totals["named"], 1), totals["named"])
    for name, values in hits.items():
        table[name] = (100 * sum(values) / len(values), len(values))
    return table


def format_table(columns: dict[str, dict[str, tuple[float, int]]]) -> str:
    """A Markdown table with one column a run."""
    names = list(dict.fromkeys(name for table in columns.values() for name in table))
    lines = ["| measure | cases | " + " | ".join(columns) + " |", "|---|---:|" + "---:|" * len(columns)]
    for name in names:
        cases = max(table[name][1] for table in columns.values() if name in table)
        cells = [f"{table[name][0]:.1f}" if name in table else "" for table in columns.values()]
        lines.append(f"| {name} | {cases} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
