"""Scenes: what the pictures contain and how they are drawn.

A `Scene` is a list of objects on a background, all in units of a 128 x 128 canvas. `sample_scene` draws one at random,
`render` paints it at any size. Shapes come from signed distance functions with soft edges, words from TrueType fonts,
photos from CIFAR-10 contact sheets. Two more kinds of picture serve only the encoder's dense labels: photo mosaics and
sheets of letters.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CANVAS = 128
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 36, 36),
    "green": (34, 158, 52),
    "blue": (36, 70, 214),
    "yellow": (246, 218, 40),
    "orange": (246, 134, 22),
    "purple": (124, 44, 164),
    "pink": (250, 138, 190),
    "white": (250, 250, 250),
    "black": (14, 14, 14),
}
SIZES = ("small", "big")
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
PHOTO_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MAX_WORD = 5
MAX_OBJECTS = 4

WORDS = """ACE ACT AIR ANT ARM ART BACK BAG BALL BANK BAR BAT BEACH BED BEE BELL BIG BIRD BLACK BLUE BOAT BOOK BOX BOY
BREAD BUS CAFE CAKE CAR CARD CAT CHAIR CITY CLOCK CLUB COAT COLD COOK CORN COW CUP DATE DAY DESK DOG DOOR DRINK DRY DUCK
EAR EAST EAT EGG END EXIT EYE FACE FARM FAST FIRE FISH FIVE FLAG FLY FOOD FOOT FOUR FOX FREE FROG FRUIT FULL GAME GATE
GIFT GIRL GLASS GO GOAT GOLD GOOD GRASS GREEN HALL HAND HAT HEART HELP HIGH HILL HOME HORSE HOT HOTEL HOUR HOUSE ICE INK
IRON JAM JAR JET JOB JUICE KEY KING KITE LAKE LAMP LEFT LEMON LIFE LIGHT LION LOVE LOW LUNCH MAP MEAT MILK MIX MOON MOUSE
MUSIC NET NEW NEXT NIGHT NINE NO NORTH NOW NUT OFF OIL OLD ON ONE OPEN OVEN OX PAN PAPER PARK PEN PHONE PIE PIG PIZZA
PLANT PLAY POOL POST PULL PUSH QUEEN QUIET RADIO RAIN RED RICE RING RIVER ROAD ROCK ROOM ROSE SALE SALT SEA SEVEN SHIP
SHOE SHOP SILK SIX SKY SLOW SNOW SOAP SOFA SOUP SOUTH STAR STONE SUGAR SUN TAXI TEA TEN TENT TIME TOY TRAIN TREE TRUCK TWO
UP VAN VIEW WALK WALL WARM WATER WAY WEST WET WHITE WIND WINE WOLF WOOD YES ZERO ZONE ZOO""".split()
HELD_OUT_WORDS = """APPLE BIKE BUSY CLEAN COFFEE CROWN DANCE DREAM EARTH FERRY FRESH GRAPE HAPPY JUMP LUCKY MAGIC METRO OPERA
PIANO POWER QUICK ROBOT SMILE SPEED STOP TABLE TIGER VIDEO VOICE WAGON WORLD YOUNG EXTRA BEEF CODE HERO WAVE BUS TOP SPA GYM
ZIP""".split()
HELD_OUT_WORDS = tuple(w for w in HELD_OUT_WORDS if len(w) <= MAX_WORD and w not in WORDS)

FONT_FILES = (
    "dejavu/DejaVuSans.ttf",
    "dejavu/DejaVuSans-Bold.ttf",
    "dejavu/DejaVuSansCondensed-Bold.ttf",
    "liberation/LiberationSans-Regular.ttf",
    "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSansNarrow-Bold.ttf",
)
FONT_ROOTS = ("/usr/share/fonts/truetype", "/usr/local/share/fonts", str(Path.home() / ".fonts"))


@dataclass
class Thing:
    """One object. `kind` is a shape, "word" or "photo"; centre and radii are in canvas pixels.

    `aspect` is width to height of a form that would else be as wide as high: pictures that are not square are squeezed
    into the square canvas.
    """

    kind: str
    cx: float
    cy: float
    rx: float
    ry: float
    size: str
    colour: str | None = None
    angle: float = 0.0
    aspect: float = 1.0
    text: str | None = None
    font: int = 0
    points: int = 0
    photo_class: str | None = None
    pixels: np.ndarray | None = None
    # Filled in by `render`: (y0, x0, y1, x1) of the ink, and for words one such box per character.
    box: tuple[float, float, float, float] | None = None
    character_boxes: list = field(default_factory=list)

    @property
    def place(self) -> str:
        column = min(int(self.cx * 3 / CANVAS), 2)
        row = min(int(self.cy * 3 / CANVAS), 2)
        return PLACES[row * 3 + column]


@dataclass
class Scene:
    """Objects from left to right; `whole_photo` names the class if the picture is one photo and nothing else."""

    things: list[Thing]
    background: tuple
    whole_photo: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Sources: fonts and photos


@lru_cache(maxsize=1)
def font_paths() -> tuple[str, ...]:
    """Paths of the six fonts that words are drawn with."""
    found = []
    for name in FONT_FILES:
        hits = [str(Path(root) / name) for root in FONT_ROOTS if (Path(root) / name).is_file()]
        if not hits:
            raise SystemExit(
                f"font {name} not found under {', '.join(FONT_ROOTS)}: "
                "install the free fonts with `apt-get install fonts-dejavu fonts-liberation`"
            )
        found.append(hits[0])
    return tuple(found)


@lru_cache(maxsize=512)
def load_font(index: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_paths()[index], size)


class PhotoSource:
    """CIFAR-10 pictures read from contact sheets named `<split>-<class>-<n>.jpg`, 50 pictures of 32 x 32 a row."""

    def __init__(self, folder: str, split: str):
        self.pictures = {}
        for name in PHOTO_CLASSES:
            sheets = sorted(Path(folder).glob(f"{split}-{name}-*.jpg"))
            if not sheets:
                raise SystemExit(f"no {split}-{name}-*.jpg in {folder}: pass the CIFAR-10 contact sheets with --cifar")
            tiles = []
            for sheet in sheets:
                pixels = np.asarray(Image.open(sheet).convert("RGB"))
                rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
                tiles.append(pixels.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3))
            self.pictures[name] = np.concatenate(tiles)
        self.augment = split == "train"

    def draw(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """A class and one of its pictures; training pictures are cropped, flipped and toned at random."""
        name = PHOTO_CLASSES[rng.integers(len(PHOTO_CLASSES))]
        pool = self.pictures[name]
        picture = pool[rng.integers(len(pool))]
        if self.augment:
            if rng.random() < 0.5:
                picture = picture[:, ::-1]
            height, width = rng.integers(24, 33, size=2)
            top, left = rng.integers(0, 33 - height), rng.integers(0, 33 - width)
            picture = picture[top : top + height, left : left + width]
            gain, lift = rng.uniform(0.75, 1.25), rng.uniform(-20, 20)
            tint = rng.uniform(0.92, 1.08, size=3)
            picture = np.clip(picture * (gain * tint) + lift, 0, 255).astype(np.uint8)
        return name, picture


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def sample_text(rng: np.random.Generator, split: str) -> str:
    """A short word or a number. Training mixes in random letters so that reading does not become guessing."""
    roll = rng.random()
    if roll < 0.25:
        return "".join(str(rng.integers(10)) for _ in range(rng.integers(2, 5)))
    if split == "test":
        return HELD_OUT_WORDS[rng.integers(len(HELD_OUT_WORDS))]
    if roll < 0.65:
        return WORDS[rng.integers(len(WORDS))]
    return "".join(CHARACTERS[rng.integers(26)] for _ in range(rng.integers(2, MAX_WORD + 1)))


def _sample_background(rng: np.random.Generator) -> tuple:
    """(style, first colour, second colour, direction, noise seed): muted tones, so that every object colour stands out."""

    def tone():
        level = rng.uniform(70, 210)
        return tuple(np.clip(level + rng.uniform(-26, 26, size=3), 45, 228))

    style = ("flat", "gradient", "noise")[rng.integers(3)]
    return style, tone(), tone(), rng.uniform(0, 2 * math.pi), int(rng.integers(1 << 31))


def _contrasts(colour: str, background: tuple) -> bool:
    rgb = np.array(COLOURS[colour], float)
    return all(np.abs(rgb - np.array(tone)).sum() > 130 for tone in background[1:3])


def _clear_of_thresholds(value: float) -> bool:
    """Whether a centre lies safely inside one third of the canvas, so that its place has one right name."""
    return all(abs(value - CANVAS * k / 3) > 3.0 for k in (1, 2))


def _fit_word(thing: Thing, limit: float) -> None:
    """Shrinks the type until the word is at most `limit` wide, and sets the radii."""
    stretch = thing.aspect**0.5
    while True:
        left, top, right, bottom = load_font(thing.font, thing.points).getbbox(thing.text)
        if (right - left) * stretch <= limit:
            break
        thing.points -= 2
    thing.rx, thing.ry = (right - left) * stretch / 2, (bottom - top) / stretch / 2


def _make_thing(rng, kind: str, background: tuple, photos: PhotoSource | None, split: str, aspect: float) -> Thing | None:
    stretch = aspect**0.5
    if kind == "photo":
        name, pixels = photos.draw(rng)
        half = rng.uniform(20, 28)
        size = "big" if half > 24 else "small"
        return Thing("photo", 0, 0, half * stretch, half / stretch, size, photo_class=name, pixels=pixels)
    colours = [c for c in COLOURS if _contrasts(c, background)]
    if not colours:
        return None
    colour = colours[rng.integers(len(colours))]
    if kind == "word":
        thing = Thing("word", 0, 0, 0, 0, "", colour, aspect=aspect, text=sample_text(rng, split))
        thing.font, thing.points = int(rng.integers(len(FONT_FILES))), int(rng.integers(26, 37))
        _fit_word(thing, 112)
        thing.size = "big" if thing.points >= 31 else "small"
        return thing
    size = SIZES[rng.integers(2)]
    radius = rng.uniform(11, 14.5) if size == "small" else rng.uniform(20, 26)
    tilt = rng.uniform(-0.16, 0.16)
    return Thing(kind, 0, 0, radius * stretch, radius / stretch, size, colour, angle=tilt, aspect=aspect)


def _place_things(rng, things: list[Thing]) -> list[Thing]:
    """Gives every object a free spot; drops those that find none. Returns them from left to right."""
    placed: list[Thing] = []
    for thing in sorted(things, key=lambda t: -t.rx * t.ry):
        for _ in range(40):
            thing.cx = rng.uniform(thing.rx + 2, CANVAS - thing.rx - 2)
            thing.cy = rng.uniform(thing.ry + 2, CANVAS - thing.ry - 2)
            if not (_clear_of_thresholds(thing.cx) and _clear_of_thresholds(thing.cy)):
                continue
            if all(
                (abs(thing.cx - o.cx) > thing.rx + o.rx + 3 or abs(thing.cy - o.cy) > thing.ry + o.ry + 3)
                and abs(thing.cx - o.cx) > 7
                for o in placed
            ):
                placed.append(thing)
                break
    return sorted(placed, key=lambda t: t.cx)


def sample_whole_photo(rng: np.random.Generator, photos: PhotoSource) -> Scene:
    name, pixels = photos.draw(rng)
    half = CANVAS / 2
    thing = Thing("photo", half, half, half, half, "big", photo_class=name, pixels=pixels)
    return Scene([thing], ("flat", (0, 0, 0), (0, 0, 0), 0.0, 0), whole_photo=name)


def sample_scene(
    rng: np.random.Generator, photos: PhotoSource | None, split: str, aspect: float | None = None
) -> Scene:
    """One to four objects (at most one word and one photo), or in one of seven pictures a whole photo.

    Without a source of photos there are none. `aspect` is that of the objects' forms; by default it is one in two scenes of three and random in the others.
    """
    if photos and rng.random() < 0.14:
        return sample_whole_photo(rng, photos)
    while True:
        background = _sample_background(rng)
        form = aspect or (rng.uniform(0.72, 1.38) if rng.random() < 0.35 else 1.0)
        wanted = int(rng.integers(1, MAX_OBJECTS + 1))
        kinds = []
        if rng.random() < 0.36:
            kinds.append("word")
        if photos and rng.random() < 0.20:
            kinds.append("photo")
        while len(kinds) < wanted:
            kinds.append(SHAPES[rng.integers(len(SHAPES))])
        things = [_make_thing(rng, k, background, photos, split, form) for k in kinds]
        unique = {(t.kind, t.colour if t.kind in SHAPES else None): t for t in things if t is not None}
        placed = _place_things(rng, list(unique.values()))
        if placed:
            return Scene(placed, background)


def sample_mosaic(rng: np.random.Generator, photos: PhotoSource) -> Scene:
    """A mosaic of 2 x 2 or 3 x 3 photos: many labelled photos in one picture, for the encoder only."""
    grid = 3 if rng.random() < 0.7 else 2
    half = CANVAS / grid / 2
    things = []
    for row in range(grid):
        for column in range(grid):
            name, pixels = photos.draw(rng)
            cx, cy = (2 * column + 1) * half, (2 * row + 1) * half
            things.append(Thing("photo", cx, cy, half, half, "big", photo_class=name, pixels=pixels))
    return Scene(things, ("flat", (0, 0, 0), (0, 0, 0), 0.0, 0))


def sample_letter_sheet(rng: np.random.Generator, plain: bool = False) -> Scene:
    """Three or four lines of random characters: many labelled characters in one picture, for the encoder only.

    `plain` ones are white on a dark ground: a patch then shows the same pattern with the same sign each time, which is
    where learning to read starts.
    """
    while True:
        background = _sample_background(rng)
        if plain:
            dark = tuple(rng.uniform(30, 75, size=3))
            background = ("flat", dark, dark, 0.0, 0)
        lines = int(rng.integers(3, 5))
        things = []
        for line in range(lines):
            thing = _make_thing(rng, "word", background, None, "train", 1.0)
            if thing is None:
                break
            if plain:
                thing.colour = "white"
            thing.text = "".join(CHARACTERS[rng.integers(len(CHARACTERS))] for _ in range(MAX_WORD))
            _fit_word(thing, 118)
            thing.cx = rng.uniform(thing.rx + 2, CANVAS - thing.rx - 2)
            thing.cy = CANVAS * (line + 0.5) / lines + rng.uniform(-2, 2)
            things.append(thing)
        if len(things) == lines:
            return Scene(things, background)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def shape_distance(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) to a shape of radius one; v points down."""
    if kind == "circle":
        return np.hypot(u, v) - 0.95
    if kind == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.24
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.84
    if kind == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 0.96, b - 0.30), np.maximum(a - 0.30, b - 0.96))
    if kind == "triangle":
        slanted = np.abs(u) * 0.866 - (v - 0.12) * 0.5
        return np.maximum(slanted - 0.53, v - 0.65)
    if kind == "star":
        step = 2 * math.pi / 5
        angle = np.arctan2(u, -v)
        angle = np.abs((angle + step / 2) % step - step / 2)
        radius = np.hypot(u, v)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        inner = 0.43
        ix, iy = inner * math.cos(step / 2), inner * math.sin(step / 2)
        ex, ey = ix - 1.0, iy
        return ((x - 1.0) * ey - y * ex) / math.hypot(ex, ey)
    raise ValueError(f"unknown shape {kind}")


