"""Questions and answers about a scene, in several wordings each. Answers use few words, each one token."""

from dataclasses import dataclass

import numpy as np

from labels import LOCATIONS, NUMBERS, box_bins
from scenes import COLOURS, SHAPES, Scene, Thing

TASKS = (
    "describe",
    "is-there",
    "how-many",
    "what-colour",
    "which-is-left-of",
    "read-the-word",
    "what-is-in-the-photo",
    "where-is",
)

TEMPLATES = {
    "describe": (
        "Describe the image in one paragraph.",
        "Describe the image.",
        "Describe this image.",
        "Describe the picture.",
        "Describe this picture in detail.",
        "What is in this picture?",
        "What is in the image?",
        "What do you see?",
        "What can you see in this image?",
        "What does the picture show?",
        "Write a caption for this image.",
        "Caption this image.",
        "List the objects in the picture.",
        "Tell me what is shown here.",
    ),
    "is-there": (
        "Is there {a} in the picture?",
        "Is there {a}?",
        "Is there {a} in the image?",
        "Do you see {a}?",
        "Can you see {a} here?",
        "Does the image contain {a}?",
        "Does the picture show {a}?",
    ),
    "how-many": (
        "How many {x} are there?",
        "How many {x} are in the picture?",
        "How many {x} do you see?",
        "How many {x} can you see in the image?",
        "Count the {x}.",
        "What is the number of {x}?",
    ),
    "what-colour": (
        "What colour is the {x}?",
        "What color is the {x}?",
        "Which colour does the {x} have?",
        "Tell me the colour of the {x}.",
        "What is the color of the {x}?",
    ),
    "which-is-left-of": (
        "Which is further left, the {a} or the {b}?",
        "Which is on the left, the {a} or the {b}?",
        "Which one is more to the left: the {a} or the {b}?",
        "What is to the left of the other, the {a} or the {b}?",
    ),
    "read-the-word": (
        "Read the word.",
        "What does the word say?",
        "What is written here?",
        "What is written in the picture?",
        "Read the text in the image.",
        "What text do you see?",
        "Which word or number is shown?",
    ),
    "what-is-in-the-photo": (
        "What is in the photo?",
        "What does the photo show?",
        "What is the photo of?",
        "Which animal or vehicle is in the photo?",
        "What kind of thing is in the photo?",
        "Classify the photo.",
    ),
    "where-is": (
        "Where is the {x}?",
        "Where is the {x} in the picture?",
        "Locate the {x}.",
        "Find the {x}.",
        "Give the box of the {x}.",
        "Give the bounding box of the {x}.",
        "Detect the {x}.",
    ),
    "what-shape": (
        "What shape is the {x} thing?",
        "Which shape is {x}?",
        "What is the shape of the {x} object?",
        "What is the {x} object?",
    ),
    "what-size": ("How big is the {x}?", "Is the {x} big or small?", "What size is the {x}?"),
    "what-place": (
        "In which part of the picture is the {x}?",
        "Which part of the image holds the {x}?",
        "Say in words where the {x} is.",
    ),
}


@dataclass
class Turn:
    """One question with its answer; `task` is the key of its templates."""

    task: str
    question: str
    answer: str


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def plural(noun: str) -> str:
    return {"cross": "crosses"}.get(noun, noun + "s")


def name_of(thing: Thing) -> str:
    """How a question refers to an object: "red circle", "word" or "photo"."""
    return f"{thing.colour} {thing.kind}" if thing.kind in SHAPES else thing.kind


def place_phrase(thing: Thing) -> str:
    return "in the middle" if thing.place == "middle" else f"at the {thing.place}"


def describe_thing(thing: Thing) -> str:
    if thing.kind == "word":
        return f"the word {thing.text} {place_phrase(thing)}"
    if thing.kind == "photo":
        return f"a photo of {with_article(thing.photo_class)} {place_phrase(thing)}"
    return f"a {thing.size} {thing.colour} {thing.kind} {place_phrase(thing)}"


def caption(scene: Scene) -> str:
    """The description of a scene: its objects from left to right."""
    if scene.whole_photo:
        return f"a photo of {with_article(scene.whole_photo)}."
    return ", ".join(describe_thing(t) for t in scene.things) + "."


def box_answer(thing: Thing) -> str:
    """Four location tokens: top, left, bottom, right."""
    return "".join(LOCATIONS[b] for b in box_bins(thing))


