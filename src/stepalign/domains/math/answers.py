"""The normal form of an answer: which answers are the same text or the same number. Pure functions.

Each scan is linear in the length of a model's text, and one of more than ``MAX_LENGTH`` characters is never analysed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from stepalign.domains.math.notation import as_interval, closing_bracket, depth, parse_number, split_sequence, split_top
from stepalign.domains.math.units import currency_of, split_unit, words

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
    """Base unit with its power where it is a known one, "%" included; "" otherwise."""
    number: Fraction | None = None
    """The exact value where the answer is a plain number, read without its per cent sign."""
    label: str = ""
    """"B" of "(B) 12", a choice with its value; the rest of the answer is then "12"."""
    listed: str = ""
    """The answer as written where a comma in it was read as one that groups digits: "105,210" may be a list."""
    decimal_comma: bool = False
    """Whether a comma in it, as written, may be a decimal one: in "3,5", but not in "3, 5", "3;5" and "3 or 5"."""


def _pairs(table: str) -> dict[str, str]:
    """The table "A B, C D" as a mapping of A to B and of C to D; "A" alone goes to nothing, "\\x_" ends in a space."""
    rows = (entry.split() for entry in table.split(" , "))
    return {row[0]: "".join(row[1:]).replace("_", " ") for row in rows}


_GREEK = (
    r"α alpha , β beta , γ gamma , δ delta , ε epsilon , ζ zeta , η eta , θ theta , κ kappa , λ lambda , μ mu , ν nu , "
    r"ξ xi , π pi , ρ rho , σ sigma , τ tau , φ phi , χ chi , ψ psi , ω omega , Γ Gamma , Δ Delta , Θ Theta , "
    r"Λ Lambda , Ξ Xi , Π Pi , Σ Sigma , Φ Phi , Ψ Psi , Ω Omega"
)
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣－", "-"),
        **dict.fromkeys("×·⋅∙", "\\times "),
        **dict(zip("÷⁄∕’′≈", "///''=", strict=True)),
        **_pairs(r"∞ \infty_ , √ sqrt , ∛ \sqrt[3] , ≤ \le_ , ≥ \ge_ , ≠ \ne_ , ± \pm_ , ∓ \mp_ , … \ldots_"),
        **_pairs(r"∪ \cup_ , ∩ \cap_ , ∧ \wedge_ , ∨ \vee_ , ∈ \in_ , ∅ \emptyset_ , ∠ \angle_ , △ \triangle_"),
        **_pairs(r"° \degree_ , º \degree_ , ℃ \degree_C , ℉ \degree_F"),
        **_pairs(r"ℤ \mathbb{Z} , ℕ \mathbb{N} , ℚ \mathbb{Q} , ℝ \mathbb{R} , ℂ \mathbb{C}"),
        **{letter: f"\\{name} " for letter, name in _pairs(_GREEK).items()},
    }
)
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+|[₀-₉]+|[¼½¾⅐-⅞]")
_COMMANDS = {
    **dict.fromkeys(words("dfrac tfrac cfrac nicefrac sfrac xfrac"), "\\frac"),
    **dict.fromkeys(words("dbinom tbinom"), "\\binom"),
    **dict.fromkeys(words("left right displaystyle textstyle limits mathopen mathclose middle strut"), ""),
    **dict.fromkeys(words("checkmark square blacksquare qed therefore mathstrut"), ""),
    **dict.fromkeys(words("bigl bigr Bigl Bigr big Big bigg Bigg large Large LARGE huge Huge small"), ""),
    **dict.fromkeys(words("rm bf it tt sf"), ""),
    **dict.fromkeys(words("dots cdots dotsc dotsb"), "\\ldots"),
    **dict.fromkeys(words("quad qquad enspace thinspace"), " "),
    **_pairs(r"leq \le , geq \ge , leqslant \le , geqslant \ge , lt < , gt > , neq \ne , approx = , simeq = , div /"),
    **_pairs(r"cdot \times , ast \times , lbrace \{ , rbrace \} , langle ( , rangle ) , lbrack [ , rbrack ] , colon :"),
    **_pairs(r"lor \vee , land \wedge , varnothing \emptyset , circ \degree , infin \infty"),
    **_pairs(r"euro € , pounds £ , percent % , textdollar $"),
}
_TEXT_COMMANDS = (
    "text|textbf|textit|textrm|textnormal|textsf|texttt|textup|emph|underline|mbox|hbox|mathrm|mathbf|mathit|mathsf"
    "|mathtt|boldsymbol|bm|bold|smash|ensuremath"
)
_GROUPING = re.compile(r"(?<=\d)(?:,\\[!,]|\\[!,],|\{,\}(?:\\!)?)\s*(?=\d{3}(?!\d))")
_COMMAND = re.compile(r"(\\\\)|\\([A-Za-z]+)|(\\!)|(\\[ ,;:>]|~)")
_COLOUR = re.compile(r"\\(?:(?:text)?color|colorbox|fcolorbox ?\{[A-Za-z]{1,20}\}) ?\{[A-Za-z]{1,20}\}")
_UNSEEN = re.compile(r"\\(?:[hv]?phantom|(?:text)?color ?\{white\}|[hv]space\*?) ?(?:\{(?:[^{}]|\{[^{}]*\})*\}|.)")
_PRIME = re.compile(r"\^ ?(?:\\prime(?![A-Za-z])|\{ ?\\prime ?\})")
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\*?\s?\{{([^{{}}]*)\}}")
_VECTOR = re.compile(r"\\(?:mathbf|boldsymbol|bm|mathit) ?\{ ?([A-Za-z]) ?\}")
_WRAPPER = re.compile(rf"(\\(?:{_TEXT_COMMANDS})\*?\s?)?\{{")
_ANNOUNCED = re.compile(r'^ ?"? ?(?:the )?(?:final )?answer(?: is:?|:) ?"? ?(?=.)', re.IGNORECASE)
_OPERATOR = re.compile(r"\\operatorname\*? ?\{ ?([A-Za-z]+) ?\}")
EMPHASIS = re.compile(r"(?<![\w*])(\*\*|__|\*|_)(?=[^\s*_])([^*_]+)(?<=\S)\1(?![\w*])")
_BRACED_MARK = re.compile(r"(?<![A-Za-z])\{ ?([,.:]) ?\}")
_DEGREE = re.compile(r"(?:\^ ?\{ ?\\degree ?\}|\^? ?\\degree(?![A-Za-z]))(?: ?\"? ?(?P<scale>[CF]) ?\"?$)?")
_DEGREE_UNITS = {"": "degree", "C": "degree/celsius", "F": "degree/fahrenheit"}
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_WORD_NAME = re.compile(r'(?:"[A-Za-z ]{2,40}"|[A-Za-z ]{4,40}) ?= ?([^=]+)')
_CURRENCY = re.compile(r"^ ?(?:USD|US(?= ?\\?\$)|EUR|GBP|Rs\.?) ?(?=[\d\\$])")
_CURRENCY_OR_DELIMITER = re.compile(r"\\?\$|\\[()\[\]]|[€£¥₹¢]")
_UNIT_FRACTION = re.compile(r'\\frac ?\{ ?"([^"]*)" ?\} ?\{ ?"([^"]*)" ?\}')
_CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}")
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_WORD_COMMANDS = {
    **{name: f"\\{name} " for name in words("pi theta alpha beta gamma delta lambda sigma omega phi")},
    **{name: f"\\{name} " for name in words("sin cos tan cot sec csc ln log exp arcsin arccos arctan sinh cosh tanh")},
    **{"Pi": "\\pi ", "oo": "\\infty ", "inf": "\\infty ", "infinity": "\\infty "},
}
_WORD_COMMAND = re.compile(rf"(?<![A-Za-z\\])({'|'.join(_WORD_COMMANDS)})(?![A-Za-z])")
_FRACTION = re.compile(r"\\frac ?(\d|[A-Za-z]|\{[^{}]*\}) ?(\d|[A-Za-z]|\{[^{}]*\})")
_ROOT = re.compile(r"\\?sqrt ?(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))")
_ROOT_CALL = re.compile(r"(?<![A-Za-z\\])\\?sqrt ?\(([^()]*)\)|\\sqrt ?\(([^()]*)\)")
_ROOT_WORD = re.compile(r"(?<![A-Za-z\\])sqrt(?=[\d({ ])")
_INDEXED_ROOT = re.compile(r"(\\sqrt ?\[\d\]) ?(\d+|[A-Za-z](?![A-Za-z]))")
_EXPONENT = re.compile(r"\^ ?(-?\d+)(?![.\d])|\^ ?\{?(-?\d*\.\d+)\}?")
_EXPONENT_CALL = re.compile(r"\^ ?\(([^(){}]*)\)")
_SCRIPT = re.compile(r"([_^])\{([0-9A-Za-z])\}(?! ?\d)")
_SPACED_SCRIPT = re.compile(r"([_^])(\d) (?=\d)")
_SPACES = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])|(?<=\d) (?=\d)|( )")
_MIXED = re.compile(r"([-+]?\d+) (\d+) ?/ ?(\d+)")
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?|[-+]?\d*\.\d{3}(?: \d{3})*(?: \d{1,3})")
_THOUSANDS = re.compile(
    r"(?<![\w.,'])(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|\d{1,3}(?:'\d{3})+)(?!\d|[,']\d)"
)
_NUMBERS_ONLY = re.compile(r"[-+\d,.']*%?")
_AFTER_TERM = r"(?:(?<=[\d})\]])|(?<=[\d})\]] )|(?<=[\d})\]], )|(?<=\b[A-Za-z] )|(?<=\b[A-Za-z], ))"
_DECIMAL_COMMA = re.compile(r"\d(?:,|\{,\})\d")
_CONNECTOR = re.compile(rf'(?: ?,)? ?(?:" ?(?:, ?)?(?:or|and) ?"|{_AFTER_TERM}(?:or|and)\b)')
_RELATION = re.compile(r"[<>]|\\[lg]e(?![A-Za-z])")
_JOINT = re.compile(r"\\(?:vee|wedge)(?![A-Za-z]) ?")
_SPACED_E = re.compile(r"(?<=\d) +e(?= ?[-+]? ?\d)|(?<=\d)e(?= +[-+]? ?\d|[-+] \d)")
_ORDINAL = re.compile(r"(?<=\d) ?\^? ?\{? ?(?:st|nd|rd|th) ?\}?$")
_LOGARITHMS = (
    (re.compile(r"\\?(?<![A-Za-z])lg(?![A-Za-z])"), r"\\log_{10}"),
    (re.compile(r"\\?(?<![A-Za-z])log_ ?(?:e|\{ ?e ?\})(?![A-Za-z])"), r"\\ln "),
)
_CHOICE = re.compile(r"(?:(?i:option|choice|answer):? ?\(?([A-Za-z])\)?|\(?([A-Za-z])[).:])")
_REMAINDER = re.compile(r"(\d+) ?(?:[Rr]|[Rr]em\.|[Rr]emainder) ?(\d+)")
_LABELLED = re.compile(
    r'(?:"\(([A-J])\)[ .:]*" ?|"?\(([A-J])\)"?[.:]? (?![-+*/^=<>])|([A-J])[.):] )(?![,)])((?:(?!\([A-J]\)).)+)',
    re.DOTALL,
)
_SET_BUILDER = re.compile(r"\\\{([A-Za-z])(?:\\in ?\\mathbb\{R\})?(?:\\mid ?|:|\|)(.+)\\\}", re.DOTALL)
_MODULUS = re.compile(r"\\(pmod|bmod|mod) ?(\d+)")
_LEADING_PLUS = re.compile(r"(?:^|(?<=[=({,]))\+")
_ARTICLE = re.compile(r"(?:an?|the) (?=.{3})")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{([A-Za-z]{1,16})\}")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASE_NAME = f"\\d+|{'|'.join(_BASES)}"
_BASE = re.compile(
    rf'(?<=[0-9A-F])(?:_ ?\{{ ?"? ?(?:base )?({_BASE_NAME}) ?"? ?\}}| ?"? ?\(?base[- ]({_BASE_NAME})\)? ?"?$)'
)
_RATIO = re.compile(r"(\d+) +to +(\d+)")
_ACCENT = re.compile(r"\\(vec|hat|bar|overline|tilde) ([A-Za-z])(?![A-Za-z])")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Characters that no one can see: a text with one is never taken for an answer."""