def _paint(canvas: np.ndarray, alpha: np.ndarray, top: int, left: int, rgb: tuple) -> None:
    height, width = alpha.shape
    window = canvas[top : top + height, left : left + width]
    alpha = alpha[: window.shape[0], : window.shape[1], None]
    window += (np.array(rgb, np.float32) - window) * alpha


def _ink_box(alpha: np.ndarray, top: int, left: int, sx: float, sy: float) -> tuple:
    rows, columns = np.nonzero(alpha.max(axis=1) > 0.5)[0], np.nonzero(alpha.max(axis=0) > 0.5)[0]
    return (
        (top + rows[0]) / sy,
        (left + columns[0]) / sx,
        (top + rows[-1] + 1) / sy,
        (left + columns[-1] + 1) / sx,
    )


def _draw_background(background: tuple, width: int, height: int) -> np.ndarray:
    style, first, second, direction, seed = background
    first, second = np.array(first, np.float32), np.array(second, np.float32)
    if style == "flat":
        return np.broadcast_to(first, (height, width, 3)).astype(np.float32)
    if style == "gradient":
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        along = (x / width - 0.5) * math.cos(direction) + (y / height - 0.5) * math.sin(direction)
        return first + (second - first) * np.clip(along + 0.5, 0, 1)[..., None]
    noise = np.random.default_rng(seed)
    cells = int(noise.integers(3, 40))
    coarse = noise.random((cells, cells), dtype=np.float32)
    blend = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    return first + (second - first) * (0.5 * blend[..., None])


