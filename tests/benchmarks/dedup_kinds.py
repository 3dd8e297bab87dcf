"""Kinds of pictures that a perceptual hash confuses, rendered in a millisecond each.

Pictures of a kind share a layout, as pages of a book, screens of a program or films of one machine
do. Two seeds give pictures that a person would call different, and any number of them can be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tests.benchmarks.dedup_more_kinds import MORE_KINDS

Picture = Image.Image
Pixels = NDArray[Any]
Rng = np.random.Generator

_SYLLABLES = (
    "an be con de en fer gra har in jo kel lo mi no or pa qui re sta ti un ver wa xi ye zo th st"
).split()


def render(kind: str, seed: int) -> Picture:
    """Render picture number `seed` of a kind in RGB."""
    number = list(KINDS).index(kind)
    return KINDS[kind](np.random.default_rng([number, seed])).convert("RGB")


def text_page(rng: Rng) -> Picture:
    """A full page of justified text: the same margins and lines on every page, other words."""
    page = np.full((264, 192), 255, np.uint8)
    paragraph = int(rng.integers(4, 12))
    for line in range(28):
        is_last = line % paragraph == paragraph - 1
        strip = _lines(8)[rng.integers(len(_lines(8)))]
        width = int(160 * rng.uniform(0.3, 0.9)) if is_last else 160
        page[18 + line * 8 : 26 + line * 8, 16 : 16 + width] = strip[:8, :width]
    return Image.fromarray(page)


def radiograph(rng: Rng) -> Picture:
    """A chest film: the same organs at almost the same place, film grain, soft edges."""
    y, x = _plane(128)
    shift, scale = rng.normal(0, 0.02, 2).tolist(), rng.normal(1, 0.05, 2).tolist()
    x, y = (x - shift[0]) * scale[0], (y - shift[1]) * scale[1]

    def blob(cx: float, cy: float, rx: float, ry: float) -> Pixels:
        jitter = rng.normal(0, 0.015, 4).tolist()
        far = np.square((x - (cx + jitter[0])) / (rx + jitter[2]))
        far += np.square((y - (cy + jitter[1])) / (ry + jitter[3]))
        return 1 / (1 + np.exp(np.minimum(8 * (far - 1), 50)))

    film = 150 * blob(0, 0.1, 0.45, 0.55) - 90 * blob(-0.2, 0, 0.14, 0.3)
    film += -90 * blob(0.2, 0, 0.14, 0.3) + 60 * blob(0.05, 0.15, 0.12, 0.14)
    film += 50 * blob(0, 0, 0.04, 0.6)
    waves, phase = float(rng.normal(9, 0.4)), float(rng.uniform(0, 1))
    film += 8 * np.sin(2 * np.pi * (y * waves - x * x * 6 + phase)) * (np.abs(x) < 0.36)
    film += 40 + 6 * _noise(rng, 128) + 2 * rng.standard_normal(film.shape, np.float32)
    return _grey(film)


def line_art(rng: Rng) -> Picture:
    """A few thin black strokes on white."""
    picture = Image.new("L", (128, 128), 255)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 8))):
        kind, box = rng.integers(3), _box(rng, 128, 20, 100)
        if kind == 0:
            draw.ellipse(box, outline=0, width=2)
        elif kind == 1:
            draw.line([tuple(p) for p in rng.integers(6, 122, (4, 2)).tolist()], fill=0, width=2)
        else:
            draw.arc(box, int(rng.integers(360)), int(rng.integers(360)), fill=0, width=2)
    return picture


def icon(rng: Rng) -> Picture:
    """A flat symbol of one to three shapes on a plain or rounded background."""
    side = 64
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    if rng.random() < 0.5:
        draw.rounded_rectangle((2, 2, 61, 61), 12, fill=_colour(rng))
    for _ in range(int(rng.integers(2, 5))):
        _shape(draw, rng, _box(rng, side, 8, 44), _colour(rng))
    return picture


def screenshot(rng: Rng) -> Picture:
    """A window of one program: the same bars and panes, other words and pictures."""
    screen = np.full((160, 256), 248, np.uint8)
    screen[:14], screen[14:, :56], screen[150:] = 70, 228, 200
    rows, lines = _lines(8), int(rng.integers(6, 16))
    for line in range(lines):
        width = int(rng.integers(40, 160))
        screen[22 + line * 8 : 30 + line * 8, 66 : 66 + width] = rows[rng.integers(len(rows))][
            :8, :width
        ]
    for line in range(int(rng.integers(3, 10))):
        width = int(rng.integers(15, 44))
        screen[22 + line * 12 : 30 + line * 12, 6 : 6 + width] = np.minimum(
            rows[rng.integers(len(rows))][:8, :width], 228
        )
    picture = Image.fromarray(screen).convert("RGB")
    draw = ImageDraw.Draw(picture)
    row = 26 + lines * 8
    if row < 140 and rng.random() < 0.7:
        draw.rectangle((66, row, 66 + int(rng.integers(20, 150)), 144), fill=_colour(rng))
    draw.rectangle((200, 3, 200 + int(rng.integers(10, 50)), 10), fill=_colour(rng))
    return picture


def photo(rng: Rng) -> Picture:
    """Coloured noise with the spectrum of photographs, with a few large things in it."""
    levels = rng.normal(0, 25, 3).tolist()
    common = 35 * _noise(rng, 128)
    planes = [common + (128 + level) + 12 * _noise(rng, 128) for level in levels]
    pixels = np.stack([plane[:96] for plane in planes], axis=2)
    y, x = np.ogrid[0:96, 0:128]
    for _ in range(int(rng.integers(1, 4))):
        cx, cy, rx, ry = rng.uniform(10, 118, 2).tolist() + rng.uniform(8, 45, 2).tolist()
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        pixels += inside[:, :, None] * rng.normal(0, 40, 3).astype(np.float32)
    return _grey(pixels)


def grey_shapes(rng: Rng) -> Picture:
    """One to four grey shapes on white."""
    picture = Image.new("L", (128, 128), 255)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 5))):
        _shape(draw, rng, _box(rng, 128, 16, 80), int(rng.integers(40, 215)))
    return picture


def grey_shape(rng: Rng) -> Picture:
    """One grey ellipse, rectangle or triangle on white: five numbers say everything about it."""
    picture = Image.new("L", (128, 128), 255)
    draw = ImageDraw.Draw(picture)
    _shape(draw, rng, _box(rng, 128, 16, 100), int(rng.integers(20, 235)))
    return picture


def gradient(rng: Rng) -> Picture:
    """A plain gradient between two colours in any direction."""
    y, x = np.mgrid[0:96, 0:96] / 95 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle))[:, :, None] + 0.5
    pixels = rng.integers(0, 256, 3) * (1 - along) + rng.integers(0, 256, 3) * along
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def map_tile(rng: Rng) -> Picture:
    """A tile of a street map: pale land, water, white streets, a name."""
    picture = Image.new("RGB", (128, 128), (242, 239, 233))
    draw = ImageDraw.Draw(picture)
    for colour in ((170, 211, 223), (205, 235, 176)):
        points = rng.integers(-20, 148, (5, 2)).tolist()
        draw.polygon([tuple(p) for p in points], fill=colour)
    for width in (5, 3, 3, 2, 2, 2):
        ends = rng.integers(-10, 138, (2, 2)).tolist()
        draw.line([tuple(p) for p in ends], fill=(190, 190, 190), width=width + 2)
        draw.line([tuple(p) for p in ends], fill="white", width=width)
    _paste_words(picture, rng, 40)
    return picture


def chart(rng: Rng) -> Picture:
    """A bar or line chart: the same axes, other data."""
    picture = Image.new("RGB", (160, 120), "white")
    draw = ImageDraw.Draw(picture)
    draw.line([(20, 10), (20, 105), (150, 105)], fill="black")
    for tick in range(5):
        draw.line([(20, 10 + tick * 19), (150, 10 + tick * 19)], fill=(225, 225, 225))
    values = rng.uniform(5, 90, 8)
    if rng.random() < 0.5:
        for k, value in enumerate(values):
            draw.rectangle((24 + k * 16, int(105 - value), 34 + k * 16, 104), fill=(60, 110, 180))
    else:
        points = [(28 + k * 16, int(105 - value)) for k, value in enumerate(values)]
        draw.line(points, fill=(60, 110, 180), width=2)
    return picture


def form(rng: Rng) -> Picture:
    """A scanned form: the same print on every sheet, another entry in every field."""
    sheet = _form_print().copy()
    rows = _lines(8)
    for k in range(9):
        width = int(rng.integers(30, 100))
        words = rows[rng.integers(len(rows))][:8, :width]
        at = 70 + int(rng.integers(0, 6))
        field = sheet[40 + k * 22 : 48 + k * 22, at : at + width]
        np.minimum(field, words, out=field)
    return _grey(sheet + rng.normal(0, 3, sheet.shape))


def face(rng: Rng) -> Picture:
    """A face in a passport picture: always at the same place, before the same wall."""
    y, x = np.mgrid[0:128, 0:96].astype(float)
    pixels = np.full((128, 96, 3), rng.normal(205, 6)) + np.zeros(3)
    skin = np.array([200, 160, 135]) * rng.uniform(0.5, 1.15)
    hair = np.array([60, 45, 35]) * rng.uniform(0.3, 2.5)
    cx, cy = 48 + rng.normal(0, 1.5), 60 + rng.normal(0, 1.5)
    rx, ry = rng.normal(25, 1.5), rng.normal(33, 1.5)

    def paint(ox: float, oy: float, w: float, h: float, colour: Any) -> None:
        # Beyond this, nothing of a soft edge is left.
        rows = slice(max(0, int(oy - 2.4 * h)), max(0, int(oy + 2.4 * h) + 2))
        columns = slice(max(0, int(ox - 2.4 * w)), max(0, int(ox + 2.4 * w) + 2))
        far = ((x[rows, columns] - ox) / w) ** 2 + ((y[rows, columns] - oy) / h) ** 2
        inside = 1 / (1 + np.exp(np.clip(12 * (far - 1), -50, 50)))[:, :, None]
        part = pixels[rows, columns]
        part[:] = part * (1 - inside) + np.asarray(colour) * inside

    paint(cx, 135, rng.normal(46, 3), rng.normal(36, 3), rng.uniform(20, 220, 3))
    paint(cx, cy - rng.uniform(4, 12), rx + rng.uniform(1, 8), ry + rng.uniform(0, 5), hair)
    paint(cx, cy + 3, rx, ry, skin)
    eyes, apart = cy - 6 + rng.normal(0, 1.5), rng.normal(11, 1)
    for side in (-1, 1):
        paint(cx + side * apart, eyes, 5, 2.5, (245, 245, 245))
        paint(cx + side * apart, eyes, 2.2, 2.2, rng.uniform(20, 120, 3))
        paint(cx + side * apart, eyes - rng.uniform(5, 7), 6, 1.3, hair)
    paint(cx, cy + rng.normal(9, 1.2), rng.uniform(2.5, 5), 5, skin * 0.9)
    paint(cx, cy + rng.normal(20, 1.2), rng.uniform(6, 11), rng.uniform(1.5, 4), (165, 80, 80))
    return Image.fromarray((pixels + rng.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))


def satellite(rng: Rng) -> Picture:
    """Fields from above: green and brown patches with texture."""
    y, x = np.mgrid[0:96, 0:96]
    angle, width = rng.uniform(0, np.pi), rng.uniform(10, 30, 2)
    u = (x * np.cos(angle) + y * np.sin(angle) + 200) // width[0]
    v = (y * np.cos(angle) - x * np.sin(angle) + 200) // width[1]
    fields = rng.uniform(40, 130, (64, 64, 3)) * np.array([0.9, 1.0, 0.6])
    pixels = fields[u.astype(int) % 64, v.astype(int) % 64] + 10 * _noise(rng, 96)[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def dark_frame(rng: Rng) -> Picture:
    """A frame of a film at night: almost black, a few lights, noise of the sensor."""
    y, x = np.mgrid[0:72, 0:128]
    frame = np.full((72, 128), rng.uniform(4, 14)) + 3 * _noise(rng, 128)[:72]
    for _ in range(int(rng.integers(2, 7))):
        cx, cy, size = rng.uniform(0, 128), rng.uniform(0, 72), rng.uniform(1.5, 6)
        frame += rng.uniform(40, 200) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
    return _grey(frame + rng.normal(0, 1.5, frame.shape))


KINDS: Mapping[str, Callable[[Rng], Picture]] = {
    "text_pages": text_page,
    "radiographs": radiograph,
    "line_art": line_art,
    "icons": icon,
    "screenshots": screenshot,
    "photos": photo,
    "grey_shapes": grey_shapes,
    "one_grey_shape": grey_shape,
    "gradients": gradient,
    "maps": map_tile,
    "charts": chart,
    "forms": form,
    "faces": face,
    "satellite": satellite,
    "dark_frames": dark_frame,
    **MORE_KINDS,
}
"""Function that renders a picture of each kind."""


def _grey(pixels: Pixels) -> Picture:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 240, 3).tolist()
    return red, green, blue


def _box(rng: Rng, side: int, smallest: int, largest: int) -> tuple[int, int, int, int]:
    width, height = rng.integers(smallest, largest, 2).tolist()
    x, y = int(rng.integers(2, side - width - 1)), int(rng.integers(2, side - height - 1))
    return x, y, x + width, y + height


def _shape(draw: ImageDraw.ImageDraw, rng: Rng, box: tuple[int, ...], fill: Any) -> None:
    kind = rng.integers(3)
    if kind == 0:
        draw.ellipse(box, fill=fill)
    elif kind == 1:
        draw.rectangle(box, fill=fill)
    else:
        x, y, right, bottom = box
        top = int(rng.integers(x, right))
        draw.polygon([(x, bottom), (right, bottom), (top, y)], fill=fill)


def _paste_words(picture: Picture, rng: Rng, width: int) -> None:
    rows = _lines(8)
    words = Image.fromarray(255 - rows[rng.integers(len(rows))][:8, :width])
    at = int(rng.integers(0, picture.width - width)), int(rng.integers(0, picture.height - 8))
    picture.paste((60, 60, 60), at, words)


def _noise(rng: Rng, side: int) -> Pixels:
    """A random part of a large field of noise with the spectrum of photographs, mirrored or not."""
    field = _field()
    at = rng.integers(0, len(field) - side, 2)
    part = field[at[0] : at[0] + side, at[1] : at[1] + side]
    part = part.T if rng.random() < 0.5 else part
    part = part[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    return part + float(rng.normal(0, 0.05)) if rng.random() < 0.5 else -part


@cache
def _plane(side: int) -> Pixels:
    """Row and column of each pixel, from -0.5 to 0.5."""
    return (np.mgrid[0:side, 0:side] / (side - 1) - 0.5).astype(np.float32)


@cache
def _field(side: int = 2048) -> Pixels:
    rng = np.random.default_rng(7)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1.0
    waves = rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side))
    waves[np.minimum(frequency, 1) < 4 / side] = 0
    pixels = np.fft.ifft2(waves / frequency).real
    return (pixels / pixels[:128, :128].std()).astype(np.float32)


@cache
def _lines(height: int, number: int = 4000) -> Pixels:
    """Lines of made-up words, 160 pixels wide."""
    rng = np.random.default_rng(11)
    font = ImageFont.load_default(height)
    lines = np.empty((number, height, 160), np.uint8)
    for k in range(number):
        words = ["".join(rng.choice(_SYLLABLES, int(rng.integers(1, 5)))) for _ in range(12)]
        strip = Image.new("L", (160, height), 255)
        ImageDraw.Draw(strip).text((0, -1), " ".join(words), fill=0, font=font)
        lines[k] = np.asarray(strip)
    return lines


@cache
def _form_print() -> Pixels:
    sheet = Image.new("L", (192, 256), 250)
    draw = ImageDraw.Draw(sheet)
    draw.text((50, 10), "REGISTRATION FORM", fill=0, font=ImageFont.load_default(10))
    for k in range(9):
        label = Image.fromarray(_lines(8)[k, :8, :50])
        sheet.paste(label, (10, 40 + k * 22))
        draw.rectangle((66, 37 + k * 22, 182, 51 + k * 22), outline=90)
    return np.asarray(sheet).astype(float)