_FUNCTIONS = words(
    "frac sqrt sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh max min gcd lcm mod infty "
    "pmatrix begin end binom"
)
_SHORT_WORDS = words(
    "is or no of to in at by if it we so as an on up go the and not yes are was for but all any one two six ten "
    "odd may can got had has our its you"
)


_SYNONYMS = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers"), "\\mathbb{R}"),
    **dict.fromkeys(("no solution", "no solutions", "empty set"), "\\emptyset"),
    "does not exist": "dne",
}


def canonical_answer(answer: str) -> str:
    """A spelling that equal answers share, for counting votes: "0.50", "1/2" and ``$\\frac12$`` are all "1/2".

    Units and per cent signs are dropped, the elements of tuples and intervals are brought to normal form each, and
    those of sets and bare lists are sorted. Equal expressions in different forms, such as ``2(x+1)`` and ``2x+2``,
    stay different: to see that they are equal takes a :class:`~stepalign.domains.math.grading.Grader`.
    """
    return _canonical(normal_form(answer))


def _canonical(answer: Answer) -> str:
    if answer.label:
        return answer.label.lower()
    if answer.number is not None:
        return str(answer.number)
    sequence = split_sequence(answer.text)
    if sequence is None or as_interval(answer.text):
        return (as_interval(answer.text) or ("", answer.text))[1]
    items = [_canonical(normal_form(item)) for item in sequence.items]
    return sequence.opening + ",".join(items) + sequence.closing if sequence.ordered else ",".join(sorted(items))