def _draw_word(canvas: np.ndarray, thing: Thing, sx: float, sy: float) -> None:
    scale, stretch = math.sqrt(sx * sy), thing.aspect**0.5
    font = load_font(thing.font, max(1, round(thing.points * scale)))
    x0, y0, x1, y1 = font.getbbox(thing.text)
    mask = Image.new("L", (x1 - x0 + 2, y1 - y0 + 2))
    ImageDraw.Draw(mask).text((1 - x0, 1 - y0), thing.text, font=font, fill=255)
    across, down = stretch * sx / scale, sy / (stretch * scale)
    target = (max(1, round(mask.width * across)), max(1, round(mask.height * down)))
    if target != mask.size:
        mask = mask.resize(target, Image.Resampling.BILINEAR)
    alpha = np.asarray(mask, np.float32) / 255
    top = max(0, round(thing.cy * sy - alpha.shape[0] / 2))
    left = max(0, round(thing.cx * sx - alpha.shape[1] / 2))
    _paint(canvas, alpha, top, left, COLOURS[thing.colour])
    thing.box = _ink_box(alpha, top, left, sx, sy)
    starts = [font.getlength(thing.text[:k]) * across / sx for k in range(len(thing.text) + 1)]
    origin = (left - (x0 - 1) * across) / sx
    thing.character_boxes = [
        (thing.box[0], origin + starts[k], thing.box[2], origin + starts[k + 1]) for k in range(len(thing.text))
    ]


