"""The normal form of an answer: which answers are the same text or the same number. Pure functions.

Everything here reads text that a model wrote, inside the trainer's own process: each scan is linear in the length of
the text, and an answer of more than ``MAX_LENGTH`` characters is never analysed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from stepalign.tasks.notation import closing_bracket, depth, parse_number, split_sequence

MAX_LENGTH = 512
"""Characters of an answer that are looked into; extraction cuts longer ones just above it."""
MAX_DEPTH = 64
"""Nesting of brackets that is looked into."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in normal form."""

    text: str
    """Without decoration, spacing and unit; text commands are unwrapped and words are in lower case."""
    unit: str = ""
    """Base unit where it is a known one, "%" included; powers are dropped. "" otherwise."""
    number: Fraction | None = None
    """The exact value where the answer is a plain number, read without its per cent sign."""


_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—﹣－", "-"),
        **dict.fromkeys("×·⋅∙", "\\times "),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000\t\n\r", " "),
        **{chr(ord("０") + digit): str(digit) for digit in range(10)},
        **{"÷": "/", "⁄": "/", "∕": "/", "，": ",", "（": "(", "）": ")", "％": "%", "’": "'", "＝": "="},
        **{
            "π": "\\pi ",
            "∞": "\\infty ",
            "√": "\\sqrt ",
            "≤": "\\le ",
            "≥": "\\ge ",
            "≠": "\\ne ",
            "≈": "=",
            "±": "\\pm ",
        },
        **{"∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "θ": "\\theta ", "α": "\\alpha "},
        **{"°": "\\degree ", "²": "^{2}", "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}"},
    }
)
_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"),
    **dict.fromkeys(("left", "right", "displaystyle", "textstyle", "limits", "bigl", "bigr", "Bigl", "Bigr"), ""),
    **dict.fromkeys(("big", "Big", "bigg", "Bigg", "mathopen", "mathclose"), ""),
    **dict.fromkeys(("quad", "qquad", "enspace", "thinspace"), " "),
    **{"leq": "\\le", "geq": "\\ge", "leqslant": "\\le", "geqslant": "\\ge", "lt": "<", "gt": ">", "neq": "\\ne"},
    **{"cdot": "\\times", "ast": "\\times", "div": "/", "lbrace": "\\{", "rbrace": "\\}", "langle": "(", "rangle": ")"},
    **{
        "lbrack": "[",
        "rbrack": "]",
        "varnothing": "\\emptyset",
        "circ": "\\degree",
        "approx": "=",
        "simeq": "=",
        "euro": "€",
        "percent": "%",
    },
}
_TEXT_COMMANDS = "text|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|mbox"
_COMMAND = re.compile(r"(\\\\)|\\([A-Za-z]+)|(\\[!,;:>])|(\\ |~)")
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\*?\s?\{{([^{{}}]*)\}}")
_OPERATOR = re.compile(r"\\operatorname\*? ?\{ ?([A-Za-z]+) ?\}")
_DEGREE = re.compile(r"(?:\^ ?\{ ?\\degree ?\}|\^? ?\\degree(?![A-Za-z]))(?: ?\"? ?[CF] ?\"?$)?")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_WORD_NAME = re.compile(r'(?:"[A-Za-z ]{2,40}"|[A-Za-z ]{4,40}) ?= ?([^=]+)')
_DOLLAR = re.compile(r"[-+]? ?(?:\\\$|\$(?=[ \d.-][^$]*$))")
_CURRENCY_OR_DELIMITER = re.compile(r"\\?\$|\\[()\[\]]|[€£]")
_FRACTION = re.compile(r"\\frac ?(\d|[A-Za-z]|\{[^{}]*\}) ?(\d|[A-Za-z]|\{[^{}]*\})")
_ROOT = re.compile(r"\\sqrt ?(\d|[A-Za-z](?![A-Za-z]))")
_ROOT_CALL = re.compile(r"(?<![A-Za-z\\])\\?sqrt ?\(([^()]*)\)|\\sqrt ?\(([^()]*)\)")
_EXPONENT = re.compile(r"(?:\^|\*\*) ?(-?\d+)")
_SCRIPT = re.compile(r"([_^])\{([0-9A-Za-z])\}(?! ?\d)")
_SPACED_SCRIPT = re.compile(r"([_^])(\d) (?=\d)")
_SPACES = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])|(?<=\d) (?=\d)|( )")
_MIXED = re.compile(r"([-+]?\d+) (\d+) ?/ ?(\d+)")
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_COMMA_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LAST_QUOTED = re.compile(r'"([^"]*)" ?(?:\^ ?\{?-?\d\}?)? ?$')
_LAST_WORD = re.compile(r"(?<=[\d/ }])([A-Za-z][A-Za-z.]{0,30})(?: ?\^ ?\{?[23]\}?)?$")
_CONNECTOR = re.compile(r'(?: ?,)? ?(?:" ?(?:or|and) ?"|(?<=[\d} ])\b(?:or|and)\b)')
_CHOICE = re.compile(r"\(?([A-Za-z])[).:]")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{([A-Za-z]{1,16})\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNIT_NAMES = {
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "g": "gram grams",
    "kg": "kilogram kilograms kgs",
    "mg": "milligram milligrams",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "l": "liter liters litre litres",
    "ml": "milliliter milliliters millilitre millilitres",
    "gal": "gallon gallons",
    "dollar": "dollars usd bucks",
    "cent": "cents",
    "euro": "euros",
    "degree": "degrees deg",
    "radian": "radians rad",
    "mi/h": "mph",
    "unit": "units",
    "hz": "hertz",
    "n": "newton newtons",
    "j": "joule joules",
    "w": "watt watts",
    "v": "volt volts",
    "k": "kelvin",
    "%": "percent percents",
}
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in (unit, *names.split())}
_UNIT_FILLERS = _words("square squared sq cubic cubed cu per of a an the each")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NOT_UNITS = _words(
    "or and not no nor but if is was are then than to from plus minus times over point half halves third thirds "
    "quarter quarters fourth fourths fifth fifths negative factorial mod modulo choose score pi sqrt sin cos tan log "
    "ln exp infinity where when for with since because so"
)
_FUNCTIONS = _words(
    "frac sqrt sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh max min gcd lcm mod infty "
    "pmatrix begin end binom"
)
_SHORT_WORDS = _words(
    "is or no of to in at by if it we so as an on up go the and not yes are was for but all any one two six ten "
    "odd may can got had has our its you"
)