def normal_form(answer: str, *, grouped: bool = True) -> Answer:
    """Strip what does not change the meaning of an answer, and read it as a number where it is a plain one.

    Args:
        grouped: whether "105,210" is one number; else every comma separates.
    """
    text = answer.strip()
    if len(text) > MAX_LENGTH or depth(text) > MAX_DEPTH:
        return Answer(text)
    text = unicodedata.normalize("NFKC", _RAISED.sub(_lowered, text.translate(_CHARACTERS)))
    text = _GROUPING.sub("," if grouped else ", ", EMPHASIS.sub(r"\2", text).strip("`* \t\n"))
    text = _PRIME.sub("'", _COLOUR.sub("", _UNSEEN.sub("", text)).replace("...", "\\ldots "))
    text = _OPERATOR.sub(r"\\\1 ", _COMMAND.sub(_plain_command, text))
    text = _OVER.sub(r"\\frac{\1}{\2}", _CHOOSE.sub(r"\\binom{\1}{\2}", text))
    text = _unwrapped(text if text.endswith("\\\\") else text.removesuffix("\\"))
    unit = currency_of(text)
    text = _CURRENCY_OR_DELIMITER.sub("", _CURRENCY.sub("", text)).replace("\\%", "%")
    text = _SCRIPT.sub(r"\1\2", _BRACED_MARK.sub(r"\1", text))
    text = _VECTOR.sub(r"\1", text)
    for _ in range(2):  # \text{\textbf{...}}
        text = _TEXT.sub(_quoted, text)
    text = _ANNOUNCED.sub("", re.sub(r'"\s*([.,;:])\s*"', r"\1", text))
    text = _BASE.sub(lambda m: f"_{_BASES.get(m[1] or m[2], m[1] or m[2])}", _UNIT_FRACTION.sub(r'"\1/\2"', text))
    if "\\begin" not in text:
        text = re.sub(r"\\?&&?(?=[^&]*$)", _separator, text)
    text = " ".join(_CONNECTOR.sub(_separator, " ".join(text.split())).split()).rstrip(".,;: ")
    if "\\begin" not in text:
        text = text.replace("\\&", "&").replace("&", ", ").replace("\\\\", ", ").replace(";", ", ")
    if labelled := _LABELLED.fullmatch(text):
        content = normal_form(labelled[4])
        return replace(content, label=labelled[1] or labelled[2] or labelled[3]) if content.text else content
    if text.startswith('"') and text.endswith('"') and text.count('"') == 2:
        text = text.strip('" ').rstrip(".,;: ")
    if name := _WORD_NAME.fullmatch(text):
        text = name.group(1)
    listed, text = text, _without_grouping(text) if grouped else text
    if _TRIGONOMETRIC.search(text):
        text = _DEGREE.sub(r"\\pi/180", text)
    elif degree := _DEGREE.search(text):
        text, unit = _DEGREE.sub("", text), _DEGREE_UNITS[degree["scale"] or ""]
    listed = answer if listed != text and "," in listed else ""
    text, named_unit = split_unit(text, lambda head: parse_number(_tidy(head)))
    text = _tidy(text)
    if _JOINT.search(text) and not as_interval(text):
        text = _JOINT.sub(",", text)
    comma = _DECIMAL_COMMA.search(answer) is not None
    return Answer(text, named_unit or unit, parse_number(text), listed=listed, decimal_comma=comma)


