// The cursor, the card of the token under it, and the pinned tokens.

function hover(event) {
  // A page that scrolls under a resting pointer reports it too; only a pointer that moves chooses a token.
  const moved = event.clientX !== hover.x || event.clientY !== hover.y;
  [hover.x, hover.y] = [event.clientX, event.clientY];
  const element = event.target.closest(".t");
  if (!element || !moved) return;
  const token = Number(element.dataset.t);
  if (state.pins.length) peek(element);
  else if (token !== state.token) select(token);
}

function markCursor() {
  cells.forEach((panel, at) => {
    for (const token of new Set([state.token, ...state.pins])) {
      const cell = panel[token];
      if (!cell) continue;
      cell.classList.toggle("cur", token === state.token);
      cell.classList.toggle("pin", state.pins.includes(token));
    }
    // One tab stop for all panels: the token under the cursor in the panel last used.
    const stop = panel[state.token];
    if (stop && at === Math.min(state.panel, cells.length - 1)) stop.tabIndex = 0;
  });
}

function clearCursor() {
  for (const panel of cells) {
    for (const token of new Set([state.token, ...state.pins])) {
      if (!panel[token]) continue;
      panel[token].classList.remove("cur", "pin");
      panel[token].tabIndex = -1;
    }
  }
}

function select(token) {
  clearCursor();
  state.token = Math.max(0, Math.min(current().pieces.length - 1, token));
  markCursor();
  moveCursors();
  drawDock();
}

// Pins a token, or lets go of it. While any is pinned the card stays on it, and the pointer shows a short card.
function pin(element) {
  if (!element) return;
  const token = Number(element.dataset.t);
  state.panel = Number(element.dataset.panel);
  setPins(state.pins.includes(token) ? state.pins.filter((one) => one !== token) : [...state.pins, token], token);
  element.focus({ preventScroll: true });
}

function setPins(pins, token = state.token) {
  clearCursor();
  state.pins = pins;
  unpeek();
  select(token);
  writeHash();
}