def canonical_answer(answer: str) -> str:
    """A spelling that equal answers share, for counting votes: "0.50", "1/2" and ``$\\frac12$`` are all "1/2".

    Units and per cent signs are dropped, the elements of tuples and intervals are brought to normal form each, and
    those of sets and bare lists are sorted. Equal expressions in different forms, such as ``2(x+1)`` and ``2x+2``,
    stay different: to see that they are equal takes a :class:`~stepalign.tasks.grading.Grader`.
    """
    return _canonical(normal_form(answer))


def _canonical(answer: Answer) -> str:
    if answer.number is not None:
        return str(answer.number)
    sequence = split_sequence(answer.text)
    if sequence is None:
        return answer.text
    items = [_canonical(normal_form(item)) for item in sequence.items]
    return sequence.opening + ",".join(items if sequence.ordered else sorted(items)) + sequence.closing


def normal_form(answer: str) -> Answer:
    """Strip what does not change the meaning of an answer, and read it as a number where it is a plain one."""
    text = answer.strip()
    if len(text) > MAX_LENGTH or depth(text) > MAX_DEPTH:
        return Answer(text)
    text = text.translate(_CHARACTERS).strip("`* ")
    unit = "dollar" if _DOLLAR.match(text) else ""
    text = _CURRENCY_OR_DELIMITER.sub("", text).replace("\\%", "%").replace("{,}", ",")
    text = _OPERATOR.sub(r"\\\1 ", _COMMAND.sub(_plain_command, text))
    for _ in range(2):  # \text{\textbf{...}}
        text = _TEXT.sub(_quoted, text)
    text = " ".join(_CONNECTOR.sub(",", text).split()).rstrip(".,;: ")
    if text.startswith('"') and text.endswith('"') and text.count('"') == 2:
        text = text.strip('" ').rstrip(".,;: ")
    if name := _WORD_NAME.fullmatch(text):
        text = name.group(1)
    if _TRIGONOMETRIC.search(text):
        text = _DEGREE.sub(r"\\pi/180", text)
    elif _DEGREE.search(text):
        text, unit = _DEGREE.sub("", text), "degree"
    text, named_unit = _split_unit(text)
    text = _tidy(text)
    return Answer(text, named_unit or unit, parse_number(text))


