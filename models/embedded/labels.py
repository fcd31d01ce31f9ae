"""Dense labels: what every patch and the CLS token of the encoder should know about a scene.

Each label is a slot with a small set of values, and each value is a word that is one token of the decoder. The encoder is
thus trained in the decoder's own words: a projected patch, mapped by a slot's low-rank matrix and read by the tied head,
names the kind, colour, place, box and so on of the object it lies on.
"""

import numpy as np

from scenes import CANVAS, CHARACTERS, COLOURS, MAX_WORD, PHOTO_CLASSES, PLACES, SHAPES, SIZES, Scene, Thing, shape_distance

PATCH = 8
GRID = CANVAS // PATCH
BINS = 64
IGNORE = -100

NUMBERS = ("zero", "one", "two", "three", "four", "five")
KINDS = ("background",) + SHAPES + ("word", "photo")
COLOUR_NAMES = tuple(COLOURS)
LOCATIONS = tuple(f"<loc{k:02d}>" for k in range(BINS))
# Places share words, so the nine of them are split into two slots of single words.
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")

SLOTS = {
    "kind": KINDS,
    "colour": COLOUR_NAMES,
    "size": SIZES,
    "row": ROWS,
    "column": COLUMNS,
    "rank": NUMBERS[1:5],
    "character": tuple(CHARACTERS),
    "index": NUMBERS[1 : MAX_WORD + 1],
    "photo": PHOTO_CLASSES,
    "total": NUMBERS[1:5],
    "same_kind": NUMBERS[1:5],
    "same_colour": NUMBERS[1:5],
    "y0": LOCATIONS,
    "x0": LOCATIONS,
    "y1": LOCATIONS,
    "x1": LOCATIONS,
}
SLOT_INDEX = {name: k for k, name in enumerate(SLOTS)}

_CENTRES = (np.arange(GRID, dtype=np.float32) + 0.5) * PATCH
_PATCH_X, _PATCH_Y = np.meshgrid(_CENTRES, _CENTRES)


def location_bin(coordinate: float) -> int:
    """The location token of a coordinate in canvas pixels; token k stands for the k-th of 64 equal strips."""
    return int(np.clip(coordinate * BINS / CANVAS, 0, BINS - 1))


def box_bins(thing: Thing) -> tuple[int, int, int, int]:
    return tuple(location_bin(c) for c in thing.box)


def _distance_to(thing: Thing) -> np.ndarray:
    """Distance in pixels from each patch centre to the object's area; rings count as filled."""
    if thing.kind in SHAPES:
        u, v = (_PATCH_X - thing.cx) / thing.rx, (_PATCH_Y - thing.cy) / thing.ry
        kind = "circle" if thing.kind == "ring" else thing.kind
        return shape_distance(kind, u, v) * min(thing.rx, thing.ry)
    y0, x0, y1, x1 = thing.box
    outside_x = np.maximum(x0 - _PATCH_X, _PATCH_X - x1)
    outside_y = np.maximum(y0 - _PATCH_Y, _PATCH_Y - y1)
    return np.maximum(outside_x, outside_y)


