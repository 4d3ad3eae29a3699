// Everything a reader does to the view, and the keys that do it.

// Shows a rollout, at once where its data are open already.
function open(at, token) {
  if (!data.rollouts[at]) return undefined;
  const found = fetchRollout(at);
  const show = () => {
    Object.assign(state, { rollout: at, pins: [], range: null, token: Math.max(0, Math.min(token || 0, current().pieces.length - 1)) });
    state.collapsed.clear();
    markCurrent();
    drawRollout();
    writeHash();
    for (const near of [at + 1, at - 1]) if (data.rollouts[near]) fetchRollout(near);
  };
  if (!(found instanceof Promise)) { show(); return undefined; }
  root.setAttribute("aria-busy", "true");
  return found.then(() => { root.removeAttribute("aria-busy"); show(); });
}

function neighbour(by) {
  const list = listed().map(({ at }) => at);
  const place = list.indexOf(state.rollout);
  const next = list[place < 0 ? 0 : (place + by + list.length) % list.length];
  if (known(next)) open(next);
}

function moveTo(token) {
  reveal(token);
  writeHash();
}

function moveStep(by) {
  const steps = current().steps;
  const step = stepOf(current(), state.token);
  // Backwards first to the start of the current step, then to the step before: as in a music player.
  const target = by < 0 && steps[step] && state.token > steps[step][2] ? step : step + by;
  if (steps[target]) moveTo(steps[target][2]);
}

// The nearest token on the line above or below.
function moveLine(by) {
  drawWaiting();
  const panel = cells[Math.min(state.panel, cells.length - 1)];
  const here = panel[state.token] && panel[state.token].getClientRects()[0];
  if (!here) return;
  let best = null;
  for (let token = state.token + by; panel[token]; token += by) {
    const box = panel[token].getClientRects()[0];
    if (!box || Math.abs(box.top - here.top) < 4) continue;
    const distance = Math.abs(box.left - here.left);
    if (best && Math.abs(box.top - best.top) > 4) break;
    if (!best || distance < best.distance) best = { token, distance, top: box.top };
  }
  if (best) moveTo(best.token);
}

function jumpStrongest() {
  const lists = views().map((view) => valuesOf(current(), view));
  const best = lists.map((values) => ({ values, at: strongest(values) })).filter(({ at }) => at >= 0)
    .reduce((a, b) => (!a || Math.abs(b.values[b.at]) > Math.abs(a.values[a.at]) ? b : a), null);
  if (best) moveTo(best.at);
}

function toggleContext(at) {
  const context = available(current())[at];
  if (!known(context)) return;
  if (state.shown.includes(context)) {
    if (state.shown.filter((one) => contextOf(current(), one)).length > 1) state.shown = state.shown.filter((one) => one !== context);
  } else if (state.shown.length < 4) state.shown = [...state.shown, context].sort((a, b) => a - b);
  if (state.shown.length < 2) state.diff = false;
  redraw();
  writeHash();
}

function toggleDifference() {
  const all = available(current());
  if (all.length < 2) return;
  state.diff = !state.diff;
  if (state.diff && state.shown.filter((context) => all.includes(context)).length < 2) state.shown = all.slice(0, 2);
  redraw();
  writeHash();
}

function flip(name) {
  state[name] = !state[name];
  redraw();
  writeHash();
}

const toggleBeside = () => flip("beside");
const toggleCalibrated = () => { if (!state.diff) flip("calibrated"); };

function toggleStep(at) {
  if (!state.collapsed.delete(at)) state.collapsed.add(at);
  drawTools();
  drawPanels();
  select(state.token);
  const button = part.panels.querySelectorAll(".step-head button")[at];
  if (button) button.focus();
}

function foldAll() {
  const steps = current().steps;
  state.collapsed = new Set(state.collapsed.size ? [] : steps.keys());
  redraw();
}

// ---- keys

const KEYS = [
  ["\u2190 \u2192", "token before, after"], ["\u2191 \u2193", "line above, below"], ["n  p", "next, previous step"],
  ["[  ]", "previous, next rollout"], ["1 \u2013 4", "show or hide a context"], ["d", "difference of two contexts"],
  ["z", "A less that of the null context"], ["c", "the feedback beside the attempt"], ["f", "fold or open all steps"], ["g", "strongest token"], ["/", "search; Enter goes on"],
  ["+ \u2212 0", "strip: closer, wider, all"], ["Enter", "pin the token, or let go of it"], ["Esc", "let go of all"],
  ["Home  End", "first, last token"], ["e", "save the view as SVG"], ["?", "this list"],
];

function inView() {
  const box = root.getBoundingClientRect();
  return box.top < window.innerHeight * 0.6 && box.bottom > window.innerHeight * 0.3;
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || part.help.open || !stored.length) return;
  const inside = root.contains(event.target);
  if (!inside && !(event.target === document.body && inView())) return;
  if (event.target.closest("input, select, textarea, summary")) return;
  const last = current().pieces.length - 1;
  const acts = {
    ArrowRight: () => moveTo(state.token + 1), ArrowLeft: () => moveTo(state.token - 1),
    n: () => moveStep(1), p: () => moveStep(-1), "[": () => neighbour(-1), "]": () => neighbour(1),
    d: toggleDifference, c: toggleBeside, z: toggleCalibrated, f: foldAll, g: jumpStrongest, e: exportSvg, "?": () => part.help.showModal(),
    "/": () => part.search.focus(), "+": () => zoomBy(0.5), "-": () => zoomBy(2), 0: () => zoomTo(0, Infinity),
  };
  if (event.target.closest(".t")) {
    acts.ArrowDown = () => moveLine(1);
    acts.ArrowUp = () => moveLine(-1);
    acts.Home = () => moveTo(0);
    acts.End = () => moveTo(last);
    acts.Enter = () => pin(event.target.closest(".t"));
    acts[" "] = acts.Enter;
  }
  if (state.pins.length) acts.Escape = () => setPins([]);
  for (const digit of "1234") acts[digit] = () => toggleContext(Number(digit) - 1);
  const act = acts[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function buildHelp() {
  part.help = h("dialog", { class: "help", "aria-label": "Keyboard" }, h("h3", { text: "Keys" }),
    h("dl", {}, ...KEYS.flatMap(([key, text]) => [h("dt", {}, h("kbd", { text: key })), h("dd", { text })])),
    h("form", { method: "dialog" }, h("button", { class: "chip", text: "close" })));
  return part.help;
}
