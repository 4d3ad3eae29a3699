// A over token position. Drag to look closer, double-click to see all again; every strip shows the same range.

const FRAME = { left: 46, right: 10, top: 38, height: 84 };
const LEAST_RANGE = 8; // tokens

let cursors = []; // one per strip: moves its line to a token

const span = () => state.range || [0, current().pieces.length];

function drawStrips() {
  if (!stored.length || !part.strips.isConnected || !current()) return;
  const rollout = current();
  const width = Math.max(part.figure.clientWidth, 240);
  const all = views();
  cursors = [];
  keepingFocus(part.strips, () => part.strips.replaceChildren(
    ...all.map((view, at) => strip(rollout, view, width, at === all.length - 1)),
    rangeBar(rollout, width)));
  moveCursors();
}

function strip(rollout, view, width, last) {
  const values = valuesOf(rollout, view);
  const top = limit(view);
  const digits = top < 0.1 ? 4 : 1;
  const [from, to] = span();
  const wide = width - FRAME.left - FRAME.right;
  const height = FRAME.top + FRAME.height + (last ? 26 : 8);
  const x = (token) => FRAME.left + (wide * (Math.min(Math.max(token, from), to) - from)) / Math.max(to - from, 1);
  const y = (value) => FRAME.top + (FRAME.height * (top - Math.max(-top, Math.min(top, value)))) / (2 * top);
  const drawing = s("svg", { class: "strip", viewBox: "0 0 " + width + " " + height, width, height, role: "img",
    "aria-label": NAMES().value + " over token position, " + view.title + ", tokens " + from + " to " + (to - 1) });
  rollout.steps.forEach((step, index) => {
    const status = statusOf(step);
    const [left, right] = [x(step[2]), x(step[3])];
    if (right <= left) return;
    drawing.append(s("rect", { class: "band is-" + status + (index % 2 ? " odd" : ""), x: left, y: FRAME.top, width: right - left, height: FRAME.height }));
    if (right - left > 16) drawing.append(s("text", { class: "band-name is-" + status, x: left + 3, y: FRAME.top - 5 }, step[0] === "answer" ? "ans" : visible(step[0]).slice(0, 8)));
    if (status === "wrong" && step[2] >= from) drawing.append(s("line", { class: "error-line", x1: left, x2: left, y1: FRAME.top, y2: FRAME.top + FRAME.height }));
  });
  for (const tick of [top, 0, -top]) {
    drawing.append(s("line", { class: tick ? "grid" : "rule", x1: FRAME.left, x2: width - FRAME.right, y1: y(tick), y2: y(tick) }));
    drawing.append(s("text", { class: "tick", x: FRAME.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick ? signed(tick, digits) : "0"));
  }
  const stroke = Math.max(0.7, Math.min(7, (0.72 * wide) / Math.max(to - from, 1)));
  const paths = { plus: "", minus: "", clip: "" };
  for (let token = from; token < to; token += 1) {
    const value = values[token];
    if (!known(value) || !value) continue;
    const place = x(token + 0.5);
    paths[value > 0 ? "plus" : "minus"] += "M" + place.toFixed(2) + " " + y(0).toFixed(2) + "V" + y(value).toFixed(2);
    const out = value > 0 ? -4 : 4;
    if (beyond(value, top)) paths.clip += "M" + (place - 3).toFixed(2) + " " + (value > 0 ? FRAME.top : FRAME.top + FRAME.height) + "l3 " + out + "l3 " + -out + "z";
  }
  for (const name of ["plus", "minus"]) drawing.append(s("path", { class: "bars " + name, d: paths[name], "stroke-width": stroke }));
  drawing.append(s("path", { class: "clip-mark", d: paths.clip }));
  const line = s("line", { class: "cursor", x1: 0, x2: 0, y1: FRAME.top - 2, y2: FRAME.top + FRAME.height + 2 });
  const brush = s("rect", { class: "brush", x: 0, y: FRAME.top, width: 0, height: FRAME.height });
  drawing.append(line, brush, s("text", { class: "strip-name", x: FRAME.left, y: 14 }, view.title));
  if (last) {
    drawing.append(s("text", { class: "tick", x: FRAME.left, y: height - 8 }, "token " + from));
    drawing.append(s("text", { class: "tick", x: width - FRAME.right, y: height - 8, "text-anchor": "end" }, String(Math.max(to - 1, 0))));
  }
  cursors.push((token) => {
    line.setAttribute("x1", x(token + 0.5));
    line.setAttribute("x2", x(token + 0.5));
    line.setAttribute("visibility", token >= from && token < to ? "visible" : "hidden");
  });
  listen(drawing, brush, wide, x);
  return drawing;
}

function listen(drawing, brush, wide, x) {
  const [from, to] = span();
  const tokenAt = (event) => {
    const share = (event.clientX - drawing.getBoundingClientRect().left - FRAME.left) / wide;
    return Math.max(from, Math.min(to - 1, from + Math.floor(share * (to - from))));
  };
  let start = null;
  drawing.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = tokenAt(event);
    drawing.setPointerCapture(event.pointerId);
  });
  drawing.addEventListener("pointermove", (event) => {
    const here = tokenAt(event);
    if (start === null) { if (!state.pins.length) select(here); return; }
    const [left, right] = [Math.min(start, here), Math.max(start, here) + 1];
    brush.setAttribute("x", x(left));
    brush.setAttribute("width", right - left > 2 ? x(right) - x(left) : 0);
  });
  drawing.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const here = tokenAt(event);
    const [left, right] = [Math.min(start, here), Math.max(start, here) + 1];
    start = null;
    if (right - left > 2) zoomTo(left, right);
    else { reveal(here, { focus: false }); writeHash(); }
  });
  drawing.addEventListener("pointercancel", () => { start = null; brush.setAttribute("width", 0); });
  drawing.addEventListener("dblclick", () => zoomTo(0, Infinity));
}

