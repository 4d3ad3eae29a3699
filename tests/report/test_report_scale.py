from __future__ import annotations

import math
import random

import numpy as np
import pytest

from stepalign.report import drawing, scale, template

LEVELS = range(-scale.LEVELS, scale.LEVELS + 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_every_level_is_readable(scheme: scale.Scheme) -> None:
    assert min(scale.contrast(scale.ink(at, scheme), scale.background(at, scheme)) for at in LEVELS) >= 4.5


def test_contrast_knows_black_on_white() -> None:
    assert scale.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert scale.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_stronger_values_stand_out_more(scheme: scale.Scheme) -> None:
    paper = scale.background(0, scheme)
    for sign in (1, -1):
        steps = [scale.contrast(paper, scale.background(sign * size, scheme)) for size in range(scale.LEVELS + 1)]
        assert steps == sorted(steps)


def _seen_by_deuteranope(colour: str) -> tuple[float, float, float]:
    # Viénot, Brettel & Mollon 1999, on linear RGB: the red and green channels collapse to one.
    red, green, blue = scale.linear_channels(colour)
    yellow = 0.29275 * red + 0.70725 * green
    return yellow, yellow, -0.02234 * red + 0.02234 * green + blue


def test_both_signs_differ_without_red_green_vision() -> None:
    for size in range(4, scale.LEVELS + 1):
        plus, minus = (_seen_by_deuteranope(scale.background(sign * size)) for sign in (1, -1))
        assert math.dist(plus, minus) > 0.1


def test_levels_are_centred_symmetric_and_clipped() -> None:
    assert scale.level(0.0, 2.0) == scale.level(math.nan, 2.0) == 0
    assert scale.level(2.0, 2.0) == scale.level(99.0, 2.0) == scale.LEVELS
    assert scale.level(1.0, 2.0) == scale.LEVELS // 2
    for value in (0.01, 0.3, 1.7):
        assert scale.level(-value, 2.0) == -scale.level(value, 2.0)


# From the paper outwards, each colour of the scale in equal steps of Oklab between neighbours of these.
STOPS: dict[tuple[scale.Scheme, int], tuple[str, ...]] = {
    ("light", +1): ("#ffffff", "#b5d3ee", "#4d93d1", "#0b4a8f"),
    ("light", -1): ("#ffffff", "#fbd2ae", "#e5842f", "#8f3206"),
    ("dark", +1): ("#14161a", "#1d456d", "#3d8bd0", "#a9d5ff"),
    ("dark", -1): ("#14161a", "#643212", "#cb6f2c", "#ffca9c"),
}


def _oklab(colour: str) -> np.ndarray:
    """B. Ottosson, "A perceptual color space for image processing", 2020."""
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ np.array(scale.linear_channels(colour)))


@pytest.mark.parametrize(("scheme", "sign"), STOPS)
def test_equal_steps_of_the_scale_look_equal(scheme: scale.Scheme, sign: int) -> None:
    stops = np.array([_oklab(stop) for stop in STOPS[scheme, sign]])
    for at in range(scale.LEVELS + 1):
        place = at / scale.LEVELS * 3
        expected = [np.interp(place, range(4), stops[:, axis]) for axis in range(3)]
        assert _oklab(scale.background(sign * at, scheme)) == pytest.approx(expected, abs=0.004)


def test_limit_is_the_99th_percentile() -> None:
    values: list[float | None] = [float(value) for value in range(1, 1001)]
    random.Random(0).shuffle(values)
    limit = scale.shared_limit([*values, None, math.nan])
    assert limit == 990
    assert sum(abs(value) <= limit for value in values if value is not None) / 1000 == 0.99
    assert scale.shared_limit([]) == scale.shared_limit([0.0, 0.0]) == 1.0


def test_arm_colours_are_visible_on_both_papers() -> None:
    assert min(scale.contrast(colour, "#fcfbf8") for colour in (*drawing.ARM_COLOURS, drawing.BASE_COLOUR)) >= 3
    assert min(scale.contrast(colour, "#14161a") for colour in template.DARK_ARMS) >= 3
    # Names at the ends of lines are text.
    assert min(scale.contrast(colour, "#fcfbf8") for colour in drawing.ARM_COLOURS) >= 4