def is_prose(text: str) -> bool:
    """Whether a normal form holds words, so that reading it as mathematics would only pick numbers out of it."""
    if re.search(r"\d \d", text):
        return True
    found = _WORD.findall(_ENVIRONMENT.sub("", text))
    return any(word in _SHORT_WORDS or (len(word) > 3 and word not in _FUNCTIONS) for word in found)


def _separator(match: re.Match[str]) -> str:
    """A comma for "and" and "or", but between two inequalities, where they mean different things."""
    between = all(_RELATION.search(side) for side in (match.string[: match.start()], match.string[match.end() :]))
    return (" \\vee " if "or" in match[0] else " \\wedge ") if between else ", "


def _lowered(match: re.Match[str]) -> str:
    """Raised, lowered and vulgar digits as LaTeX."""
    plain = unicodedata.normalize("NFKC", match[0]).replace("−", "-")
    if "⁄" in plain:
        return "\\frac{{{}}}{{{}}}".format(*plain.split("⁄"))
    return f"{'_' if match[0][0] in '₀₁₂₃₄₅₆₇₈₉' else '^'}{{{plain}}}"


def _plain_command(match: re.Match[str]) -> str:
    """One LaTeX command in the spelling used here; a line break of a matrix is kept."""
    line_break, name, negative_space, _ = match.groups()
    if line_break:
        return line_break
    if name:
        return _COMMANDS.get(name, match.group())
    return "" if negative_space else " "


