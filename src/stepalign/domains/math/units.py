"""Units of measurement, currencies and per cent: cut off an answer, and converted. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNIT_NAMES = (
    "m meter meters metre metres; cm centimeter centimeters centimetre centimetres; "
    "mm millimeter millimeters millimetre millimetres; km kilometer kilometers kilometre kilometres; "
    "in inch inches; ft foot feet; yd yard yards yds; mi mile miles; s sec secs second seconds; "
    "min mins minute minutes; h hr hrs hour hours; day days; week weeks; month months; year years yr yrs; "
    "g gram grams; kg kilogram kilograms kgs; mg milligram milligrams; pound lb lbs pounds; oz ounce ounces; "
    "l liter liters litre litres; ml milliliter milliliters millilitre millilitres; gal gallon gallons; "
    "dollar dollars usd bucks; cent cents; euro euros; yen; rupee rupees; degree degrees deg; celsius; "
    "fahrenheit; radian radians rad; mi/h mph; hz hertz; n newton newtons; j joule joules; w watt watts; "
    "v volt volts; k kelvin; % percent percents; am; pm; north; south; east; west; more; fewer less"
)
"""Unit and its other names; "pound" is of weight and of money, and the last ones contradict each other as units do."""
_UNITS = {name: group.split()[0] for group in _UNIT_NAMES.split("; ") for name in group.split()}
_LETTERS = words("m s h g l")
"""Units of one letter without a text command, after a plain number; any other letter is a variable."""
_FILLERS = words("per of a an the each unit units")
_ARTICLES = words("a an the of per")
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_CURRENCIES = {"$": "dollar", "¢": "cent", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_POWERS_OF_TEN = {"ten": 1, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALES: dict[str, Fraction] = {
    **{name: Fraction(10) ** power for word, power in _POWERS_OF_TEN.items() for name in (word, f"{word}s")},
    **{name: Fraction(10) ** -power for word, power in _POWERS_OF_TEN.items() for name in (f"{word}th", f"{word}ths")},
    **dict.fromkeys(("dozen", "dozens"), Fraction(12)),
}
_NOT_UNITS = words(
    "or and not no nor but if is was are be then than to from plus minus times over point half halves third thirds "
    "quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths twelfth "
    "twelfths root inverse doubled tripled halved negative factorial mod modulo choose score pi sqrt sin cos tan log "
    "ln exp infinity where when for with since because so unless except least most cannot can't does doesn't would "
    "wrong incorrect impossible false invalid"
)
_BASE_UNITS: dict[str, tuple[str, Fraction]] = {
    **{"mm": ("m", Fraction(1, 1000)), "cm": ("m", Fraction(1, 100)), "km": ("m", Fraction(1000))},
    **{"ft": ("in", Fraction(12)), "yd": ("in", Fraction(36)), "mi": ("in", Fraction(63360))},
    **{"min": ("s", Fraction(60)), "h": ("s", Fraction(3600)), "day": ("s", Fraction(86400))},
    **{"week": ("s", Fraction(604800)), "year": ("month", Fraction(12)), "oz": ("pound", Fraction(1, 16))},
    **{"mg": ("g", Fraction(1, 1000)), "kg": ("g", Fraction(1000)), "ml": ("l", Fraction(1, 1000))},
    "cent": ("dollar", Fraction(1, 100)),
}
"""Unit -> (another one, how many of that make one)."""

_LAST_QUOTED = re.compile(r'"([^"]*)" ?(?:\^ ?\{?(?P<power>-?\d)\}?)? ?$')
_LAST_WORD = re.compile(r"(?<=[\d/ }])([A-Za-z][A-Za-z.]{0,30})(?: ?\^ ?\{?(?P<power>[23])\}?)?$")
_SHORT_SCALE = re.compile(r'(?<=\d) ?" ?([kM]) ?"$')
_DOLLAR = re.compile(r"[-+]? ?(?:\\\$|\$(?=[ \d.-][^$]*$))")


def currency_of(text: str) -> str:
    """The currency whose sign an answer bears; a dollar sign that delimits mathematics is none."""
    if _DOLLAR.match(text):
        return "dollar"
    return next((unit for sign, unit in _CURRENCIES.items() if sign in text and sign != "$"), "")


def split_unit(text: str, read_number: Callable[[str], Fraction | None]) -> tuple[str, str]:
    """Cut the unit off an answer whose text is in double quotes; "1.8 million" is multiplied out.

    Returns:
        What is left, and the unit as in "mi/h" or "m/s^2": "" where there is none, or none that is known.
    """
    if text.endswith("%"):
        return text[:-1].rstrip(), "%"
    text = _SHORT_SCALE.sub(lambda letter: ' "thousand"' if letter[1] == "k" else ' "million"', text)
    head, words = text, list[str]()
    quoted = divided = True
    while len(words) < 5 and (last := _LAST_QUOTED.search(head) or _LAST_WORD.search(head)):
        unquoted = last.re is _LAST_WORD
        glued = last.start() > 0 and head[last.start() - 1] in "0123456789}"
        if unquoted and glued and (len(last.group(1)) < 2 or last.group(1).lower() not in _UNITS):
            return text, ""
        quoted = quoted and not unquoted
        power = [f"^{last['power']}"] if last["power"] else []
        words[:0] = [*(last.group(1).lower().replace(".", "").replace("/", " ").split() or [""]), *power]
        head = head[: last.start()].rstrip()
        divided = head.endswith("/")
        head = head.rstrip(" /")
    if not words or not head or head[-1] in "+-*^(=,":
        return text, ""
    if (
        words in (["squared"], ["cubed"])
        or words[-1] in _ARTICLES
        or any(word.strip("()") in _NOT_UNITS or _is_variable(word) for word in words)
    ):
        return text, ""
    number = read_number(head)
    if not quoted and any(len(word) == 1 for word in words) and not _are_letters_of_units(words, number, divided):
        return text, ""
    if number is not None and words[0] in _SCALES:
        head, words = str(number * _SCALES[words[0]]), words[1:]
    unit = _unit(words)
    if unit is None and not quoted and (number is None or any(len(word) < 3 for word in words)):
        return text, ""
    return head, unit or ""


def _is_variable(word: str) -> bool:
    """One letter is a variable or a constant unless it is a known unit: 3i and 2e are no amounts of anything."""
    return len(word) == 1 and word not in _UNITS and word not in _FILLERS


def _are_letters_of_units(words: list[str], number: Fraction | None, divided: bool) -> bool:
    """5 m and 60 km / h end with units; in x + m, 5 n and 12 / h the letter is a number."""
    letters = [word for word in words if len(word) == 1 and word not in ("a", "")]
    real = any(len(word) > 1 and word in _UNITS for word in words)
    return bool(letters or real) and number is not None and not divided and all(word in _LETTERS for word in letters)


def _unit(words: list[str]) -> str | None:
    """Known units in their base names with their powers, or None where a word is no unit or there is none."""
    units: list[str] = []
    coming = 0
    for word in words:
        name, _, power = word.partition("^")
        if word in _POWERS and word not in ("squared", "cubed"):
            coming = _POWERS[word]
        elif word in _POWERS or not name:
            units[-1:] = [f"{unit.partition('^')[0]}^{_POWERS.get(word) or power}" for unit in units[-1:]]
        elif name in _UNITS:
            exponent = power or coming
            units.append(f"{_UNITS[name]}^{exponent}" if exponent else _UNITS[name])
            coming = 0
        elif word not in _FILLERS:
            return None
    return "/".join(units) if units or any(word in ("unit", "units", "each") for word in words) else None


def contradict(one: str, other: str) -> bool:
    """Whether two units differ where both say something: "dollars" may mean "dollars per hour"."""
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return any(mine != theirs for mine, theirs in pairs if mine and theirs)


def conversion(one: str, other: str) -> Fraction | None:
    """How many of the other unit make one: 60 for "h" and "min"; None where they measure different things."""
    (name, _, power), (other_name, _, other_power) = one.partition("^"), other.partition("^")
    base, factor = _BASE_UNITS.get(name, (name, Fraction(1)))
    other_base, other_factor = _BASE_UNITS.get(other_name, (other_name, Fraction(1)))
    if base != other_base or power != other_power or not re.fullmatch(r"|\d", power):
        return None
    return (factor / other_factor) ** int(power or 1)