class Questioner:
    """Asks random questions about a scene."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def _pick(self, options):
        return options[self.rng.integers(len(options))]

    def _turn(self, task: str, answer: str, **values: str) -> Turn:
        return Turn(task, self._pick(TEMPLATES[task]).format(**values), answer)

    def describe(self, scene: Scene) -> Turn:
        return self._turn("describe", caption(scene))

    def is_there(self, scene: Scene) -> Turn:
        names = {name_of(t) for t in scene.things}
        kinds = {t.kind for t in scene.things}
        colours = {t.colour for t in scene.things if t.kind in SHAPES}
        wanted = self.rng.random() < 0.5
        for _ in range(20):
            if self.rng.random() < 0.3:
                noun = self._pick(SHAPES + ("word", "photo"))
                present = noun in kinds
            else:
                thing = self._pick(scene.things)
                shape = thing.kind if thing.kind in SHAPES else self._pick(SHAPES)
                colour = thing.colour or self._pick(tuple(COLOURS))
                if not wanted:
                    # A near miss: another colour or another shape, one that occurs elsewhere in the scene if possible.
                    if self.rng.random() < 0.5:
                        colour = self._pick(tuple(colours) if len(colours) > 1 else tuple(COLOURS))
                    else:
                        shape = self._pick(SHAPES)
                noun = f"{colour} {shape}"
                present = noun in names
            if present == wanted:
                return self._turn("is-there", "yes" if present else "no", a=with_article(noun))
        present = False
        noun = self._pick([f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in names])
        return self._turn("is-there", "no", a=with_article(noun))

    def how_many(self, scene: Scene) -> Turn:
        roll = self.rng.random()
        if roll < 0.35:
            return self._turn("how-many", NUMBERS[len(scene.things)], x=self._pick(("objects", "things")))
        shapes = [t for t in scene.things if t.kind in SHAPES]
        if roll < 0.75:
            present = bool(shapes) and self.rng.random() < 0.8
            kind = self._pick(shapes).kind if present else self._pick(SHAPES)
            return self._turn("how-many", NUMBERS[sum(t.kind == kind for t in shapes)], x=plural(kind))
        present = bool(shapes) and self.rng.random() < 0.8
        colour = self._pick(shapes).colour if present else self._pick(tuple(COLOURS))
        return self._turn("how-many", NUMBERS[sum(t.colour == colour for t in shapes)], x=f"{colour} shapes")

    def what_colour(self, scene: Scene) -> Turn | None:
        kinds = [t.kind for t in scene.things]
        fit = [t for t in scene.things if t.colour and kinds.count(t.kind) == 1]
        if not fit:
            return None
        thing = self._pick(fit)
        return self._turn("what-colour", thing.colour, x=thing.kind)

    def what_shape(self, scene: Scene) -> Turn | None:
        shapes = [t for t in scene.things if t.kind in SHAPES]
        colours = [t.colour for t in scene.things]
        fit = [t for t in shapes if colours.count(t.colour) == 1]
        if not fit:
            return None
        thing = self._pick(fit)
        return self._turn("what-shape", with_article(thing.kind), x=thing.colour)

    def which_is_left_of(self, scene: Scene) -> Turn | None:
        if len(scene.things) < 2:
            return None
        first, second = sorted(self.rng.choice(len(scene.things), size=2, replace=False))
        left, right = scene.things[first], scene.things[second]
        a, b = (left, right) if self.rng.random() < 0.5 else (right, left)
        return self._turn("which-is-left-of", f"the {name_of(left)}", a=name_of(a), b=name_of(b))

    def read_the_word(self, scene: Scene) -> Turn | None:
        words = [t for t in scene.things if t.text]
        return self._turn("read-the-word", words[0].text) if words else None

    def what_is_in_the_photo(self, scene: Scene) -> Turn | None:
        photos = [t for t in scene.things if t.photo_class]
        return self._turn("what-is-in-the-photo", with_article(photos[0].photo_class)) if photos else None

    def where_is(self, scene: Scene) -> Turn:
        thing = self._pick(scene.things)
        return self._turn("where-is", box_answer(thing), x=name_of(thing))

    def what_size(self, scene: Scene) -> Turn | None:
        shapes = [t for t in scene.things if t.kind in SHAPES]
        if not shapes:
            return None
        thing = self._pick(shapes)
        return self._turn("what-size", thing.size, x=name_of(thing))

    def what_place(self, scene: Scene) -> Turn | None:
        if scene.whole_photo:
            return None
        thing = self._pick(scene.things)
        return self._turn("what-place", place_phrase(thing), x=name_of(thing))

    def ask(self, task: str, scene: Scene) -> Turn | None:
        """One question of a task, or nothing where the scene does not support it."""
        return getattr(self, task.replace("-", "_"))(scene)


def template_corpus(rng: np.random.Generator) -> list[str]:
    """Text in the training distribution, for the tokenizer."""
    nouns = [f"{c} {s}" for c in COLOURS for s in SHAPES] + ["word", "photo", "objects", "things"]
    nouns += [plural(s) for s in SHAPES] + [f"{c} shapes" for c in COLOURS]
    corpus = []
    for templates in TEMPLATES.values():
        for template in templates:
            for _ in range(12):
                noun, other = nouns[rng.integers(len(nouns))], nouns[rng.integers(len(nouns))]
                corpus.append(template.format(a=with_article(noun), x=noun, b=other))
    return corpus