def has_control_characters(answer: str) -> bool:
    """Whether an answer holds characters that no one can see: such a text is never taken for an answer."""
    return _CONTROL.search(answer) is not None


def is_prose(text: str) -> bool:
    """Whether a normal form holds words, so that reading it as mathematics would only pick numbers out of it."""
    if re.search(r"\d \d", text):
        return True
    words = (word.group() for word in _WORD.finditer(_ENVIRONMENT.sub("", text)))
    return any(word in _SHORT_WORDS or (len(word) > 3 and word not in _FUNCTIONS) for word in words)


def _plain_command(match: re.Match[str]) -> str:
    """One LaTeX command in the spelling used here; a line break of a matrix is kept."""
    line_break, name, thin_space, _ = match.groups()
    if line_break:
        return line_break
    if name:
        return _COMMANDS.get(name, match.group())
    return "" if thin_space else " "


def _quoted(match: re.Match[str]) -> str:
    return ' "' + match.group(1).replace('"', "") + '" '


def _split_unit(text: str) -> tuple[str, str]:
    """Cut the unit off an answer; "1.8 million" is multiplied out."""
    if text.endswith("%"):
        return text[:-1].rstrip(), "%"
    head, words = text, list[str]()
    quoted = True
    while len(words) < 5 and (last := _LAST_QUOTED.search(head) or _LAST_WORD.search(head)):
        glued = last.start() > 0 and head[last.start() - 1] in "0123456789}"
        if last.re is _LAST_WORD and glued and (len(last.group(1)) < 2 or last.group(1).lower() not in _UNITS):
            return text, ""
        quoted = quoted and last.re is _LAST_QUOTED
        words[:0] = last.group(1).lower().replace(".", "").replace("/", " ").split() or [""]
        head = head[: last.start()].rstrip(" /")
    # One letter is a variable or a constant unless it is a known unit: 3i and 2e are no amounts of anything.
    if not head or not words or any(word in _NOT_UNITS or _is_variable(word) for word in words):
        return text, ""
    number = parse_number(_tidy(head))
    if number is not None and words[0] in _SCALES:
        head, words = str(number * _SCALES[words[0]]), words[1:]
    known = all(word in _UNITS or word in _UNIT_FILLERS for word in words)
    if not known and not quoted and (number is None or any(len(word) < 3 for word in words)):
        return text, ""
    return head, "/".join(_UNITS[word] for word in words if word in _UNITS) if known else ""


def _is_variable(word: str) -> bool:
    return len(word) == 1 and word not in _UNITS and word not in _UNIT_FILLERS


def _tidy(text: str) -> str:
    """Spell fractions, roots, scripts and spacing in one way."""
    text = text.replace('"', "").strip().rstrip(".,;: ").lstrip("= ")
    if choice := _CHOICE.fullmatch(text):
        text = choice.group(1)
    if mixed := _MIXED.fullmatch(text):
        text = f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    if _COMMA_THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    text = _FRACTION.sub(lambda m: f"\\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    text = _ROOT_CALL.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    text = _EXPONENT.sub(r"^{\1}", text)
    text = _SPACED_SCRIPT.sub(r"\1{\2}", _SCRIPT.sub(r"\1\2", text))
    text = text.replace("<=", "\\le ").replace(">=", "\\ge ").replace("!=", "\\ne ").replace("==", "=")
    text = _SPACES.sub(lambda m: "" if m[1] else m[0], " ".join(text.split()))
    while text.startswith("{") and text.endswith("}") and closing_bracket(text) == len(text) - 1:
        text = text[1:-1]
    return text.lower() if is_prose(text.lower()) or re.fullmatch(r"[A-Za-z]+", text) else text