def dense_labels(scene: Scene, ranked: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of a rendered scene.

    Returns the patch labels (slots x 256, `IGNORE` where a slot does not apply), the salience that the CLS attention is
    drawn to (256, sums to one, or all zero for a whole photo), and the CLS labels: presence of the eight object kinds and
    nine colours (1 or 0), number of objects, class of a whole photo. `ranked` is off for mosaics and letter sheets, whose
    objects have no order and no count.
    """
    patches = np.full((len(SLOTS), GRID, GRID), IGNORE, np.int64)
    patches[SLOT_INDEX["kind"]] = 0
    salience = np.zeros((GRID, GRID), np.float32)

    def fill(mask, **values):
        for slot, value in values.items():
            patches[SLOT_INDEX[slot]][mask] = value

    for rank, thing in enumerate(scene.things):
        distance = _distance_to(thing)
        inside = distance < (2.0 if thing.kind != "photo" else 0.0)
        fill((distance < 5.0) & ~inside & (patches[SLOT_INDEX["kind"]] == 0), kind=IGNORE)
        y0, x0, y1, x1 = box_bins(thing)
        fill(inside, kind=KINDS.index(thing.kind), y0=y0, x0=x0, y1=y1, x1=x1)
        if thing.colour is not None:
            fill(inside, colour=COLOUR_NAMES.index(thing.colour))
        if thing.photo_class is not None:
            fill(inside, photo=PHOTO_CLASSES.index(thing.photo_class))
        units = [inside]
        if thing.text is not None:
            units = []
            middles = np.array([(b[1] + b[3]) / 2 for b in thing.character_boxes])
            nearest = np.abs(_PATCH_X[..., None] - middles).argmin(axis=-1)
            for k, character in enumerate(thing.text):
                unit = inside & (nearest == k)
                fill(unit, character=CHARACTERS.index(character), index=k)
                units.append(unit)
        if ranked:
            place = PLACES.index(thing.place)
            fill(
                inside,
                size=SIZES.index(thing.size),
                row=place // 3,
                column=place % 3,
                rank=rank,
                total=len(scene.things) - 1,
                same_kind=sum(t.kind == thing.kind for t in scene.things) - 1,
            )
            if thing.colour is not None:
                fill(inside, same_colour=sum(t.colour == thing.colour for t in scene.things) - 1)
        for unit in units:
            # The n-th patch from a unit's middle weighs 1/n: the strongest k patches then cover every unit.
            ys, xs = np.nonzero(unit)
            if len(ys):
                order = np.argsort(np.hypot(ys - ys.mean(), xs - xs.mean()), kind="stable")
                salience[ys[order], xs[order]] = 1.0 / (1.0 + np.arange(len(ys)))

    if scene.whole_photo or not ranked:
        # Large uniform areas would drown the objects of ordinary scenes: most of their patches keep only what they show.
        sparse = (np.arange(GRID * GRID).reshape(GRID, GRID) % 7) != 0
        for slot in SLOTS:
            if slot not in ("kind", "colour", "character", "index", "photo"):
                patches[SLOT_INDEX[slot]][sparse] = IGNORE

    kinds_present = [float(any(t.kind == k for t in scene.things)) for k in KINDS[1:]]
    colours_present = [float(any(t.colour == c for t in scene.things)) for c in COLOUR_NAMES]
    count = len(scene.things) - 1 if ranked else IGNORE
    whole = PHOTO_CLASSES.index(scene.whole_photo) if scene.whole_photo else IGNORE
    if scene.whole_photo:
        salience[:] = 0
    total = salience.sum()
    salience = salience / total if total > 0 else salience
    cls = np.array(kinds_present + colours_present + [count, whole], np.float32)
    return patches.reshape(len(SLOTS), -1), salience.reshape(-1), cls


def visible_patches(rng: np.random.Generator, scene: Scene, patches: np.ndarray, ranked: bool) -> np.ndarray:
    """Indices of the half of all patches that most of stage A works on, ascending: training on half a picture is more
    than twice as fast. Scenes keep their objects and what is next to them, letter sheets a band of whole lines,
    photos random patches.
    """
    half = GRID * GRID // 2
    if not ranked and scene.things[0].kind == "word":
        top = int(rng.integers(GRID // 2 + 1))
        return np.arange(top * GRID, top * GRID + half)
    score = rng.random((GRID, GRID), dtype=np.float32)
    if ranked and not scene.whole_photo:
        near = np.zeros((GRID + 2, GRID + 2), bool)
        on_object = patches[SLOT_INDEX["kind"]].reshape(GRID, GRID) != 0
        for dy in range(3):
            for dx in range(3):
                near[dy : dy + GRID, dx : dx + GRID] |= on_object
        score += on_object + near[1:-1, 1:-1]
    return np.sort(np.argpartition(-score.reshape(-1), half)[:half])
