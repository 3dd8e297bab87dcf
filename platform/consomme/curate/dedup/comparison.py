"""Whether two thumbnails show the same picture: the check after the hashes.

A pair gets one number, its difference: at most 1 for copies. It is the smallest of three readings,
each of which asks that the structure agrees everywhere, not only on average:

- As they are: the difference of the grey levels, relative to their contrast, over the whole
  picture and in each of 16 × 16 windows. One line of text, or one bar of a chart, in another place
  is seen, whatever the rest looks like.
- Moved: the same after the best small shift, stretch or rotation, for copies that were cropped,
  framed or turned. A circle can be moved onto any other circle of its size, so only pictures with
  enough structure are moved.
- Under an overlay: the same without the few windows that differ most, only for pictures with
  structure everywhere and no background, such as photographs. Of a form, the few windows that
  differ are what was filled in.

Brightness counts. A copy may be brighter by at most `MAX_GAIN`, as a whole: the grey levels of one
are scaled to those of the other before they are compared. Colours count: in no window may they
differ by more than `MAX_COLOUR_LEVELS`, unless one of the pictures has no colour at all.

Reductions are made in float64 and the result is rounded, so it does not depend on the order of
sums, nor on the pairs that are compared at the same time.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.thumbnails import (
    COARSE_PX,
    SIDE_PX,
    Thumbnails,
    colours_of,
    grey_of,
    sides_of,
)

# Shapes: P pairs, Y rows and X columns of pixels, V rows and U columns of windows, B bytes.
Pixels = NDArray[Any]

MAX_RELATIVE = 0.3
"""Maximum root mean square difference relative to the contrast inside windows. Resized and
recompressed copies reach 0.22, cropped ones that are moved back 0.3; of 10,000 pairs of text pages,
radiographs, forms and screenshots with near hashes, the closest reached 0.32."""

MAX_LOCAL = 1.1
"""Maximum difference in a window relative to its contrast; unrelated structure gives 1.4."""

MAX_GAIN = 1.16
"""Maximum factor between the grey levels of copies."""

MAX_COLOUR_LEVELS = 40
"""Maximum difference of the colours in a window; JPEG at quality 60 reaches 34."""

MAX_SHIFT_PX = 4.0
"""Maximum displacement of a moved copy, of 64 pixels; a crop of 10 % moves the edges by 3.6."""

MIN_STRUCTURE = 75
"""Windows with contrast (of 256) that both pictures need to be moved; windows with a colour of
their own count as well."""

MIN_OVERLAID = 200
"""Windows with contrast that both pictures need to be compared under an overlay."""

MAX_TONE_FRACTION = 0.17
"""Part of a picture that one of 32 tones may fill if it is compared under an overlay."""

MAX_OVERLAY = 24
"""Maximum number of windows that an overlay covers."""

MAX_RELATIVE_OVERLAID = 0.15
"""Like `MAX_RELATIVE`, for the windows that no overlay covers."""

MAX_COARSE = 0.6
"""Pairs whose coarse grey levels differ by more than this, relative to their contrast, are not
compared further."""

MAX_CENTRED_SHIFT_PX = 1.4
"""Maximum displacement of pictures with less structure, which are only stretched and turned about
their middle: a crop of 2 % moves the edges by 0.7 to 1.1, a turn by 2 degrees by 1.1."""

_ANY = (np.eye(6), MAX_SHIFT_PX)
_CENTRED = (
    # Vertical and horizontal displacement: constant, by x, by y.
    np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]], dtype=float),
    MAX_CENTRED_SHIFT_PX,
)
MAX_COARSE_STILL = 0.25
"""The same for pairs that are compared as they are only."""

_COARSE_NOISE = 4.0
_WINDOW_PX = 4
_NUM_WINDOWS = SIDE_PX // _WINDOW_PX
_NOISE = 10.0
"""Variance that is added to each window's: a difference of one grey level is no difference."""

_CONTRAST = 36.0
_TONES = 32
_UNLIKE = 99.0
_AGREES = 0.8
_MIN_AGREEING = 4
"""Windows with contrast that must agree as they are before a pair is moved, which takes most of the
time: of a picture cropped by 10 % those around the point that stays."""

_REMOVED = 0.3
"""Least part of the squared error that the first step of a motion removes."""

_LEVEL_ERROR = 2.0
"""Mean squared difference of the windows' grey levels from which on brightness is adjusted."""

_MIN_TONE_PX = 16
_DARK_TONES = 4
_SATURATED = 238
_CUT = 225
_VIVID = 8
_BATCH = 256


