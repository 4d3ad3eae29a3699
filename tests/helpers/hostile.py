"""Two hundred texts that a model, a critic or a data set could write to break out of a page or to fool its reader."""

from __future__ import annotations

from itertools import product

_ACTS = ("window.hit=1", "fetch('https://example.invalid/x')", "document.title='hit'", "alert(1)")
_ELEMENTS = (
    "<script>{act}</script>",
    "</script><script>{act}</script>",
    "<ScRiPt >{act}</sCrIpT>",
    "<img src=x onerror={act}>",
    "<svg/onload={act}>",
    "<svg><script>{act}</script></svg>",
    "<body onload={act}>",
    "<details open ontoggle={act}>",
    "<input autofocus onfocus={act}>",
    "<video><source onerror={act}>",
    '<iframe srcdoc="<script>parent.{act}</script>"></iframe>',
    "<a href=javascript:{act}>x</a>",
    "<form action=javascript:{act}><button autofocus>",
    "<math><mi xlink:href=javascript:{act}>x",
    "<object data=javascript:{act}>",
    '<embed src="javascript:{act}">',
    "<base href=https://example.invalid/>{act}",
    "<meta http-equiv=refresh content='0;url=javascript:{act}'>",
    "<link rel=stylesheet href=https://example.invalid/x.css>{act}",
    "<style>@import 'https://example.invalid/x.css';</style>{act}",
    "<style onload={act}>",
    "<template><script>{act}</script></template>",
    '<noscript><p title="</noscript><img src=x onerror={act}>">',
    '"><script>{act}</script>',
    "'><img src=x onerror={act}>",
    "`${{{act}}}`",
    "'-{act}-'",
    '\\";{act}//',
    "]]><script>{act}</script>",
    "--><script>{act}</script>",
    "<!--<script>{act}",
    "</textarea><script>{act}</script>",
    "</title><script>{act}</script>",
    "</pre></div></main></body></html><script>{act}</script>",
    '{{{{ constructor.constructor("{act}")() }}}}',
    "{{% for x in ().__class__.__base__.__subclasses__() %}}{act}{{% endfor %}}",
    "[x](javascript:{act})",
    "![x](https://example.invalid/{act})",
)
_ODD = (
    "{{ 7 * 7 }}{% raw %}", "${7*7}", "<%= 7*7 %>", "#{7*7}", "{{constructor}}",
    "\x1b[31mred\x1b]0;title\x07", "\x9b31mred", "\x00nul\x08\x7f", "\r\noverwritten\rline", "\x0b\x0c",
    "\u202egnirts desrever\u202c", "\u2066\u2067\u2068isolates\u2069", "\u200e\u200fmarks", "abc\u202e<tpircs>\u202c",
    "line\u2028separator\u2029end", "zero\u200bwidth\u200c\u200d\ufeff", "soft\xadhyphen", "\u180e\u061c",
    "\ud83d", "\udc00alone", "\ud800\ud800", "😀é漢字 👩\u200d👩\u200d👧", "Z̸̡̛͇a̷l̶g̵o̴" * 3,
    "\U000e0041\U000e007ftags", "\ufff9anchor\ufffaannotation\ufffb", "ﷺ" * 20, "\u0130stanbul \u1e9e \ufb01",
    "&lt;b&gt;&amp;&#60;script&#62;", "&#x3C;img src=x onerror=window.hit=1&#x3E;",
    "%3Cscript%3Ewindow.hit=1%3C/script%3E",
    "__proto__", "constructor", "toString", "hasOwnProperty", "null", "undefined", "NaN", "-0", "1e999",
    "[object Object]",
    "a" * 5000, "\n" * 50, "\t" * 50, " " * 200, "#rollout=../../etc", "https://example.invalid/x.png",
    "data:text/html,<script>window.hit=1</script>", "=cmd|' /C calc'!A0",
)  # fmt: skip

HOSTILE = [template.format(act=act) for template, act in product(_ELEMENTS, _ACTS)] + list(_ODD)