def _unwrapped(text: str) -> str:
    """Without braces around the whole, and without a text command around formulas."""
    while (wrapper := _WRAPPER.match(text)) and closing_bracket(text) == len(text) - 1:
        if wrapper[1] and "{" not in text[wrapper.end() :]:
            break
        text = text[wrapper.end() : -1].strip()
    return text


def _quoted(match: re.Match[str]) -> str:
    return ' "' + match.group(1).replace('"', "") + '" '


def _without_grouping(text: str) -> str:
    """Without the commas that group digits: in a number alone, beside an operator or a letter, or where other commas
    are followed by a space; in brackets every comma separates."""
    if _NUMBERS_ONLY.fullmatch(text) and not _THOUSANDS.fullmatch(text.lstrip("+-").rstrip("%").partition(".")[0]):
        return text
    return _THOUSANDS.sub(lambda m: m[0] if _is_bracketed(text, m.start()) else re.sub("[,']", "", m[0]), text)


def _is_bracketed(text: str, place: int) -> bool:
    before = text[:place]
    return any(before.count(one) > before.count(other) for one, other in ("()", "[]", ("\\{", "\\}")))


def _tidy(text: str) -> str:
    """Spell fractions, roots, scripts and spacing in one way."""
    text = text.replace('"', "").strip().rstrip(".,;: ").lstrip("= ")
    if choice := _CHOICE.fullmatch(text):
        text = choice[1] or choice[2]
    text = _SPACED_E.sub("\\\\times e", _ORDINAL.sub("", text))
    for logarithm, spelling in _LOGARITHMS:
        text = logarithm.sub(spelling, text)
    if mixed := _MIXED.fullmatch(text):
        text = f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    text = _RATIO.sub(r"\1:\2", text) if _RATIO.fullmatch(text) else text
    text = _REMAINDER.sub(r"\1R\2", text) if _REMAINDER.fullmatch(text) else text
    text = _ACCENT.sub(r"\\\1{\2}", text)
    text = _FRACTION.sub(lambda m: f"\\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    text = _ROOT_CALL.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = _INDEXED_ROOT.sub(r"\1{\2}", _ROOT_WORD.sub(r"\\sqrt", _ROOT.sub(r"\\sqrt{\1}", text)))
    text = _WORD_COMMAND.sub(lambda m: _WORD_COMMANDS[m[1]], text)
    text = _EXPONENT_CALL.sub(r"^{\1}", text.replace("**", "^"))
    text = _EXPONENT.sub(lambda m: f"^{{{m[1] or Fraction(m[2])}}}", text)
    text = _SPACED_SCRIPT.sub(r"\1{\2}", _SCRIPT.sub(r"\1\2", text))
    text = re.sub(r"\\not ?=", r"\\ne ", text)
    text = text.replace("<=", "\\le ").replace(">=", "\\ge ").replace("!=", "\\ne ").replace("==", "=")
    text = _SPACES.sub(lambda m: "" if m[1] else m[0], " ".join(text.split()))
    while text.startswith("{") and text.endswith("}") and closing_bracket(text) == len(text) - 1:
        text = text[1:-1]
    if is_prose(text.lower()):
        prose = _ARTICLE.sub("", text.lower(), count=1) if _ARTICLE.match(text.lower()) else text.lower()
        return _SYNONYMS.get(prose, prose)
    if re.fullmatch(r"[A-Za-z]+", text) and not re.fullmatch(r"[A-Z]{2,3}", text):
        return text.lower()
    return _both_signs(_plain_set(_MODULUS.sub(r"\\\1{\2}", text)))


def _plain_set(text: str) -> str:
    """``\\{x \\mid x > 2\\}`` as its condition, and a set of one tuple as that tuple."""
    if builder := _SET_BUILDER.fullmatch(text):
        return builder[2]
    inside = text[2:-2]
    alone = text.startswith("\\{(") and text.endswith(")\\}") and closing_bracket(inside) == len(inside) - 1
    return inside if alone else text


def _both_signs(text: str) -> str:
    """Every element with a plus-minus sign as two: "\\pm 3" is "3,-3"."""
    if "\\pm" not in text or text.startswith(("(", "[")) or "\\pmatrix" in text:
        return text
    is_set = text.startswith("\\{") and text.endswith("\\}")
    items: list[str] = []
    for item in split_top(text[2:-2] if is_set else text, ","):
        signs = ("+-", "-+") if re.search(r"\\pm(?![A-Za-z])", item) else ()
        items += [_with_signs(item, *pm_and_mp) for pm_and_mp in signs] or [item]
    return f"\\{{{','.join(items)}\\}}" if is_set else ",".join(items)


def _with_signs(text: str, pm: str, mp: str) -> str:
    text = re.sub(r"\\pm(?![A-Za-z]) ?", pm, text)
    return _LEADING_PLUS.sub("", re.sub(r"\\mp(?![A-Za-z]) ?", mp, text))