def _draw_photo(canvas: np.ndarray, thing: Thing, sx: float, sy: float) -> None:
    left, top = round((thing.cx - thing.rx) * sx), round((thing.cy - thing.ry) * sy)
    right, bottom = round((thing.cx + thing.rx) * sx), round((thing.cy + thing.ry) * sy)
    photo = Image.fromarray(thing.pixels).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    canvas[top:bottom, left:right] = np.asarray(photo, np.float32)
    thing.box = (top / sy, left / sx, bottom / sy, right / sx)


def _draw_shape(canvas: np.ndarray, thing: Thing, sx: float, sy: float) -> None:
    height, width = canvas.shape[:2]
    left, right = int((thing.cx - thing.rx - 3) * sx), int(math.ceil((thing.cx + thing.rx + 3) * sx))
    top, bottom = int((thing.cy - thing.ry - 3) * sy), int(math.ceil((thing.cy + thing.ry + 3) * sy))
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    u = ((np.arange(left, right, dtype=np.float32) + 0.5) / sx - thing.cx) / thing.rx
    v = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / sy - thing.cy) / thing.ry
    u, v = np.meshgrid(u, v)
    c, s = math.cos(thing.angle), math.sin(thing.angle)
    u, v = u * c + v * s, v * c - u * s
    softness = math.sqrt(thing.rx * sx * thing.ry * sy)
    alpha = np.clip(0.5 - shape_distance(thing.kind, u, v) * softness, 0, 1)
    _paint(canvas, alpha, top, left, COLOURS[thing.colour])
    thing.box = _ink_box(alpha, top, left, sx, sy)


def render(scene: Scene, rng: np.random.Generator | None = None, width: int = CANVAS, height: int = CANVAS) -> np.ndarray:
    """Paints a scene as uint8 (height, width, 3) and fills in the boxes of its objects. `rng` adds slight sensor noise."""
    canvas = _draw_background(scene.background, width, height)
    sx, sy = width / CANVAS, height / CANVAS
    for thing in scene.things:
        draw = {"word": _draw_word, "photo": _draw_photo}.get(thing.kind, _draw_shape)
        draw(canvas, thing, sx, sy)
    if rng is not None and rng.random() < 0.3:
        canvas = canvas + rng.normal(0, rng.uniform(1, 5), size=canvas.shape).astype(np.float32)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