def is_plausible(
    one_PB: NDArray[np.uint8], other_PB: NDArray[np.uint8], is_still_P: NDArray[np.bool_] | bool
) -> NDArray[np.bool_]:
    """Whether pictures with these coarse levels can be copies; most unrelated pairs cannot.

    Args:
        one_PB: Coarse levels.
        other_PB: Coarse levels of the others.
        is_still_P: Pairs that are compared as they are only.
    """
    # A frame changes the outer parts only.
    inner = (slice(None), slice(1, -1), slice(1, -1))
    one, other = (
        side.reshape(-1, COARSE_PX, COARSE_PX)[inner].reshape(len(side), -1).astype(np.float32)
        for side in (one_PB, other_PB)
    )
    total_one, total_other = one.sum(1), other.sum(1)
    ratio = total_other / np.maximum(total_one, 1)
    gain = np.clip(ratio, 1 / MAX_GAIN, MAX_GAIN)
    error = np.square(one * gain[:, None] - other).mean(1)
    spread = np.minimum(one.var(1), other.var(1))
    limit = np.where(is_still_P, MAX_COARSE_STILL, MAX_COARSE) ** 2
    plausible: NDArray[np.bool_] = error <= limit * spread + _COARSE_NOISE
    return plausible


def differences(
    one_PB: Thumbnails, other_PB: Thumbnails, is_still_P: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Compare thumbnails pair by pair: at most 1 for copies; 99 where nothing agrees.

    Args:
        one_PB: Thumbnails.
        other_PB: Thumbnails of the others.
        is_still_P: Pairs that are compared as they are only, which is faster and stricter.
    """
    still_P = np.zeros(len(one_PB), dtype=bool) if is_still_P is None else is_still_P
    batches = [slice(at, at + _BATCH) for at in range(0, len(one_PB), _BATCH)]
    parts = [_differences(one_PB[at], other_PB[at], still_P[at]) for at in batches]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _differences(
    one_PB: Thumbnails, other_PB: Thumbnails, is_still_P: NDArray[np.bool_]
) -> NDArray[np.float32]:
    # Small pictures are blurred more: their thumbnails show how they were enlarged.
    side_P = np.minimum(sides_of(one_PB), sides_of(other_PB))
    passes_P = np.select([side_P >= 112, side_P >= 80, side_P >= 48], [1, 2, 4], 12)
    colour_P, is_coloured_PVU, is_vivid_PVU = _colour_difference(one_PB, other_PB)
    found_P = np.where(colour_P <= 1, 0.0, _UNLIKE)
    for passes in np.unique(passes_P):
        (chosen,) = np.nonzero((passes_P == passes) & (colour_P <= 1))
        one = _blurred(grey_of(one_PB[chosen]), int(passes))
        other = _blurred(grey_of(other_PB[chosen]), int(passes))
        found_P[chosen] = _structure_difference(
            one, other, is_coloured_PVU[chosen], is_vivid_PVU[chosen], is_still_P[chosen]
        )
    found_P = np.minimum(np.maximum(found_P, colour_P), _UNLIKE)
    rounded: NDArray[np.float32] = np.round(found_P, 4).astype(np.float32)
    return rounded


def _structure_difference(
    one_PYX: Pixels,
    other_PYX: Pixels,
    is_coloured_PVU: NDArray[np.bool_],
    is_vivid_PVU: NDArray[np.bool_],
    is_still_P: NDArray[np.bool_],
) -> Pixels:
    error, contrast, level = _windows(one_PYX, other_PYX)
    # Other brightness changes what a window looks like inside by a fraction only.
    is_alike = (error - level).mean((1, 2)) < MAX_RELATIVE * (contrast.mean((1, 2)) + _NOISE)
    (unlike,) = np.nonzero((level.mean((1, 2)) > _LEVEL_ERROR) & is_alike)
    if unlike.size:
        error[unlike], contrast[unlike], _ = _windows(
            *_same_brightness(one_PYX[unlike], other_PYX[unlike], is_vivid_PVU[unlike])
        )
    found_P = _reading(error, contrast, MAX_RELATIVE)
    has_contrast = contrast > _CONTRAST
    agrees_PVU = has_contrast & (_local(error, contrast) < _AGREES**2)
    # A crop maps the picture into itself, so some point stays where it is.
    is_open_P = ~is_still_P & (found_P > 1) & (agrees_PVU.sum((1, 2)) >= _MIN_AGREEING)
    (overlaid,) = np.nonzero(is_open_P & (has_contrast.sum((1, 2)) >= MIN_OVERLAID))
    overlaid = overlaid[_is_continuous(one_PYX[overlaid]) & _is_continuous(other_PYX[overlaid])]
    if overlaid.size:
        found_P[overlaid] = np.minimum(
            found_P[overlaid], _overlaid(error[overlaid], contrast[overlaid])
        )
    structure_P = (has_contrast | is_coloured_PVU).sum((1, 2))
    is_rich_P = structure_P >= MIN_STRUCTURE
    for (motions, max_shift_px), is_meant_P in ((_ANY, is_rich_P), (_CENTRED, ~is_rich_P)):
        (moved,) = np.nonzero(is_open_P & (found_P > 1) & is_meant_P)
        if moved.size:
            sides = one_PYX[moved], other_PYX[moved], is_vivid_PVU[moved]
            found = _moved(*sides, motions, max_shift_px)
            found_P[moved] = np.minimum(found_P[moved], found)
    return found_P


def _reading(error_PVU: Pixels, contrast_PVU: Pixels, max_relative: float) -> Pixels:
    """Return the difference over the whole picture or in the worst window, whichever is larger."""
    whole = np.sqrt(error_PVU.mean((1, 2)) / (contrast_PVU.mean((1, 2)) + _NOISE))
    local = np.sqrt(_local(error_PVU, contrast_PVU).max((1, 2)))
    larger: Pixels = np.maximum(whole / max_relative, local / MAX_LOCAL)
    return larger


def _local(error_PVU: Pixels, contrast_PVU: Pixels) -> Pixels:
    """Return the squared difference in windows relative to their contrast.

    Codecs smear edges over 8 pixels, so a part of the contrast next to a window counts for it.
    """
    padded = np.pad(contrast_PVU, ((0, 0), (1, 1), (1, 1)))
    around = contrast_PVU
    for y in range(3):
        for x in range(3):
            around = np.maximum(around, padded[:, y : y + _NUM_WINDOWS, x : x + _NUM_WINDOWS])
    relative: Pixels = error_PVU / (contrast_PVU + around / 16 + _NOISE)
    return relative


def _is_continuous(grey_PYX: Pixels) -> NDArray[np.bool_]:
    """Whether no tone is that of a background, such as the paper of a form."""
    num = len(grey_PYX)
    tone = (grey_PYX.astype(np.int64) * _TONES // 256) + np.arange(num)[:, None, None] * _TONES
    counts = np.bincount(tone.reshape(-1), minlength=num * _TONES).reshape(num, _TONES)
    is_continuous: NDArray[np.bool_] = counts.max(1, initial=0) <= MAX_TONE_FRACTION * SIDE_PX**2
    return is_continuous


def _overlaid(error_PVU: Pixels, contrast_PVU: Pixels) -> Pixels:
    """Compare without the windows that differ most."""
    local = _local(error_PVU, contrast_PVU).reshape(len(error_PVU), -1)
    rest = np.argsort(local, axis=1, kind="stable")[:, :-MAX_OVERLAY]
    errors = np.take_along_axis(error_PVU.reshape(len(local), -1), rest, axis=1)
    contrasts = np.take_along_axis(contrast_PVU.reshape(len(local), -1), rest, axis=1)
    whole = np.sqrt(errors.mean(1) / (contrasts.mean(1) + _NOISE)) / MAX_RELATIVE_OVERLAID
    worst = np.sqrt(np.take_along_axis(local, rest[:, -1:], axis=1)[:, 0])
    larger: Pixels = np.maximum(whole, worst / MAX_LOCAL)
    return larger


def _moved(
    one_PYX: Pixels,
    other_PYX: Pixels,
    is_vivid_PVU: NDArray[np.bool_],
    motions: Pixels,
    max_shift_px: float,
) -> Pixels:
    """Compare after the best small motion, without the windows at the edges."""
    found_P = np.full(len(one_PYX), _UNLIKE)
    chosen, motion = _motion(one_PYX, other_PYX, motions)
    if not chosen.size:
        return found_P
    one, other = _warped(one_PYX[chosen], motion), other_PYX[chosen]
    error, contrast, _ = _windows(*_same_brightness(one, other, is_vivid_PVU[chosen]))
    inner = (slice(None), slice(1, -1), slice(1, -1))
    whole = np.sqrt(error[inner].mean((1, 2)) / (contrast[inner].mean((1, 2)) + _NOISE))
    local = np.sqrt(_local(error, contrast)[inner].max((1, 2)))
    shift = np.abs(motion).sum(2).max(1) / max_shift_px
    found_P[chosen] = np.maximum(np.maximum(whole / MAX_RELATIVE, local / MAX_LOCAL), shift)
    return found_P


def _blurred(grey_PYX: Pixels, passes: int) -> Pixels:
    blurred: Pixels = grey_PYX.astype(np.float32)
    for _ in range(passes):
        rows = np.pad(blurred, ((0, 0), (1, 1), (0, 0)), mode="edge")
        blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
        columns = np.pad(blurred, ((0, 0), (0, 0), (1, 1)), mode="edge")
        blurred = (columns[:, :, :-2] + 2 * columns[:, :, 1:-1] + columns[:, :, 2:]) / 4
    return blurred


def _same_brightness(
    one_PYX: Pixels, other_PYX: Pixels, is_vivid_PVU: NDArray[np.bool_]
) -> tuple[Pixels, Pixels]:
    """Scale the darker picture of each pair to the brighter one, within `MAX_GAIN`.

    Each tone has its own factor, since tones are cut off at 255. Near white, and in a vivid colour,
    of which one channel is cut off before the others, any factor up to the largest is possible.
    Pairs that are not much closer afterwards stay as they are.
    """
    is_unsaturated = (one_PYX < _SATURATED) & (other_PYX < _SATURATED)
    gain = np.where(is_unsaturated, other_PYX - one_PYX, 0).sum((1, 2), dtype=np.float64)
    swap = (gain < 0)[:, None, None]
    darker, brighter = np.where(swap, other_PYX, one_PYX), np.where(swap, one_PYX, other_PYX)
    num = len(darker)
    tone = (darker.astype(np.int64) * _TONES // 256) + np.arange(num)[:, None, None] * _TONES
    sums = [
        np.bincount(tone.reshape(-1), weights=side.reshape(-1), minlength=num * _TONES)
        for side in (darker, brighter)
    ]
    factor = np.clip(sums[1] / np.maximum(sums[0], 1.0), 1.0, MAX_GAIN).astype(np.float32)
    scaled = np.minimum(darker * factor[tone], np.float32(255))
    counts = np.bincount(tone.reshape(-1), minlength=num * _TONES)
    is_usual = (counts >= _MIN_TONE_PX).reshape(num, _TONES)
    largest = np.where(is_usual, factor.reshape(num, _TONES), 1)[:, _DARK_TONES:].max(1)
    upper = darker * largest[:, None, None]
    is_cut = is_vivid_PVU.repeat(_WINDOW_PX, axis=1).repeat(_WINDOW_PX, axis=2)
    is_cut |= upper >= _CUT
    scaled = np.where(is_cut, np.clip(brighter, darker, upper), scaled).astype(np.float32)
    before = np.square(darker - brighter).sum((1, 2), dtype=np.float64)
    after = np.square(scaled - brighter).sum((1, 2), dtype=np.float64)
    return np.where((after < 0.7 * before)[:, None, None], scaled, darker), brighter


def _windows(one_PYX: Pixels, other_PYX: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Compare windows.

    Returns:
        error_PVU: Mean squared difference.
        contrast_PVU: Mean variance of the two.
        level_PVU: Squared difference of the means, which is a part of the error.
    """

    def mean(values: Pixels) -> Pixels:
        # Added one after the other, so that every machine gives the same sums.
        exact = values.astype(np.float64)
        rows = reduce(np.add, (exact[:, k::_WINDOW_PX] for k in range(_WINDOW_PX)))
        sums: Pixels = reduce(np.add, (rows[:, :, k::_WINDOW_PX] for k in range(_WINDOW_PX)))
        return sums / _WINDOW_PX**2

    means = mean(one_PYX), mean(other_PYX)
    contrast = sum(
        np.maximum(mean(np.square(side)) - np.square(level), 0.0)
        for side, level in zip((one_PYX, other_PYX), means, strict=True)
    )
    error = mean(np.square(one_PYX - other_PYX))
    return error, contrast / 2, np.square(means[0] - means[1])


def _motion(
    one_PYX: Pixels, other_PYX: Pixels, motions: Pixels
) -> tuple[NDArray[np.int64], Pixels]:
    """Find the motion, in pixels, after which one picture is most like the other.

    Gauss-Newton on thumbnails of half the size. A motion removes most of the error in the first
    step if there is one; the other pairs are given up.

    Returns:
        Indices of the pairs with a motion, and for each the vertical and horizontal displacement:
        constant, by x and by y, where x and y go from -1 to 1.
    """
    side, margin = SIDE_PX // 2, 2
    one, other = (_halved(_blurred(grey, 2)) for grey in (one_PYX, other_PYX))
    along = (np.arange(side) - (side - 1) / 2) / ((side - 1) / 2)
    basis = np.stack(np.broadcast_arrays(1.0, along[None, :], along[:, None]))
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    chosen = np.arange(len(one))
    motion = np.zeros((len(one), 2, 3))
    for step_no in range(4):
        warped = _warped(one, motion)
        slope = np.stack(np.gradient(warped + other, axis=(1, 2)), axis=1) / 2
        jacobian = motions @ (slope[:, :, None] * basis)[inner].reshape(len(one), 6, -1)
        error = (other - warped)[inner].reshape(len(one), -1, 1)
        normal, gain = jacobian @ jacobian.transpose(0, 2, 1), jacobian @ error
        # Keep what the picture says nothing about at zero.
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1
        step = np.linalg.solve(normal + damping[:, None, None] * np.eye(len(motions)), gain)
        motion = np.clip(motion + (motions.T @ step).reshape(-1, 2, 3), -3, 3)
        if step_no == 0:
            removed = np.round((gain * step).sum((1, 2)) / np.square(error).sum((1, 2)), 6)
            (found,) = np.nonzero(removed > _REMOVED)
            one, other, motion, chosen = one[found], other[found], motion[found], chosen[found]
        if not chosen.size:
            break
    # Whole 64ths, so that the last bits of the solution decide nothing.
    return chosen, np.round(motion * 128) / 64


def _halved(grey_PYX: Pixels) -> Pixels:
    exact = grey_PYX.astype(np.float64)
    rows = exact[:, ::2] + exact[:, 1::2]
    halved: Pixels = (rows[:, :, ::2] + rows[:, :, 1::2]) / 4
    return halved


def _warped(grey_PYX: Pixels, motion: Pixels) -> Pixels:
    """Move pictures; `motion` as `_motion` returns it."""
    num, side, _ = grey_PYX.shape
    middle = (side - 1) / 2
    along = (np.arange(side) - middle) / middle
    constant, by_x, by_y = (motion[:, :, k, None, None] for k in range(3))
    shift = constant + by_x * along[None, None, None, :] + by_y * along[None, None, :, None]
    y = np.clip(np.arange(side)[None, :, None] + shift[:, 0], 0, side - 1.001)
    x = np.clip(np.arange(side)[None, None, :] + shift[:, 1], 0, side - 1.001)
    top, left = y.astype(np.int64), x.astype(np.int64)
    y, x = (y - top).astype(grey_PYX.dtype), (x - left).astype(grey_PYX.dtype)
    flat, corner = grey_PYX.reshape(num, -1), (top * side + left).reshape(num, -1)

    def at(offset: int) -> Pixels:
        return np.take_along_axis(flat, corner + offset, axis=1).reshape(num, side, side)

    moved: Pixels = (at(0) * (1 - x) + at(1) * x) * (1 - y)
    moved += (at(side) * (1 - x) + at(side + 1) * x) * y
    return moved


def _colour_difference(
    one_PB: Thumbnails, other_PB: Thumbnails
) -> tuple[Pixels, NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare colours, window by window.

    Returns:
        difference_P: At most 1 if no window differs too much, or one picture is grey.
        is_coloured_PVU: Windows of both pictures whose colour is not that of most others.
        is_vivid_PVU: Windows with a colour in either.
    """
    one, other = colours_of(one_PB).astype(np.int16), colours_of(other_PB).astype(np.int16)
    worst = np.maximum(_colour_gap(one, other), _colour_gap(other, one)).max((1, 2))
    structured = [_own_colours(side) for side in (one, other)]
    is_grey = [(np.abs(side - 128) <= 3).all((1, 2, 3)) for side in (one, other)]
    difference = np.where(is_grey[0] | is_grey[1], 0.0, worst / MAX_COLOUR_LEVELS)
    is_vivid: NDArray[np.bool_] = (np.abs(np.concatenate([one, other], 1) - 128) > _VIVID).any(1)
    return difference, structured[0] & structured[1], is_vivid


def _colour_gap(one: Pixels, other: Pixels) -> Pixels:
    """Return how far each window's colour is from the nearest of the 3 × 3 windows around it."""
    padded = np.pad(other, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    gaps = [
        np.abs(one - padded[:, :, y : y + _NUM_WINDOWS, x : x + _NUM_WINDOWS]).max(1)
        for y in range(3)
        for x in range(3)
    ]
    nearest: Pixels = np.minimum.reduce(gaps)
    return nearest


def _own_colours(colour: Pixels) -> NDArray[np.bool_]:
    usual = np.median(colour.reshape(*colour.shape[:2], -1), axis=2)[:, :, None, None]
    is_own: NDArray[np.bool_] = (np.abs(colour - usual) > 12).any(1)
    return is_own
