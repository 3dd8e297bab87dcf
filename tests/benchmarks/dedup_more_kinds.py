"""Further kinds of pictures that share a layout: pages, plots, boards, products, films."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image
Pixels = NDArray[Any]
Rng = np.random.Generator


def dense_page(rng: Rng) -> Picture:
    """A page of a journal in two full columns of small print, without paragraphs."""
    page = np.full((528, 384), 255, np.uint8)
    strips = _small_print()
    for column in (28, 200):
        for line, strip in enumerate(rng.integers(0, len(strips), 62)):
            page[24 + line * 8 : 32 + line * 8, column : column + 156] = strips[strip]
    return Image.fromarray(page)


def handwriting(rng: Rng) -> Picture:
    """A ruled sheet with lines of cursive writing."""
    page = np.full((240, 192), 246, np.uint8)
    page[29::20] = 205
    strips = _cursive()
    for line in range(int(rng.integers(8, 11))):
        strip, y = strips[rng.integers(len(strips))], 12 + line * 20 + int(rng.integers(-1, 2))
        x, width = 14 + int(rng.integers(0, 5)), int(rng.integers(110, 160))
        place = page[y : y + 20, x : x + width]
        np.minimum(place, strip[:, :width], out=place)
    return Image.fromarray(page)


def sheet_music(rng: Rng) -> Picture:
    """A page of notes: six staves with bars, and another tune on every page."""
    picture = _staves().copy()
    draw = ImageDraw.Draw(picture)
    for staff in range(6):
        x = 26
        while x < 180:
            y = 22 + staff * 38 + 2 * int(rng.integers(-2, 11))
            draw.ellipse((x, y - 2, x + 4, y + 2), fill=0)
            stem = -12 if y > 30 + staff * 38 else 12
            at = x + (4 if stem < 0 else 0)
            draw.line((at, y, at, y + stem), fill=0)
            x += int(rng.choice([7, 9, 13, 20]))
    return picture


def product(rng: Rng) -> Picture:
    """A product on white: a mug, a bottle, a box or a shirt with a print of its own."""
    picture = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(picture)
    red, green, blue = rng.integers(20, 230, 3).tolist()
    colour = (red, green, blue)
    half, high = int(rng.integers(20, 40)), int(rng.integers(60, 104))
    left, right, top = 64 - half, 64 + half, 116 - high
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse((right - 10, top + 14, right + 18, 100), outline=colour, width=6)
        draw.rounded_rectangle((left, top, right, 116), 8, fill=colour)
    elif kind == 1:
        neck = half // 3
        draw.rectangle((64 - neck, 8, 64 + neck, top + 10), fill=colour)
        draw.rounded_rectangle((left, top, right, 116), 14, fill=colour)
    elif kind == 2:
        draw.rectangle((left, top, right, 116), fill=colour)
        draw.polygon(
            [(left, top), (left + 12, top - 8), (right + 12, top - 8), (right, top)],
            fill=tuple(min(255, c + 25) for c in colour),
        )
    else:
        draw.polygon([(left, top), (left - 16, top + 30), (left, top + 36)], fill=colour)
        draw.polygon([(right, top), (right + 16, top + 30), (right, top + 36)], fill=colour)
        draw.rectangle((left, top, right, 116), fill=colour)
    for _ in range(int(rng.integers(2, 6))):
        x, y = int(rng.integers(left + 2, right - 8)), int(rng.integers(top + 12, 104))
        far = x + int(rng.integers(6, 24)), y + int(rng.integers(3, 14))
        red, green, blue = rng.integers(0, 256, 3).tolist()
        draw.rectangle((x, y, min(far[0], right - 2), far[1]), fill=(red, green, blue))
    return picture


def night_photo(rng: Rng) -> Picture:
    """A street at night: dark houses with lit windows below a dark sky, and noise."""
    frame = np.full((96, 128, 3), rng.uniform(6, 18, 3))
    x = 0
    while x < 128:
        width, top = int(rng.integers(14, 34)), int(rng.integers(14, 60))
        frame[top:, x : x + width] = rng.uniform(12, 40, 3)
        rows, columns = np.mgrid[top + 3 : 88 : 7, x + 3 : x + width - 4 : 6]
        is_lit = rng.random(rows.shape) < 0.35
        for y, at in zip(rows[is_lit].tolist(), columns[is_lit].tolist(), strict=True):
            frame[y : y + 4, at : at + 3] = (200, 170, 90) * rng.uniform(0.4, 1.1, 3)
        x += width
    return Image.fromarray((frame + rng.normal(0, 3, frame.shape)).clip(0, 255).astype(np.uint8))


def smooth_film(rng: Rng) -> Picture:
    """A slice of a head or a chest without grain: smooth organs at almost the same place."""
    y, x = np.mgrid[0:96, 0:96] / 95 - 0.5

    def blob(cx: float, cy: float, rx: float, ry: float, soft: float = 10) -> Pixels:
        jitter = rng.normal(0, 0.02, 4)
        far = ((x - cx - jitter[0]) / (rx + jitter[2])) ** 2
        far += ((y - cy - jitter[1]) / (ry + jitter[3])) ** 2
        return 1 / (1 + np.exp(np.minimum(soft * (far - 1), 50)))

    film = 200 * blob(0, 0, 0.42, 0.46, 30) - 90 * blob(0, 0, 0.36, 0.4, 30)
    for cx, cy in ((-0.12, -0.1), (0.12, -0.1), (-0.15, 0.12), (0.15, 0.12), (0, 0.02)):
        film += rng.normal(0, 45) * blob(cx, cy, 0.09, 0.1)
    for _ in range(5):
        spot = rng.uniform(-0.28, 0.28, 2)
        film += rng.normal(0, 35) * blob(spot[0], spot[1], 0.07, 0.07, 4)
    return Image.fromarray((film + 12).clip(0, 255).astype(np.uint8))


def spreadsheet(rng: Rng) -> Picture:
    """A table of numbers: the same grid, another number in every cell."""
    sheet = _grid().copy()
    cells = _numbers()
    for row, column in np.ndindex(15, 6):
        cell = cells[rng.integers(len(cells))]
        sheet[19 + row * 10 : 27 + row * 10, 26 + column * 38 : 58 + column * 38] = cell
    return Image.fromarray(sheet)


def code(rng: Rng) -> Picture:
    """A dark editor with indented coloured lines."""
    picture = np.full((192, 256, 3), (30, 30, 36), np.uint8)
    picture[:, :24] = (40, 40, 48)
    strips = _small_print()
    colours = np.array([(220, 220, 170), (156, 220, 254), (206, 145, 120), (106, 153, 85)])
    indent, line = 0, 0
    while line < 22:
        indent = max(0, min(4, indent + int(rng.integers(-1, 2))))
        if rng.random() < 0.85:
            width, x = int(rng.integers(20, 140)), 30 + indent * 14
            ink = 1 - strips[rng.integers(len(strips))][:, :width, None] / 255
            ink = ink * (colours[rng.integers(4)] - 30)
            picture[8 + line * 8 : 16 + line * 8, x : x + width] += ink.astype(np.uint8)
        line += 1
    return Image.fromarray(picture)


def scatter_plot(rng: Rng) -> Picture:
    """A cloud of points between two axes."""
    picture = Image.new("RGB", (160, 120), "white")
    draw = ImageDraw.Draw(picture)
    draw.line([(18, 8), (18, 106), (152, 106)], fill="black")
    slope, spread = rng.uniform(-0.6, 0.6), rng.uniform(6, 22)
    for _ in range(int(rng.integers(25, 70))):
        x = rng.uniform(24, 148)
        y = 57 + slope * (x - 86) + rng.normal(0, spread)
        if 12 < y < 102:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(31, 119, 180))
    return picture


def chess_board(rng: Rng) -> Picture:
    """A diagram of a position: the same board, 8 to 24 pieces."""
    picture = _board().copy()
    places = rng.permutation(64)[: int(rng.integers(8, 25))]
    for place in places.tolist():
        x, y = place % 8 * 16, place // 8 * 16
        piece = _pieces()[rng.integers(12)]
        picture.paste(piece, (x, y), piece)
    return picture.convert("RGB")


def molecule(rng: Rng) -> Picture:
    """A skeletal formula: rings and chains of thin lines on white."""
    picture = Image.new("L", (128, 128), 255)
    draw = ImageDraw.Draw(picture)
    x, y, angle = float(rng.integers(20, 50)), float(rng.integers(40, 88)), rng.uniform(0, 6.28)
    for _ in range(int(rng.integers(6, 14))):
        if rng.random() < 0.25:
            turns = angle + np.arange(7) * np.pi / 3
            ring = [(x + 10 * np.cos(t), y + 10 * np.sin(t)) for t in turns]
            draw.line(ring, fill=0)
        angle += rng.choice([-1, 1]) * np.pi / 3
        far = x + 14 * np.cos(angle), y + 14 * np.sin(angle)
        if not (8 < far[0] < 120 and 8 < far[1] < 120):
            angle += np.pi
            continue
        draw.line((x, y, *far), fill=0)
        x, y = far
    return picture


def slide(rng: Rng) -> Picture:
    """A slide of one company: the same bar and logo, a title and some points."""
    picture = Image.new("RGB", (192, 108), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 192, 20), fill=(20, 60, 120))
    draw.ellipse((172, 92, 186, 106), fill=(230, 120, 20))
    strips = _small_print()

    def words(x: int, y: int, width: int, fill: Any) -> None:
        strip = Image.fromarray(255 - strips[rng.integers(len(strips))][:, :width])
        picture.paste(fill, (x, y), strip)

    words(10, 6, int(rng.integers(50, 150)), "white")
    for point in range(int(rng.integers(3, 7))):
        draw.ellipse((12, 33 + point * 11, 14, 35 + point * 11), fill="black")
        words(20, 30 + point * 11, int(rng.integers(40, 150)), (40, 40, 40))
    return picture


MORE_KINDS: Mapping[str, Callable[[Rng], Picture]] = {
    "dense_pages": dense_page,
    "handwriting": handwriting,
    "sheet_music": sheet_music,
    "products": product,
    "night_photos": night_photo,
    "smooth_films": smooth_film,
    "spreadsheets": spreadsheet,
    "code": code,
    "scatter_plots": scatter_plot,
    "chess_boards": chess_board,
    "molecules": molecule,
    "slides": slide,
}
"""Function that renders a picture of each kind."""


@cache
def _small_print(number: int = 2000) -> Pixels:
    """Justified lines of made-up words, 156 pixels wide."""
    rng = np.random.default_rng(21)
    font = ImageFont.load_default(8)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weight = 1 / np.arange(2, 28)
    strips = np.empty((number, 8, 156), np.uint8)
    for k in range(number):
        text = "".join(rng.choice(letters, 90, p=weight / weight.sum()))
        ends = np.cumsum(rng.integers(1, 10, 14)).tolist()
        words = [text[begin:end] for begin, end in pairwise([0, *ends])]
        strip = Image.new("L", (156, 8), 255)
        ImageDraw.Draw(strip).text((0, -1), " ".join(words), fill=0, font=font)
        strips[k] = np.asarray(strip)
    return strips


@cache
def _cursive(number: int = 1000) -> Pixels:
    """Lines of loops that lean to the right, with gaps between the words."""
    rng = np.random.default_rng(22)
    strips = np.empty((number, 20, 160), np.uint8)
    for k in range(number):
        strip = Image.new("L", (160, 20), 255)
        draw = ImageDraw.Draw(strip)
        x = float(rng.uniform(0, 6))
        while x < 156:
            points = []
            for _ in range(int(rng.integers(3, 12))):
                up = float(rng.choice([4, 4, 5, 9, -5]))
                points += [(x, 14), (x + 2 + up / 6, 14 - up), (x + 3, 14 - up / 2), (x + 3.5, 14)]
                x += float(rng.uniform(3, 5))
            draw.line(points, fill=50, joint="curve")
            x += float(rng.uniform(4, 9))
        strips[k] = np.asarray(strip)
    return strips


@cache
def _staves() -> Picture:
    page = Image.new("L", (192, 256), 255)
    draw = ImageDraw.Draw(page)
    for staff in range(6):
        for line in range(5):
            y = 22 + staff * 38 + line * 4
            draw.line((10, y, 182, y), fill=60)
        for bar in range(5):
            draw.line((10 + bar * 43, 22 + staff * 38, 10 + bar * 43, 38 + staff * 38), fill=0)
    return page


@cache
def _grid() -> Pixels:
    sheet = Image.new("L", (256, 176), 255)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, 256, 16), fill=225)
    draw.rectangle((0, 0, 22, 176), fill=225)
    for row in range(17):
        draw.line((0, 17 + row * 10, 256, 17 + row * 10), fill=210)
    for column in range(7):
        draw.line((23 + column * 38, 0, 23 + column * 38, 176), fill=210)
    return np.asarray(sheet)


@cache
def _numbers(number: int = 4000) -> Pixels:
    rng = np.random.default_rng(23)
    font = ImageFont.load_default(8)
    cells = np.empty((number, 8, 32), np.uint8)
    for k in range(number):
        cell = Image.new("L", (32, 8), 255)
        text = str(int(10 ** rng.uniform(0, 6)))
        draw = ImageDraw.Draw(cell)
        draw.text((31 - draw.textlength(text, font=font), -1), text, fill=0, font=font)
        cells[k] = np.asarray(cell)
    return cells


@cache
def _board() -> Picture:
    board = Image.new("L", (128, 128), 235)
    draw = ImageDraw.Draw(board)
    for y, x in np.ndindex(8, 8):
        if (x + y) % 2:
            draw.rectangle((x * 16, y * 16, x * 16 + 15, y * 16 + 15), fill=170)
    return board.convert("LA")


@cache
def _pieces() -> list[Picture]:
    pieces = []
    for shade in (20, 250):
        for heads in range(6):
            piece = Image.new("LA", (16, 16), (0, 0))
            draw = ImageDraw.Draw(piece)
            draw.polygon([(3, 14), (13, 14), (10, 6), (6, 6)], fill=(shade, 255), outline=(0, 255))
            top = 6 - heads
            draw.ellipse(
                (8 - 2 - heads % 3, top, 8 + 2 + heads % 3, 8), fill=(shade, 255), outline=(0, 255)
            )
            pieces.append(piece)
    return pieces