// Show a token wherever it is: open its step, draw it, bring it into view, give it the focus.
function reveal(token, { focus = true } = {}) {
  if (state.collapsed.delete(stepOf(current(), token))) drawPanels();
  drawWaiting();
  select(token);
  const cell = (cells[Math.min(state.panel, cells.length - 1)] || [])[state.token];
  if (!cell) return;
  if (focus) cell.focus({ preventScroll: true });
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function focusToken() {
  const cell = (cells[Math.min(state.panel, cells.length - 1)] || [])[state.token];
  if (cell) cell.focus({ preventScroll: true });
}

// ---- the short card beside the pointer

function peek(element) {
  const token = Number(element.dataset.t);
  const rollout = current();
  const rows = shownContexts().map((context) => h("p", {}, h("b", { text: signed(reading(rollout, context, token).ratio, 6) }), " " + label(context)));
  part.peek.replaceChildren(h("p", {}, h("code", { text: oneLine(rollout.pieces[token]) }), " token " + token), ...rows);
  part.peek.hidden = false;
  const box = element.getClientRects()[0];
  const card = part.peek.getBoundingClientRect();
  part.peek.style.left = Math.max(4, Math.min(box.left, document.documentElement.clientWidth - card.width - 4)) + "px";
  part.peek.style.top = (box.top > card.height + 8 ? box.top - card.height - 6 : box.bottom + 6) + "px";
}

function unpeek() {
  part.peek.hidden = true;
}

// ---- the card

const shownContexts = () => available(current()).filter((context) => state.shown.includes(context));

function drawDock() {
  const rollout = current();
  const token = state.token;
  if (!rollout.pieces.length) { part.dock.replaceChildren(h("p", { text: "This rollout has no tokens." })); return; }
  const step = rollout.steps[stepOf(rollout, token)];
  const contexts = numeric() ? available(rollout) : shownContexts();
  const readings = contexts.map((context) => reading(rollout, context, token));
  const pinned = state.pins.includes(token);
  const piece = rollout.joined.includes(token) ? "(piece of the character before)" : oneLine(rollout.pieces[token]);
  keepingFocus(part.dock, () => part.dock.replaceChildren(...[
    pinRow(rollout, contexts),
    h("div", { class: "dock-token" },
      h("code", { class: "dock-piece", text: piece }),
      h("p", { text: "token " + token + " of " + rollout.pieces.length + " \u00b7 id " + (known(rollout.ids[token]) ? rollout.ids[token] : MISSING) }),
      h("p", {}, h("span", { text: stepName(step) + " " }), step ? h("span", { class: "badge is-" + statusOf(step), text: STATUS[statusOf(step)] }) : null),
      h("p", { class: "dock-acts" },
        chip(pinned ? "pinned" : "pin", () => setPins(pinned ? state.pins.filter((one) => one !== token) : [...state.pins, token]), { pressed: pinned }),
        chip(state.pins.length > 1 ? "copy " + state.pins.length + " as JSON" : "copy JSON", (event) => copyCards(event.currentTarget), { kind: "copy" }))),
    scrollable("Values of token " + token, valueTable(contexts, readings, whatIfs(contexts, token))),
    alternatives(rollout, contexts, readings, token),
  ].filter(known)));
}

// Success of continuations from just before a token, where some were drawn.
function whatIfs(contexts, token) {
  const id = data.rollouts[state.rollout].id;
  const found = contexts.map((context) => (data.what_if || {})[id + " " + data.contexts[context].name + " " + token]);
  const row = (...cells) => h("tr", { class: "what-if" }, h("th", { scope: "row", text: "what if: right" }), ...cells);
  if (found.some(known)) return row(...found.map((text) => h("td", { text: text ? visible(text).replace(" as written, ", " as written,\n") : MISSING })));
  return lab ? row(h("td", { colspan: String(contexts.length) }, ...whatIfControls(token))) : null;
}

function valueTable(contexts, readings, more = null) {
  const row = (name, show, kind) => h("tr", { class: kind || null }, h("th", { scope: "row", text: name }), ...readings.map((values) => h("td", {}, ...[show(values)].flat())));
  const both = (logProb) => [h("span", { text: plain(logProb, 6) }), h("span", { class: "faint", text: " " + chance(logProb) })];
  return h("table", {},
    h("thead", {}, h("tr", {}, h("td", {}), ...contexts.map((context) => h("th", { scope: "col", text: label(context) })))),
    h("tbody", {}, ...(numeric() ? [
      row("value", (values) => h("b", { class: "value-a", text: signed(values.ratio, 6) }), "main"),
      row("log p", (values) => both(values.student)),
      row("entropy", (values) => plain(values.studentEntropy, data.digits)),
    ] : [
      row("A, " + visible(data.unit), (values) => h("b", { class: "value-a", text: signed(values.ratio, 6) }), "main"),
      readings.some((values) => known(values.calibrated)) ? row("A less the null\u2019s", (values) => h("b", { class: "value-calibrated", text: signed(values.calibrated, 6) })) : null,
      row("log p, student", (values) => both(values.student)),
      row("log p, self-teacher", (values) => both(values.teacher)),
      row("forward KL", (values) => plain(values.kl, data.digits)),
      row("entropies", (values) => plain(values.studentEntropy, data.digits) + " \u2192 " + plain(values.teacherEntropy, data.digits)),
    ]), differenceRow(contexts.length), more));
}

function differenceRow(width) {
  const [view] = views();
  const value = view.pair ? valuesOf(current(), view)[state.token] : null;
  if (!known(value)) return null;
  return h("tr", { class: "main" }, h("th", { scope: "row", text: "difference" }), h("td", { colspan: String(width) }, h("b", { class: "value-difference", text: signed(value, 6) })));
}

function pinRow(rollout, contexts) {
  if (!state.pins.length) return null;
  return h("ul", { class: "pins", "aria-label": "Pinned tokens" }, ...state.pins.map((token) => h("li", {},
    h("button", { type: "button", class: "pin-card", "aria-current": token === state.token ? "true" : null, onclick: () => reveal(token) },
      h("code", { text: oneLine(rollout.pieces[token]) }), h("span", { class: "faint", text: " " + token + " " }),
      h("span", { text: contexts.map((context) => signed(reading(rollout, context, token).ratio, 2)).join(" | ") })),
    h("button", { type: "button", class: "unpin", "aria-label": "Let go of token " + token, text: "\u00d7", onclick: () => setPins(state.pins.filter((one) => one !== token)) }))));
}

const bare = (text) => text.trim() || text;

function alternatives(rollout, contexts, readings, token) {
  const lists = [];
  if (readings[0] && readings[0].topStudent.length) lists.push(["Student would write", readings[0].topStudent]);
  contexts.forEach((context, at) => { if (readings[at].topTeacher.length) lists.push(["With " + label(context), readings[at].topTeacher]); });
  if (!lists.length) return null;
  if (!lab) contexts.forEach((context, at) => { const moved = exchange(readings[at], rollout.pieces[token]); if (moved) lists.push(["Gains and losses with " + label(context), moved]); });
  // A token that is a piece of a character shows a mark in its place. Stored alternatives may
  // come without the blank that a piece of running text carries in front.
  const written = bare(rollout.pieces[token]);
  const region = h("div", { class: "tops", tabindex: "0", role: "region", "aria-label": "Alternatives to token " + token }, ...lists.map(([title, flat]) => {
    if (Array.isArray(flat[0])) return exchangeList(title, flat);
    const items = [];
    for (let at = 0; at < flat.length; at += 2) {
      const bar = s("svg", { class: "chance", viewBox: "0 0 40 6", width: "40", height: "6", preserveAspectRatio: "none", "aria-hidden": "true" });
      bar.append(s("rect", { x: 0, y: 0, width: 40 * Math.exp(flat[at + 1]), height: 6 }));
      items.push(h("li", { class: bare(flat[at]) === written ? "written" : null }, h("code", { text: oneLine(flat[at].replace(/\ufffd/g, "\u205e")) }), bar, h("span", { text: chance(flat[at + 1]) })));
    }
    return h("div", {}, h("p", { class: "tops-title", title, text: title }), h("ol", {}, ...items));
  }));
  region.style.setProperty("--lists", lists.length);
  return region;
}

// The entries of the vocabulary whose probability the context moves most, and what moves among all that are not kept.
// An entry that one side does not keep is below all that it keeps; the written token is known on both.
function exchange({ topStudent, topTeacher, student, teacher }, piece) {
  if (!topStudent || !topStudent.length || !topTeacher.length) return null;
  const chances = (flat) => new Map(flat.flatMap((text, at) => (at % 2 ? [] : [[text, Math.exp(flat[at + 1])]])));
  const sides = [chances(topStudent), chances(topTeacher)];
  const least = sides.map((side) => Math.min(...side.values()));
  const written = sides.flatMap((side) => [...side.keys()]).find((text) => bare(text) === bare(piece)) || piece;
  [student, teacher].forEach((logProb, at) => { if (known(logProb)) sides[at].set(written, Math.exp(logProb)); });
  const change = (text) => (sides[1].get(text) || 0) - (sides[0].get(text) || 0);
  const texts = [...new Set(sides.flatMap((side) => [...side.keys()]))].sort((a, b) => Math.abs(change(b)) - Math.abs(change(a)));
  const moved = texts.filter((text) => Math.abs(change(text)) >= LEAST_CHANGE).slice(0, 5);
  if (!moved.length) return null;
  const rows = moved.map((text) => [text, ...sides.map((side, at) => (side.has(text) ? percent(side.get(text)) : "< " + percent(Math.max(least[at], 2 * LEAST_CHANGE)))), change(text)]);
  const rest = sides.map((side) => Math.max(0, 1 - total([...side.values()])));
  return [...rows, [null, ...rest.map(percent), rest[1] - rest[0]]];
}

const LEAST_CHANGE = 0.0005; // shown as 0.1 %
const percent = (value) => (100 * value).toFixed(1);

function exchangeList(title, rows) {
  return h("div", { class: "exchange" }, h("p", { class: "tops-title", title, text: title }), h("ol", {}, ...rows.map(([text, before, after, change]) =>
    h("li", {}, text === null ? h("span", { text: "all others" }) : h("code", { text: oneLine(text.replace(/\ufffd/g, "\u205e")) }),
      h("span", { class: "faint", text: before + " \u2192 " + after + " %" }),
      h("b", { text: signed(100 * change, 1) })))));
}

function copyCards(button) {
  const rollout = current();
  const cards = (state.pins.length ? state.pins : [state.token]).map((token) => ({
    rollout: rollout.id, token, id: rollout.ids[token], text: rollout.pieces[token], step: stepName(rollout.steps[stepOf(rollout, token)]),
    contexts: Object.fromEntries(available(rollout).map((context) => [data.contexts[context].name, reading(rollout, context, token)])),
  }));
  const say = (text) => { button.textContent = text; };
  if (!navigator.clipboard) { say("not allowed"); return; }
  navigator.clipboard.writeText(JSON.stringify(cards.length === 1 ? cards[0] : cards, null, 2)).then(() => say("copied"), () => say("not allowed"));
}
