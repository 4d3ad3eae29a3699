// The attempt under each context: one row per step, one column per view, the same line breaks in all of them.

const FIRST_TOKENS = 1200; // drawn at once, over all panels; the rest follows while the page is idle
const STRETCH = 400; // tokens drawn in one go

let cells = []; // cells[panel][token] -> the token's element
let waiting = []; // stretches of tokens that are not drawn yet
let idle = 0;

function drawPanels() {
  const rollout = current();
  const shown = views();
  const values = shown.map((view) => valuesOf(rollout, view));
  const pen = { rollout, special: new Set(rollout.special), joined: new Set(rollout.joined) };
  const sums = rollout.steps.map((step) => values.map((list) => total(list.slice(step[2], step[3]))));
  const largest = Math.max(...sums.flat().map(Math.abs), 1e-9);
  const grid = document.createDocumentFragment();
  cells = shown.map(() => []);
  waiting = [];
  shown.forEach((view, panel) => grid.append(panelHead(rollout, view, values[panel])));
  rollout.steps.forEach((step, at) => {
    const closed = state.collapsed.has(at);
    grid.append(stepHead(step, at, closed));
    shown.forEach((view, panel) => {
      const fates = view.pair ? [] : fatesOf(rollout, view.context, at);
      const cell = h("div", { class: "cell", "data-step": at },
        stepSum(sums[at][panel], mean(values[panel].slice(step[2], step[3])), largest, view, fates));
      if (!closed) {
        const run = h("div", { class: "run", role: "list", "aria-label": view.title + ", " + stepName(step) });
        const beside = state.beside && !view.pair ? feedbackStep(rollout, view.context, step, fates) : null;
        cell.append(beside ? h("div", { class: "beside" }, run, beside) : run);
        for (let from = step[2]; from < step[3]; from += STRETCH) {
          waiting.push({ ...pen, run, step, panel, values: values[panel], top: limit(view), from, to: Math.min(from + STRETCH, step[3]) });
        }
      }
      grid.append(cell);
    });
  });
  if (!numeric()) shown.forEach((view) => grid.append(feedback(rollout, view)));
  part.panels.className = "panels of-" + shown.length + (state.beside ? " with-feedback" : "");
  part.panels.replaceChildren(grid);
  drawWaiting(FIRST_TOKENS);
}

// Draws the stretches that wait, at least as many tokens as asked for, and the rest when the page has nothing to do.
function drawWaiting(tokens = Infinity) {
  clearTimeout(idle);
  let drawn = 0;
  while (waiting.length && drawn < tokens) {
    const stretch = waiting.shift();
    drawStretch(stretch);
    drawn += stretch.to - stretch.from;
  }
  if (waiting.length) idle = setTimeout(drawWaiting, 16, 2 * FIRST_TOKENS); // behind the next frame
  else if (part.panels) { part.panels.removeAttribute("aria-busy"); markCursor(); if (state.search) markHits(); }
  if (waiting.length) part.panels.setAttribute("aria-busy", "true");
}

// A line break and the indentation behind it are often one token: the blanks are shown where the next step begins.
const indentBehind = (piece) => (/\n([ \t]+)$/.exec(piece) || ["", ""])[1];

function drawStretch({ rollout, run, step, panel, values, top, special, joined, from, to }) {
  const out = document.createDocumentFragment();
  for (let token = from; token < to; token += 1) {
    if (token === step[2] && token) out.append(indentBehind(rollout.pieces[token - 1]));
    const gap = rollout.gaps[token];
    if (gap) out.append(h("span", { class: "gap", role: "listitem", "aria-label": "not a token: " + visible(gap), text: shape(gap) }));
    const piece = token === step[3] - 1 ? rollout.pieces[token].replace(/\n[ \t]+$/, "\n") : rollout.pieces[token];
    const cell = tokenCell(rollout, token, piece, values[token], top, special.has(token), joined.has(token));
    cells[panel][token] = cell;
    cell.dataset.panel = panel;
    out.append(cell);
    const breaks = /\n*$/.exec(rollout.pieces[token])[0];
    if (breaks && token < step[3] - 1) out.append(breaks);
  }
  const rest = rollout.gaps[rollout.pieces.length];
  if (rest && to === rollout.pieces.length) out.append(h("span", { class: "gap", role: "listitem", text: shape(rest) }));
  run.append(out);
}

