// Text and numbers as a reader sees them; the twin of stepalign/report/text.py.

// Controls as pictures, invisible and direction marks as their code: nothing can hide in a text or turn it around.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|\p{Surrogate}/gu;

const visible = (text) => String(text).replace(INVISIBLE, (sign) => {
  const code = sign.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
});

// The text of a token's cell: newlines, tabs and lone blanks are marked; other blanks on request. The break a
// newline makes comes after the token, or a coloured sliver would hang at the start of the next line.
function shape(piece) {
  const breaks = /\n*$/.exec(piece)[0].length;
  const marked = visible(piece.slice(0, piece.length - breaks)).replace(/\t/g, "\u21e5\t").replace(/\n/g, "\u23ce\n");
  const text = marked + "\u23ce".repeat(breaks);
  return state.spaces || /^ +$/.test(piece) ? text.replace(/ /g, "\u00b7") : text;
}

const oneLine = (piece) => shape(piece).replace(/\n/g, "") || "\u2205";

const MISSING = "\u2013";
const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "\u2212");
const plain = (value, digits) => (known(value) ? minus(value.toFixed(digits)) : MISSING);
const chance = (logProb) => (known(logProb) ? (100 * Math.exp(logProb)).toFixed(1) + " %" : MISSING);
const plural = (count, noun) => count + " " + noun + (count === 1 ? "" : "s");

function signed(value, digits) {
  if (!known(value)) return MISSING;
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : minus((value > 0 ? "+" : "") + text);
}

const total = (values) => values.reduce((sum, value) => sum + (known(value) ? value : 0), 0);

function mean(values) {
  const defined = values.filter(known);
  return defined.length ? total(defined) / defined.length : null;
}

// Index of the largest |value|, -1 without any.
function strongest(values) {
  let best = -1;
  values.forEach((value, at) => {
    if (known(value) && (best < 0 || Math.abs(value) > Math.abs(values[best]))) best = at;
  });
  return best;
}
