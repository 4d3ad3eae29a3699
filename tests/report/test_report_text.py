from __future__ import annotations

import json
import math
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.report import text


@given(st.text())
def test_visible_text_has_no_control_or_direction_characters(sample: str) -> None:
    shown = text.visible(sample)
    assert all(unicodedata.category(sign) not in {"Cc", "Cs", "Zl", "Zp"} or sign in "\n\t" for sign in shown)
    assert not any(
        unicodedata.bidirectional(sign) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        for sign in shown
    )
    assert text.visible(shown) == shown


@pytest.mark.slow
@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_safe_json_is_inert_and_round_trips(value: object) -> None:
    out = text.safe_json(value)
    assert not set(out) & set("<>&\u2028\u2029")
    assert out.isascii()
    expected = json.loads(json.dumps(value), parse_constant=lambda _: None)
    assert json.loads(out) == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", True])
def test_undefined_is_a_dash_never_zero(value: object) -> None:
    assert {text.percent(value), text.count(value), text.decimal(value), text.signed(value), text.p_value(value)} == {
        "–"
    }


def test_numbers_read_as_written() -> None:
    assert text.percent(0.8421) == "84.2 %"
    assert text.signed_points(-0.0213) == "−2.1"
    assert text.count(15872) == "15,872"
    assert text.p_value(0.0001) == "< 0.001"
    assert [text.seconds(value) for value in (31.04, 187.3, 7260)] == ["31.0 s", "3 min 07 s", "2 h 01 min"]
    assert text.listing([]) == ""
    assert text.listing(["a", "b", "c"]) == "a, b and c"


def test_report_loads_no_torch() -> None:
    code = (
        "import sys, stepalign.report, stepalign.report.charts, stepalign.report.terminal, stepalign.report.table;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