// The place of the shown range in the attempt, and the way back.
function rangeBar(rollout, width) {
  const length = Math.max(rollout.pieces.length, 1);
  const [from, to] = span();
  const wide = width - FRAME.left - FRAME.right;
  const drawing = s("svg", { class: "range", viewBox: "0 0 " + width + " 8", width, height: 8, "aria-hidden": "true" });
  drawing.append(s("rect", { class: "range-all", x: FRAME.left, y: 2, width: wide, height: 4 }));
  drawing.append(s("rect", { class: "range-shown", x: FRAME.left + (wide * from) / length, y: 1, width: Math.max((wide * (to - from)) / length, 3), height: 6 }));
  const words = "tokens " + from + " \u2013 " + (to - 1) + " of " + rollout.pieces.length;
  return h("div", { class: "range-row", "data-noexport": true }, state.range ? drawing : null,
    h("p", { class: "range-acts" },
      h("span", { class: "faint", text: state.range ? words : "Drag across a strip to look closer." }),
      chip("closer", () => zoomBy(0.5), { key: "+" }),
      chip("wider", () => zoomBy(2), { key: "\u2212", off: !state.range }),
      chip("all", () => zoomTo(0, Infinity), { key: "0", off: !state.range, kind: "whole" })));
}

function zoomTo(from, to) {
  const length = current().pieces.length;
  const size = Math.min(length, Math.max(LEAST_RANGE, to - from));
  const start = Math.max(0, Math.min(from, length - size));
  state.range = size >= length ? null : [start, start + size];
  drawStrips();
  writeHash();
}

function zoomBy(factor) {
  const [from, to] = span();
  const size = Math.round((to - from) * factor);
  zoomTo(Math.round(state.token - size / 2), Math.round(state.token - size / 2) + size);
}

function moveCursors() {
  if (state.range && (state.token < state.range[0] || state.token >= state.range[1])) {
    const size = state.range[1] - state.range[0];
    const from = Math.max(0, Math.min(current().pieces.length - size, state.token - (size >> 1)));
    state.range = [from, from + size];
    drawStrips();
    return;
  }
  cursors.forEach((move) => move(state.token));
}