function tokenCell(rollout, token, piece, value, top, special, joined) {
  const cell = document.createElement("span");
  const at = level(value, top);
  let look = "t " + levelClass(at);
  if (at) look += at > 0 ? " up" : " down";
  if (Math.abs(at) >= LEVELS * 0.4) look += " strong";
  if (beyond(value, top)) look += " clip";
  if (!known(value)) look += " unscored";
  if (special) look += " special";
  if (joined) look += " joined";
  cell.className = look;
  cell.dataset.t = token;
  cell.tabIndex = -1;
  cell.setAttribute("role", "listitem");
  const text = joined ? "\u205e" : shape(piece) || "\u2205";
  cell.textContent = text;
  cell.setAttribute("aria-label", "token " + token + ", " + (joined ? "further piece of the character before" : text) + ", " + NAMES().value + " " + signed(value, 3));
  return cell;
}

function panelHead(rollout, view, values) {
  const facts = [];
  if (!view.pair) {
    const entry = contextOf(rollout, view.context);
    if (entry.case) facts.push("critique case " + visible(entry.case));
    if (entry.first_error) facts.push("the critic\u2019s first error: step " + visible(entry.first_error));
    if (entry.dropped) facts.push(plural(entry.dropped, "token") + " at its end did not fit and were not shown");
    if (entry.alignment) facts.push(alignmentFacts(entry.alignment));
  }
  facts.push("\u03a3 " + signed(total(values), 2) + (numeric() ? "" : " " + visible(data.unit)), "mean " + signed(mean(values), numeric() ? 4 : 3));
  return h("div", { class: "panel-head" }, h("h3", { text: view.title }), h("p", { text: facts.join(" \u00b7 ") }));
}

function feedback(rollout, view) {
  const sides = view.pair || [view.context];
  return h("div", { class: "feedback", "data-noexport": true }, ...sides.flatMap((context) => {
    const { text, prompt } = contextOf(rollout, context);
    const fold = (title, words, shut) => h("details", { open: !shut },
      h("summary", {}, h("span", { class: view.pair ? null : "phone-only", text: label(context) + ": " }), h("span", { text: title })),
      h("pre", { class: "raw", tabindex: "0", role: "region", "aria-label": title + ": " + label(context), text: words ? visible(words) : "(nothing)" }));
    return [fold("Shown to the self-teacher", text, view.pair || lab || (state.beside && fatesKnown(rollout, context))), prompt ? fold("The whole prompt", prompt, true) : null].filter(known);
  }));
}

function stepHead(step, at, closed) {
  const status = statusOf(step);
  return h("div", { class: "step-head is-" + status },
    h("button", { type: "button", "aria-expanded": String(!closed), onclick: () => toggleStep(at) },
      h("span", { class: "fold", "aria-hidden": "true", text: closed ? "\u25b8" : "\u25be" }), h("span", { class: "step-name", text: stepName(step) })),
    h("span", { class: "badge is-" + status, text: STATUS[status] }),
    h("span", { class: "step-size", text: plural(step[3] - step[2], "token") }));
}

function stepSum(sum, average, largest, view, fates) {
  const bar = s("svg", { class: "sum-bar", viewBox: "0 0 60 8", width: "60", height: "8", "aria-hidden": "true" });
  const size = (Math.abs(sum) / largest) * 29;
  bar.append(s("rect", { class: sum < 0 ? "minus" : "plus", x: sum < 0 ? 30 - size : 30, y: 1, width: size, height: 6 }));
  bar.append(s("line", { class: "rule", x1: 30, x2: 30, y1: 0, y2: 8 }));
  return h("p", { class: "step-sum" }, h("span", { class: "phone-only", text: view.title }), bar,
    h("span", { text: "\u03a3 " + signed(sum, 2) }), h("span", { class: "faint", text: "mean " + signed(average, 2) }),
    ...fates.map((row) => h("span", { class: "fate is-" + row.fate, text: FATE[row.fate] })));
}
