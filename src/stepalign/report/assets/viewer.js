"use strict";
// The token viewer. Text written by a solver or a critic is data: it only ever reaches the page through textContent.
// Nothing here asks the network for anything; exports are drawn in the page and handed over as files.
(() => {
  const root = document.getElementById("viewer");
  const source = document.getElementById("signal-data");
  if (!root || !source) return;

  // The scale; the same two functions as in stepalign/report/scale.py.
  const LEVELS = 16;
  const KNEE = 0.05;
  const CASES = {
    correct: "Fully correct",
    one_wrong_step: "One wrong step",
    incomplete: "Incomplete",
    wrong_approach: "Wrong approach",
  };
  const STATUS = { right: "right", wrong: "first wrong step", after_error: "after the error", unknown: "not judged" };
  const SVG = "http://www.w3.org/2000/svg";

  let data;
  let cells = []; // cells[panel][token] -> the token's element
  let cursors = []; // one per strip chart: moves its line to a token
  const state = {
    rollout: 0, token: 0, shown: [0, 1], diff: false, pinned: false, log: false, limit: "all", spaces: false,
    filter: "", sort: "file", collapsed: new Set(), panel: 0,
  };
  const part = {};

  // ---------------------------------------------------------------- small tools

  function h(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") element.textContent = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  function s(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Controls as pictures, invisible and direction marks as their code: nothing can hide in a text or turn it around.
  const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|\p{Surrogate}/gu;
  const visible = (text) => String(text).replace(INVISIBLE, (sign) => {
    const code = sign.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  });

  // What a token shows: newlines, tabs and blanks that stand alone are marked; other blanks on request. The break a
  // newline makes comes after the token, or a coloured sliver would hang at the start of the next line.
  function shape(piece) {
    const breaks = /\n*$/.exec(piece)[0].length;
    let text = visible(piece.slice(0, piece.length - breaks)).replace(/\t/g, "\u21e5\t").replace(/\n/g, "\u23ce\n") + "\u23ce".repeat(breaks);
    if (state.spaces || /^ +$/.test(piece)) text = text.replace(/ /g, "\u00b7");
    return text;
  }

  const known = (value) => value !== null && value !== undefined;
  const minus = (text) => text.replace("-", "\u2212");
  const signed = (value, digits) => {
    if (!known(value)) return "\u2013";
    const text = value.toFixed(digits);
    return Number(text) === 0 ? (0).toFixed(digits) : minus((value > 0 ? "+" : "") + text);
  };
  const plain = (value, digits) => (known(value) ? minus(value.toFixed(digits)) : "\u2013");
  const chance = (logProb) => (known(logProb) ? (100 * Math.exp(logProb)).toFixed(1) + " %" : "\u2013");
  const total = (values) => values.reduce((sum, value) => sum + (known(value) ? value : 0), 0);
  const mean = (values) => {
    const defined = values.filter(known);
    return defined.length ? total(defined) / defined.length : null;
  };

  function level(value, limit) {
    if (!known(value)) return 0;
    let share = Math.min(1, Math.abs(value) / limit);
    if (state.log) share = Math.log1p(share / KNEE) / Math.log1p(1 / KNEE);
    const size = Math.floor(share * LEVELS + 0.5);
    return value > 0 ? size : -size;
  }

  // The value at a share of the scale: the inverse of what level() does before rounding.
  const valueAt = (share, limit) => limit * (state.log ? KNEE * Math.expm1(share * Math.log1p(1 / KNEE)) : share);
  const levelClass = (at) => (at > 0 ? "p" + at : at < 0 ? "m" + -at : "z");

  function percentile(values, percent) {
    const sizes = values.filter(known).map(Math.abs).sort((a, b) => a - b);
    return sizes[Math.max(1, Math.ceil((percent / 100) * sizes.length)) - 1] || sizes[sizes.length - 1] || 1;
  }

  // ---------------------------------------------------------------- data

  async function load() {
    const stored = JSON.parse(source.textContent);
    if (!stored.deflate) return stored;
    const bytes = Uint8Array.from(atob(stored.deflate), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  const current = () => data.rollouts[state.rollout];
  const label = (context) => visible(data.contexts[context].label);
  const contextOf = (rollout, context) => rollout.contexts.find((entry) => entry.context === context);
  const available = (rollout) => rollout.contexts.map((entry) => entry.context);
  const side = (rollout, entry, key) => entry[key] || rollout[key] || [];

  // All that is stored about one token under one context.
  function reading(rollout, context, token) {
    const entry = contextOf(rollout, context);
    if (!entry) return {};
    const student = side(rollout, entry, "student")[token];
    const ratio = entry.a[token];
    const rest = entry.rest[token];
    return {
      ratio,
      student,
      teacher: known(rest) ? Math.round((student + ratio) * 1e6 + rest) / 1e6 : null,
      kl: entry.kl[token],
      studentEntropy: side(rollout, entry, "student_entropy")[token],
      teacherEntropy: entry.entropy[token],
      topStudent: side(rollout, entry, "top_student")[token] || [],
      topTeacher: (entry.top || [])[token] || [],
    };
  }

  // A view is what one panel shows: a context, or the difference of two.
  function views() {
    const rollout = current();
    const shown = state.shown.filter((context) => contextOf(rollout, context));
    if (state.diff && shown.length > 1) return [{ title: label(shown[0]) + " \u2212 " + label(shown[1]), pair: shown.slice(0, 2) }];
    return (shown.length ? shown : available(rollout).slice(0, 1)).map((context) => ({ title: label(context), context }));
  }

  function valuesOf(rollout, view) {
    if (!view.pair) return contextOf(rollout, view.context).a;
    const [first, second] = view.pair.map((context) => contextOf(rollout, context).a);
    return first.map((value, at) => (known(value) && known(second[at]) ? value - second[at] : null));
  }

  function limit() {
    if (state.limit === "all") return data.limit;
    const values = current().contexts.flatMap((entry) => entry.a);
    return state.limit === "rollout" ? percentile(values, data.percentile) : percentile(values, 100);
  }

  const stepOf = (rollout, token) => rollout.steps.findIndex((step) => token >= step[2] && token < step[3]);
  const stepName = (step) => {
    if (!step || step[0] === "") return step && step[1] !== "unknown" ? "Attempt" : "Text";
    return step[0] === "answer" ? "Answer" : "Step " + visible(step[0]);
  };

  function visibleRollouts() {
    const list = data.rollouts.map((rollout, at) => ({ rollout, at })).filter(({ rollout }) => !state.filter || rollout.case === state.filter);
    if (state.sort === "signal") list.sort((a, b) => b.rollout.strongest - a.rollout.strongest);
    if (state.sort === "length") list.sort((a, b) => b.rollout.pieces.length - a.rollout.pieces.length);
    return list;
  }

  // ---------------------------------------------------------------- frame of the viewer

  function build() {
    root.replaceChildren();
    part.filters = h("div", { class: "chips", role: "group", "aria-label": "Filter by case" });
    part.list = h("ol", { class: "rollouts", "aria-label": "Rollouts" });
    part.head = h("header", { class: "attempt-head" });
    part.tools = h("div", { class: "tools", role: "toolbar", "aria-label": "View" });
    part.legend = h("div", { class: "legend" });
    part.panels = h("div", { class: "panels" });
    part.strips = h("div", { class: "strips" });
    part.numbers = h("div", { class: "numbers" });
    part.dock = h("aside", { class: "dock", "aria-label": "Token under the cursor" });
    part.figure = h("div", { class: "figure" }, part.legend, part.panels, part.strips);
    part.main = h("div", { class: "view" }, part.head, part.tools, part.figure, part.numbers, part.dock);
    const sort = h("select", { "aria-label": "Order of the rollouts", onchange: (event) => { state.sort = event.target.value; drawList(); } },
      h("option", { value: "file", text: "as stored" }),
      h("option", { value: "signal", text: "strongest signal" }),
      h("option", { value: "length", text: "longest" }));
    const side = h("div", { class: "side" }, part.filters, h("label", { class: "sort" }, h("span", { text: "order" }), sort), part.list);
    root.append(side, part.main, help());
    part.panels.addEventListener("mouseover", (event) => hover(event.target.closest(".t")));
    part.panels.addEventListener("click", (event) => pin(event.target.closest(".t")));
    part.panels.addEventListener("focusin", (event) => {
      const token = event.target.closest(".t");
      if (token && !state.pinned) select(Number(token.dataset.t));
    });
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", () => { if (readHash()) drawRollout(); });
    let width = 0;
    new ResizeObserver(() => {
      if (Math.abs(part.main.clientWidth - width) > 2) { width = part.main.clientWidth; drawStrips(); }
    }).observe(part.main);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawStrips);
  }

  function drawList() {
    const cases = [...new Set(data.rollouts.map((rollout) => rollout.case))];
    const chip = (value, text) => h("button", {
      type: "button", class: "chip", "aria-pressed": String(state.filter === value), text,
      onclick: () => { state.filter = value; drawList(); },
    });
    part.filters.replaceChildren(chip("", "All " + data.rollouts.length), ...cases.filter(Boolean).map((name) =>
      chip(name, caseName(name) + " " + data.rollouts.filter((rollout) => rollout.case === name).length)));
    part.list.replaceChildren(...visibleRollouts().map(({ rollout, at }) => h("li", {},
      h("button", { type: "button", class: "rollout", "aria-current": at === state.rollout ? "true" : null, onclick: () => open(at) },
        h("span", { class: "rollout-top" }, h("b", { text: String(at + 1) }), h("span", { class: "case case-" + (CASES[rollout.case] ? rollout.case : "other"), text: caseName(rollout.case) })),
        h("span", { class: "rollout-question", text: visible(rollout.question) }),
        barcode(rollout)))));
  }

  const caseName = (name) => CASES[name] || (name ? visible(name).replace(/_/g, " ") : "no case");

  // Where the signal of a rollout falls, in the colours of the scale: the strongest A of each stretch of tokens.
  function barcode(rollout) {
    const bars = h("span", { class: "barcode", "aria-hidden": "true" });
    const context = state.shown.find((at) => contextOf(rollout, at));
    const entry = contextOf(rollout, known(context) ? context : 0) || rollout.contexts[0];
    if (!entry) return bars;
    const count = Math.min(48, entry.a.length);
    for (let bar = 0; bar < count; bar += 1) {
      const stretch = entry.a.slice(Math.floor((bar * entry.a.length) / count), Math.floor(((bar + 1) * entry.a.length) / count));
      const strongest = stretch.reduce((best, value) => (known(value) && Math.abs(value) > Math.abs(best) ? value : best), 0);
      bars.append(h("i", { class: levelClass(level(strongest, data.limit)) }));
    }
    return bars;
  }

  function open(at, token) {
    const rollout = data.rollouts[at];
    if (!rollout) return;
    Object.assign(state, { rollout: at, pinned: false, token: Math.min(token || 0, Math.max(rollout.pieces.length - 1, 0)) });
    state.collapsed.clear();
    drawList();
    drawRollout();
    writeHash();
  }

  function drawRollout() {
    drawHead();
    drawTools();
    drawFigure();
    drawNumbers();
    select(state.token, { quiet: true });
  }

  function redraw() {
    drawTools();
    drawFigure();
    drawNumbers();
    select(state.token, { quiet: true });
  }

  function drawFigure() {
    drawLegend();
    drawPanels();
    drawStrips();
  }

  function drawHead() {
    const rollout = current();
    const facts = [caseName(rollout.case), visible(rollout.verdict), rollout.pieces.length + " tokens", "rollout " + visible(rollout.id)];
    part.head.replaceChildren(
      h("p", { class: "facts" },
        h("button", { type: "button", class: "step-button", "aria-label": "Previous rollout", text: "\u2190", onclick: () => neighbour(-1) }),
        h("span", { class: "place", text: state.rollout + 1 + " / " + data.rollouts.length }),
        h("button", { type: "button", class: "step-button", "aria-label": "Next rollout", text: "\u2192", onclick: () => neighbour(1) }),
        h("span", { text: facts.filter(Boolean).join(" \u00b7 ") })),
      h("p", { class: "question" }, h("span", { class: "tag", text: "Question" }), h("span", { class: "raw", text: visible(rollout.question) })),
      known(rollout.expected) ? h("p", { class: "question" }, h("span", { class: "tag", text: "Expected" }), h("span", { class: "raw", text: visible(rollout.expected) })) : null,
      rollout.reference ? h("details", { class: "reference" }, h("summary", { text: "Reference solution" }), h("pre", { class: "raw", text: visible(rollout.reference) })) : null);
  }

  function drawTools() {
    const rollout = current();
    const contexts = available(rollout).slice(0, 9).map((context, at) => h("button", {
      type: "button", class: "chip context", "aria-pressed": String(state.shown.includes(context)),
      onclick: () => toggleContext(at),
    }, h("kbd", { text: String(at + 1), "aria-hidden": "true" }), h("span", { text: label(context) })));
    const toggle = (text, key, on, act, off) => h("button", { type: "button", class: "chip", "aria-pressed": String(on), disabled: off, onclick: act },
      key ? h("kbd", { text: key, "aria-hidden": "true" }) : null, h("span", { text }));
    const limits = h("select", { "aria-label": "Limit of the colour scale", onchange: (event) => { state.limit = event.target.value; redraw(); } },
      ...[["all", "limit: all rollouts"], ["rollout", "limit: this rollout"], ["largest", "limit: largest |A|"]].map(([value, text]) =>
        h("option", { value, text, selected: state.limit === value })));
    part.tools.replaceChildren(
      h("span", { class: "group" }, ...contexts),
      h("span", { class: "group" },
        toggle("difference", "d", state.diff, toggleDifference, rollout.contexts.length < 2),
        state.diff ? pairPicker() : null),
      h("span", { class: "group" },
        limits,
        toggle("log scale", "", state.log, () => { state.log = !state.log; redraw(); }),
        toggle("blanks", "", state.spaces, () => { state.spaces = !state.spaces; redraw(); })),
      h("span", { class: "group" },
        h("button", { type: "button", class: "chip", onclick: jumpStrongest }, h("kbd", { text: "g", "aria-hidden": "true" }), h("span", { text: "strongest" })),
        h("button", { type: "button", class: "chip export-svg", onclick: exportSvg }, h("kbd", { text: "e", "aria-hidden": "true" }), h("span", { text: "SVG" })),
        h("button", { type: "button", class: "chip export-png", onclick: exportPng, text: "PNG" }),
        h("button", { type: "button", class: "chip", "aria-label": "Keyboard help", onclick: () => part.help.showModal() }, h("kbd", { text: "?" }))));
  }

  // Which two contexts are subtracted, and in which order.
  function pairPicker() {
    const pick = (place, name) => h("select", {
      "aria-label": name,
      onchange: (event) => {
        const chosen = Number(event.target.value);
        const other = state.shown[1 - place] === chosen ? state.shown[place] : state.shown[1 - place];
        const pair = place ? [other, chosen] : [chosen, other];
        state.shown = [...pair, ...state.shown.filter((context) => !pair.includes(context))];
        redraw();
      },
    }, ...available(current()).map((context) => h("option", { value: String(context), text: label(context), selected: state.shown[place] === context })));
    return h("span", { class: "pair-picker" }, pick(0, "Minuend"), h("span", { text: "\u2212" }), pick(1, "Subtrahend"));
  }

  // ---------------------------------------------------------------- legend: scale and distribution in one

  function drawLegend() {
    const top = limit();
    const rollout = current();
    const ticks = [-1, -0.5, 0, 0.5, 1].map((share) => (share ? signed(Math.sign(share) * valueAt(Math.abs(share), top), 2) : "0"));
    const ramp = h("div", { class: "ramp", role: "img", "aria-label": "Colour scale from " + ticks[0] + " to " + ticks[4] + " " + data.unit });
    for (let at = -LEVELS; at <= LEVELS; at += 1) ramp.append(h("i", { class: levelClass(at) }));
    const about = { all: "99th percentile of |A| over all rollouts and contexts", rollout: "99th percentile of |A| in this rollout", largest: "largest |A| in this rollout" };
    part.legend.replaceChildren(
      h("div", { class: "scale" }, ramp,
        h("div", { class: "ticks" }, ...ticks.map((text) => h("span", { text }))),
        h("div", { class: "poles" }, h("span", { class: "less", text: "less likely with the feedback" }), h("span", { class: "more", text: "more likely" }))),
      h("div", { class: "histograms" }, ...views().map((view) => histogram(rollout, view, top))),
      h("p", { class: "definition" },
        data.definition ? h("span", { class: "formula", text: visible(data.definition) }) : null,
        h("b", { text: state.diff ? "Difference of A" : "A" }), h("span", { text: ", " + visible(data.unit) + ". " }),
        h("span", { text: "Limit \u00b1" + plain(top, 2) + ": " + about[state.limit] + ", one scale for every panel" + (state.log ? ", logarithmic. " : ". ") }),
        h("span", { class: "key-up", text: "Line above" }), h("span", { text: ": reinforced. " }),
        h("span", { class: "key-down", text: "Line below" }), h("span", { text: ": suppressed. " }),
        h("span", { class: "key-clip", text: "Double line" }), h("span", { text: ": beyond the limit. " }),
        h("span", { text: known(data.temperature) ? "Both sides at temperature " + data.temperature + "." : "" })));
  }

  function histogram(rollout, view, top) {
    const counts = new Array(2 * LEVELS + 1).fill(0);
    const values = valuesOf(rollout, view).filter(known);
    for (const value of values) counts[level(value, top) + LEVELS] += 1;
    const highest = Math.sqrt(Math.max(...counts, 1));
    const drawing = s("svg", { viewBox: "0 0 132 34", width: "132", height: "34", role: "img", class: "histogram",
      "aria-label": "Distribution of A under " + view.title + ": " + values.filter((value) => value < 0).length + " of " + values.length + " tokens negative" });
    counts.forEach((count, at) => {
      const size = (Math.sqrt(count) / highest) * 30;
      drawing.append(s("rect", { class: "bin " + levelClass(at - LEVELS), x: at * 4, y: 32 - size, width: 3.4, height: Math.max(size, count ? 1 : 0) }));
    });
    drawing.append(s("line", { class: "rule", x1: 0, x2: 132, y1: 32.5, y2: 32.5 }));
    return h("div", { class: "histogram-box" }, drawing, h("span", { text: view.title }));
  }

  // ---------------------------------------------------------------- panels

  function drawPanels() {
    const rollout = current();
    const shown = views();
    const top = limit();
    const values = shown.map((view) => valuesOf(rollout, view));
    cells = shown.map(() => []);
    const grid = document.createDocumentFragment();
    shown.forEach((view, panel) => grid.append(panelHead(rollout, view, values[panel])));
    shown.forEach((view) => grid.append(feedback(rollout, view)));
    const sums = rollout.steps.map((step) => values.map((list) => total(list.slice(step[2], step[3]))));
    const largest = Math.max(...sums.flat().map(Math.abs), 1e-9);
    rollout.steps.forEach((step, at) => {
      const closed = state.collapsed.has(at);
      grid.append(stepHead(step, at, closed));
      shown.forEach((view, panel) => {
        const body = h("div", { class: "cell", "data-step": at });
        body.append(stepSum(sums[at][panel], mean(values[panel].slice(step[2], step[3])), largest, view));
        if (!closed) body.append(tokenRun(rollout, step, at, panel, view, values[panel], top));
        grid.append(body);
      });
    });
    part.panels.className = "panels of-" + shown.length;
    part.panels.replaceChildren(grid);
  }

  function panelHead(rollout, view, values) {
    const facts = [];
    if (!view.pair) {
      const entry = contextOf(rollout, view.context);
      if (entry.case) facts.push("critique case " + visible(entry.case));
      if (entry.first_error) facts.push("first error: step " + visible(entry.first_error));
    }
    facts.push("\u03a3 " + signed(total(values), 2) + " " + data.unit, "mean " + signed(mean(values), 3));
    return h("div", { class: "panel-head" }, h("h3", { text: view.title }), h("p", { text: facts.join(" \u00b7 ") }));
  }

  function feedback(rollout, view) {
    const sides = view.pair || [view.context];
    return h("div", { class: "feedback", "data-noexport": true }, ...sides.map((context) => {
      const text = contextOf(rollout, context).text;
      return h("details", { open: !view.pair },
        h("summary", { text: "Shown to the self-teacher" + (view.pair ? ": " + label(context) : "") }),
        h("pre", { class: "raw", tabindex: "0", role: "region", "aria-label": "Feedback: " + label(context), text: text ? visible(text) : "(nothing)" }));
    }));
  }

  function stepHead(step, at, closed) {
    const status = STATUS[step[1]] ? step[1] : "unknown";
    return h("div", { class: "step-head is-" + status },
      h("button", { type: "button", "aria-expanded": String(!closed), onclick: () => toggleStep(at) },
        h("span", { class: "fold", "aria-hidden": "true", text: closed ? "\u25b8" : "\u25be" }), h("span", { class: "step-name", text: stepName(step) })),
      h("span", { class: "badge is-" + status, text: STATUS[status] }),
      h("span", { class: "step-size", text: step[3] - step[2] + (step[3] - step[2] === 1 ? " token" : " tokens") }));
  }

  function stepSum(sum, average, largest, view) {
    const bar = s("svg", { class: "sum-bar", viewBox: "0 0 60 8", width: "60", height: "8", "aria-hidden": "true" });
    const size = (Math.abs(sum) / largest) * 29;
    bar.append(s("rect", { class: sum < 0 ? "minus" : "plus", x: sum < 0 ? 30 - size : 30, y: 1, width: size, height: 6 }));
    bar.append(s("line", { class: "rule", x1: 30, x2: 30, y1: 0, y2: 8 }));
    return h("p", { class: "step-sum" }, h("span", { class: "phone-only", text: view.title }), bar,
      h("span", { text: "\u03a3 " + signed(sum, 2) }), h("span", { class: "faint", text: "mean " + signed(average, 2) }));
  }

  function tokenRun(rollout, step, stepAt, panel, view, values, top) {
    const run = h("div", { class: "run", role: "list", "aria-label": view.title + ", " + stepName(step) });
    const special = new Set(rollout.special);
    const joined = new Set(rollout.joined);
    for (let token = step[2]; token < step[3]; token += 1) {
      if (rollout.gaps[token]) run.append(h("span", { class: "gap", role: "listitem", "aria-label": "not a token: " + visible(rollout.gaps[token]), text: shape(rollout.gaps[token]) }));
      const cell = tokenCell(rollout, token, values[token], top, special.has(token), joined.has(token));
      cells[panel][token] = cell;
      cell.dataset.panel = panel;
      run.append(cell);
      const breaks = /\n*$/.exec(rollout.pieces[token])[0];
      if (breaks && token < step[3] - 1) run.append(breaks);
    }
    const rest = rollout.gaps[rollout.pieces.length];
    if (rest && stepAt === rollout.steps.length - 1) run.append(h("span", { class: "gap", role: "listitem", text: shape(rest) }));
    return run;
  }

  function tokenCell(rollout, token, value, top, special, joined) {
    const cell = document.createElement("span");
    const at = level(value, top);
    let look = "t " + levelClass(at);
    if (at) look += at > 0 ? " up" : " down";
    if (Math.abs(at) >= LEVELS * 0.4) look += " strong";
    if (known(value) && Math.abs(value) > top * (1 + 1e-9)) look += " clip";
    if (!known(value)) look += " unscored";
    if (special) look += " special";
    if (joined) look += " joined";
    cell.className = look;
    cell.dataset.t = token;
    cell.tabIndex = -1;
    cell.setAttribute("role", "listitem");
    const text = joined ? "\u205e" : shape(rollout.pieces[token]) || "\u2205";
    cell.textContent = text;
    cell.setAttribute("aria-label", "token " + token + ", " + (joined ? "further piece of the character before" : text) + ", A " + signed(value, 3));
    return cell;
  }

  // ---------------------------------------------------------------- strip charts

  function drawStrips() {
    if (!data || !part.strips.isConnected) return;
    const rollout = current();
    const width = Math.max(part.figure.clientWidth, 240);
    cursors = [];
    part.strips.replaceChildren(...views().map((view, at, all) => strip(rollout, view, width, at === all.length - 1)));
    moveCursors();
  }

  function strip(rollout, view, width, last) {
    const values = valuesOf(rollout, view);
    const top = limit();
    const frame = { left: 46, right: 10, top: 38, height: 84 };
    const wide = width - frame.left - frame.right;
    const height = frame.top + frame.height + (last ? 26 : 8);
    const x = (token) => frame.left + (wide * token) / Math.max(values.length, 1);
    const y = (value) => frame.top + (frame.height * (top - Math.max(-top, Math.min(top, value)))) / (2 * top);
    const drawing = s("svg", { class: "strip", viewBox: "0 0 " + width + " " + height, width, height, role: "img", "aria-label": "A over token position, " + view.title });
    rollout.steps.forEach((step, index) => {
      const status = STATUS[step[1]] ? step[1] : "unknown";
      drawing.append(s("rect", { class: "band is-" + status + (index % 2 ? " odd" : ""), x: x(step[2]), y: frame.top, width: x(step[3]) - x(step[2]), height: frame.height }));
      if (x(step[3]) - x(step[2]) > 16) drawing.append(s("text", { class: "band-name is-" + status, x: x(step[2]) + 3, y: frame.top - 5 }, step[0] === "answer" ? "ans" : visible(step[0]).slice(0, 8)));
      if (status === "wrong") drawing.append(s("line", { class: "error-line", x1: x(step[2]), x2: x(step[2]), y1: frame.top, y2: frame.top + frame.height }));
    });
    for (const tick of [top, 0, -top]) {
      drawing.append(s("line", { class: tick ? "grid" : "rule", x1: frame.left, x2: width - frame.right, y1: y(tick), y2: y(tick) }));
      drawing.append(s("text", { class: "tick", x: frame.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick ? signed(tick, 1) : "0"));
    }
    const stroke = Math.max(0.7, Math.min(7, (0.72 * wide) / Math.max(values.length, 1)));
    for (const [name, sign] of [["plus", 1], ["minus", -1]]) {
      let path = "";
      values.forEach((value, token) => { if (known(value) && value * sign > 0) path += "M" + x(token + 0.5).toFixed(2) + " " + y(0).toFixed(2) + "V" + y(value).toFixed(2); });
      drawing.append(s("path", { class: "bars " + name, d: path, "stroke-width": stroke }));
    }
    let clipped = "";
    values.forEach((value, token) => {
      if (!known(value) || Math.abs(value) <= top * (1 + 1e-9)) return;
      const edge = value > 0 ? frame.top : frame.top + frame.height;
      const out = value > 0 ? -4 : 4;
      clipped += "M" + (x(token + 0.5) - 3).toFixed(2) + " " + edge + "l3 " + out + "l3 " + -out + "z";
    });
    drawing.append(s("path", { class: "clip-mark", d: clipped }));
    const line = s("line", { class: "cursor", x1: 0, x2: 0, y1: frame.top - 2, y2: frame.top + frame.height + 2 });
    drawing.append(line);
    drawing.append(s("text", { class: "strip-name", x: frame.left, y: 14 }, view.title));
    if (last) {
      drawing.append(s("text", { class: "tick", x: frame.left, y: height - 8 }, "token 0"));
      drawing.append(s("text", { class: "tick", x: width - frame.right, y: height - 8, "text-anchor": "end" }, String(Math.max(values.length - 1, 0))));
    }
    const tokenAt = (event) => {
      const place = event.clientX - drawing.getBoundingClientRect().left - frame.left;
      return Math.max(0, Math.min(values.length - 1, Math.floor((place / wide) * values.length)));
    };
    drawing.addEventListener("mousemove", (event) => { if (!state.pinned) select(tokenAt(event)); });
    drawing.addEventListener("click", (event) => { reveal(tokenAt(event)); writeHash(); });
    cursors.push((token) => { const place = x(token + 0.5); line.setAttribute("x1", place); line.setAttribute("x2", place); });
    return drawing;
  }

  const moveCursors = () => cursors.forEach((move) => move(state.token));

  // ---------------------------------------------------------------- numbers of the rollout

  function drawNumbers() {
    const rollout = current();
    const wrong = rollout.steps.find((step) => step[1] === "wrong");
    const right = rollout.steps.filter((step) => step[1] === "right");
    const shown = available(rollout).filter((context) => state.shown.includes(context));
    const rows = [["Mean A on right steps", (values) => signed(mean(right.flatMap((step) => values.slice(step[2], step[3]))), 3), right.length]];
    if (wrong) {
      const share = (values) => {
        const sizes = values.map((value) => Math.abs(value || 0));
        const all = total(sizes);
        return all ? (100 * total(sizes.slice(wrong[2], wrong[3]))) / all : null;
      };
      const tokens = (100 * (wrong[3] - wrong[2])) / rollout.pieces.length;
      rows.push(["Mean A on the first wrong step", (values) => signed(mean(values.slice(wrong[2], wrong[3])), 3), true]);
      rows.push(["Share of |A| in the first wrong step", (values) => (known(share(values)) ? share(values).toFixed(1) + " %" : "\u2013") + " (its share of tokens: " + tokens.toFixed(1) + " %)", true]);
    }
    rows.push(["Tokens suppressed (A < 0)", (values) => values.filter((value) => known(value) && value < 0).length + " of " + values.filter(known).length, true]);
    rows.push(["Strongest token", (values) => {
      const at = strongest(values);
      return at < 0 ? "\u2013" : [signed(values[at], 2) + " at ", h("button", { type: "button", class: "link", text: "token " + at, onclick: () => { reveal(at); writeHash(); } })];
    }, true]);
    part.numbers.replaceChildren(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of this rollout" }, h("table", {},
      h("caption", { text: "This rollout in numbers (" + data.unit + ")" }),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "Quantity" }), ...shown.map((context) => h("th", { scope: "col", text: label(context) })))),
      h("tbody", {}, ...rows.filter((row) => row[2]).map(([name, compute]) => h("tr", {}, h("th", { scope: "row", text: name }),
        ...shown.map((context) => { const value = compute(contextOf(rollout, context).a); return h("td", {}, ...(Array.isArray(value) ? value : [value])); })))))));
  }

  function strongest(values) {
    let best = -1;
    values.forEach((value, at) => { if (known(value) && (best < 0 || Math.abs(value) > Math.abs(values[best]))) best = at; });
    return best;
  }

  // ---------------------------------------------------------------- cursor and card

  function hover(element) {
    if (element && !state.pinned) select(Number(element.dataset.t));
  }

  function pin(element) {
    if (!element) return;
    const token = Number(element.dataset.t);
    state.pinned = !(state.pinned && token === state.token);
    state.panel = Number(element.dataset.panel);
    select(token);
    element.focus({ preventScroll: true });
    writeHash();
  }

  function select(token, { quiet = false } = {}) {
    const length = current().pieces.length;
    const next = Math.max(0, Math.min(length - 1, token));
    for (const panel of cells) {
      const old = panel[state.token];
      if (old) { old.classList.remove("cur", "pin"); old.tabIndex = -1; }
    }
    state.token = next;
    cells.forEach((panel, at) => {
      const cell = panel[next];
      if (!cell) return;
      cell.classList.add("cur");
      if (state.pinned) cell.classList.add("pin");
      // One tab stop for the whole viewer: the token under the cursor in the panel last used.
      if (at === Math.min(state.panel, cells.length - 1)) cell.tabIndex = 0;
    });
    moveCursors();
    drawDock();
    if (!quiet) part.dock.classList.add("awake");
  }

  // Show a token wherever it is: open its step, bring it into view, give it the focus.
  function reveal(token) {
    const step = stepOf(current(), token);
    if (state.collapsed.delete(step)) drawPanels();
    select(token);
    const cell = (cells[Math.min(state.panel, cells.length - 1)] || [])[state.token];
    if (!cell) return;
    cell.focus({ preventScroll: true });
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function drawDock() {
    const rollout = current();
    const token = state.token;
    if (!rollout.pieces.length) { part.dock.replaceChildren(h("p", { text: "This rollout has no tokens." })); return; }
    const step = rollout.steps[stepOf(rollout, token)];
    const contexts = available(rollout).filter((context) => state.shown.includes(context));
    const readings = contexts.map((context) => reading(rollout, context, token));
    const row = (name, show, kind) => h("tr", { class: kind || null }, h("th", { scope: "row", text: name }), ...readings.map((values) => h("td", {}, ...[show(values)].flat())));
    const both = (logProb) => [h("span", { text: plain(logProb, 6) }), h("span", { class: "faint", text: " " + chance(logProb) })];
    const difference = state.diff && readings.length > 1 && known(readings[0].ratio) && known(readings[1].ratio) ? readings[0].ratio - readings[1].ratio : null;
    const order = state.shown.filter((context) => contexts.includes(context));
    const gap = known(difference) && order.length > 1 ? reading(rollout, order[0], token).ratio - reading(rollout, order[1], token).ratio : null;
    part.dock.replaceChildren(
      h("div", { class: "dock-token" },
        h("code", { class: "dock-piece", text: rollout.joined.includes(token) ? "(piece of the character before)" : shape(rollout.pieces[token]).replace(/\n/g, "") || "\u2205" }),
        h("p", { text: "token " + token + " of " + rollout.pieces.length + " \u00b7 id " + (known(rollout.ids[token]) ? rollout.ids[token] : "\u2013") }),
        h("p", {}, h("span", { text: stepName(step) + " " }), step ? h("span", { class: "badge is-" + (STATUS[step[1]] ? step[1] : "unknown"), text: STATUS[step[1]] || STATUS.unknown }) : null),
        h("p", { class: "dock-acts" },
          h("button", { type: "button", class: "chip", "aria-pressed": String(state.pinned), text: state.pinned ? "pinned" : "pin", onclick: () => { state.pinned = !state.pinned; select(state.token); writeHash(); } }),
          h("button", { type: "button", class: "chip", text: "copy JSON", onclick: (event) => copyCard(event.target) }))),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Values of token " + token }, h("table", {},
        h("thead", {}, h("tr", {}, h("td", {}), ...contexts.map((context) => h("th", { scope: "col", text: label(context) })))),
        h("tbody", {},
          row("A, " + data.unit, (values) => h("b", { class: "value-a", text: signed(values.ratio, 6) }), "main"),
          row("log p, student", (values) => both(values.student)),
          row("log p, self-teacher", (values) => both(values.teacher)),
          row("forward KL", (values) => plain(values.kl, data.digits)),
          row("entropies", (values) => plain(values.studentEntropy, data.digits) + " \u2192 " + plain(values.teacherEntropy, data.digits)),
          known(gap) ? h("tr", { class: "main" }, h("th", { scope: "row", text: "difference" }), h("td", { colspan: String(contexts.length) }, h("b", { class: "value-difference", text: signed(gap, 6) }))) : null))),
      alternatives(rollout, contexts, readings, token));
  }

  function alternatives(rollout, contexts, readings, token) {
    const lists = [];
    if (readings[0] && readings[0].topStudent.length) lists.push(["Student would write", readings[0].topStudent]);
    contexts.forEach((context, at) => { if (readings[at].topTeacher.length) lists.push(["With " + label(context), readings[at].topTeacher]); });
    if (!lists.length) return h("div", { class: "tops none" });
    // Stored alternatives may come without the blank that a piece of running text carries in front.
    const bare = (text) => text.trim() || text;
    const written = bare(rollout.pieces[token]);
    return h("div", { class: "tops" }, ...lists.map(([title, flat]) => {
      const items = [];
      for (let at = 0; at < flat.length; at += 2) {
        const bar = s("svg", { class: "chance", viewBox: "0 0 40 6", width: "40", height: "6", preserveAspectRatio: "none", "aria-hidden": "true" });
        bar.append(s("rect", { x: 0, y: 0, width: 40 * Math.exp(flat[at + 1]), height: 6 }));
        items.push(h("li", { class: bare(flat[at]) === written ? "written" : null }, h("code", { text: shape(flat[at]).replace(/\n/g, "") || "\u2205" }), bar, h("span", { text: chance(flat[at + 1]) })));
      }
      return h("div", {}, h("h4", { text: title }), h("ol", {}, ...items));
    }));
  }

  function copyCard(button) {
    const rollout = current();
    const card = {
      rollout: rollout.id, token: state.token, id: rollout.ids[state.token], text: rollout.pieces[state.token],
      contexts: Object.fromEntries(available(rollout).map((context) => [data.contexts[context].name, reading(rollout, context, state.token)])),
    };
    const done = () => { button.textContent = "copied"; };
    if (navigator.clipboard) navigator.clipboard.writeText(JSON.stringify(card, null, 2)).then(done, () => { button.textContent = "not allowed"; });
  }

  // ---------------------------------------------------------------- moves

  function neighbour(by) {
    const list = visibleRollouts().map(({ at }) => at);
    const place = list.indexOf(state.rollout);
    const next = list[place < 0 ? 0 : (place + by + list.length) % list.length];
    if (known(next)) open(next);
  }

  function moveStep(by) {
    const steps = current().steps;
    const step = stepOf(current(), state.token);
    // Backwards first to the start of the step one stands in, then to the step before: as in a music player.
    const target = by < 0 && steps[step] && state.token > steps[step][2] ? step : step + by;
    if (steps[target]) { reveal(steps[target][2]); writeHash(); }
  }

  // The nearest token on the line above or below.
  function moveLine(by) {
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
    if (best) { reveal(best.token); writeHash(); }
  }

  function jumpStrongest() {
    const rollout = current();
    const lists = views().map((view) => valuesOf(rollout, view));
    const best = lists.map((values) => ({ values, at: strongest(values) })).filter(({ at }) => at >= 0)
      .reduce((a, b) => (!a || Math.abs(b.values[b.at]) > Math.abs(a.values[a.at]) ? b : a), null);
    if (best) { reveal(best.at); writeHash(); }
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

  function toggleStep(at) {
    if (!state.collapsed.delete(at)) state.collapsed.add(at);
    drawPanels();
    select(state.token, { quiet: true });
    const button = part.panels.querySelectorAll(".step-head button")[at];
    if (button) button.focus();
  }

  function inView() {
    const box = root.getBoundingClientRect();
    return box.top < window.innerHeight * 0.6 && box.bottom > window.innerHeight * 0.3;
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || part.help.open) return;
    const inside = root.contains(event.target);
    if (!inside && !(event.target === document.body && inView())) return;
    if (event.target.closest("input, select, textarea, summary")) return;
    const acts = {
      ArrowRight: () => { reveal(state.token + 1); writeHash(); },
      ArrowLeft: () => { reveal(state.token - 1); writeHash(); },
      n: () => moveStep(1), p: () => moveStep(-1), "[": () => neighbour(-1), "]": () => neighbour(1),
      d: toggleDifference, g: jumpStrongest, e: exportSvg, "?": () => part.help.showModal(),
    };
    if (event.target.closest(".t")) {
      acts.ArrowDown = () => moveLine(1);
      acts.ArrowUp = () => moveLine(-1);
      acts.Home = () => { reveal(0); writeHash(); };
      acts.End = () => { reveal(current().pieces.length - 1); writeHash(); };
      acts.Enter = () => pin(event.target.closest(".t"));
      acts[" "] = acts.Enter;
    }
    if (state.pinned) acts.Escape = () => { state.pinned = false; select(state.token); };
    for (const digit of "1234") acts[digit] = () => toggleContext(Number(digit) - 1);
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  function help() {
    const rows = [
      ["\u2190 \u2192", "token before, after"], ["\u2191 \u2193", "line above, below"], ["n  p", "next, previous step"], ["[  ]", "previous, next rollout"],
      ["1 \u2013 4", "show or hide a context"], ["d", "difference of two contexts"], ["g", "strongest token"], ["Enter", "pin the token"], ["Esc", "let go of it"],
      ["Home  End", "first, last token"], ["e", "save the view as SVG"], ["?", "this list"],
    ];
    part.help = h("dialog", { class: "help", "aria-label": "Keyboard" }, h("h3", { text: "Keys" }),
      h("dl", {}, ...rows.flatMap(([key, text]) => [h("dt", {}, h("kbd", { text: key })), h("dd", { text })])),
      h("form", { method: "dialog" }, h("button", { class: "chip", text: "close" })));
    return part.help;
  }

  // ---------------------------------------------------------------- deep links

  function writeHash() {
    const rollout = current();
    const fields = new URLSearchParams({ rollout: rollout.id, t: String(state.token), c: state.shown.map((at) => at + 1).join(",") });
    if (state.diff) fields.set("d", "1");
    history.replaceState(null, "", "#" + fields);
  }

  function readHash() {
    if (!location.hash.startsWith("#rollout=")) return false;
    const fields = new URLSearchParams(location.hash.slice(1));
    const name = fields.get("rollout");
    let at = data.rollouts.findIndex((rollout) => rollout.id === name);
    if (at < 0 && /^\d+$/.test(name)) at = Number(name) - 1;
    if (!data.rollouts[at]) return false;
    const shown = (fields.get("c") || "").split(",").map((text) => Number(text) - 1).filter((context) => data.contexts[context]);
    state.rollout = at;
    state.token = Math.max(0, Math.min(data.rollouts[at].pieces.length - 1, Number(fields.get("t")) || 0));
    if (shown.length) state.shown = [...new Set(shown)].slice(0, 4);
    state.diff = fields.get("d") === "1" && state.shown.length > 1;
    state.pinned = fields.has("t");
    drawList();
    return true;
  }

  // ---------------------------------------------------------------- export: what stands on the screen, as drawing orders

  const pen = document.createElement("canvas").getContext("2d");

  function drawing() {
    part.figure.classList.add("exporting");
    const box = part.figure.getBoundingClientRect();
    const paper = getComputedStyle(document.body).backgroundColor;
    const orders = [{ kind: "rect", x: 0, y: 0, w: box.width + 32, h: box.height + 56, fill: paper }];
    collect(part.figure, { x: box.left - 16, y: box.top - 16 }, orders);
    const rollout = current();
    const line = [data.model, "rollout " + rollout.id, caseName(rollout.case), views().map((view) => view.title).join(" | ")].filter(Boolean).map(visible).join(" \u00b7 ");
    part.figure.classList.remove("exporting");
    orders.push({ kind: "text", x: 16, y: box.height + 40, text: line, fill: getComputedStyle(part.figure).color, font: "11px sans-serif", size: 11, family: "sans-serif" });
    return { width: Math.ceil(box.width + 32), height: Math.ceil(box.height + 56), orders };
  }

  const solid = (colour) => colour && colour !== "none" && colour !== "transparent" && !/rgba\(.*, 0\)$/.test(colour);

  function collect(element, origin, orders) {
    if (element.hasAttribute("data-noexport")) return;
    const style = getComputedStyle(element);
    if (style.display === "none" || style.visibility === "hidden") return;
    if (element instanceof SVGSVGElement) { collectSvg(element, origin, orders); return; }
    for (const box of element.getClientRects()) {
      const at = { x: box.left - origin.x, y: box.top - origin.y, w: box.width, h: box.height };
      if (solid(style.backgroundColor)) orders.push({ kind: "rect", ...at, fill: style.backgroundColor });
      for (const [edge, y] of [["Top", at.y], ["Bottom", at.y + at.h]]) {
        const width = parseFloat(style["border" + edge + "Width"]);
        const colour = style["border" + edge + "Color"];
        if (!width || !solid(colour)) continue;
        const inner = edge === "Top" ? y : y - width;
        if (style["border" + edge + "Style"] === "double") {
          orders.push({ kind: "rect", x: at.x, y: inner, w: at.w, h: width / 3, fill: colour }, { kind: "rect", x: at.x, y: inner + (2 * width) / 3, w: at.w, h: width / 3, fill: colour });
        } else orders.push({ kind: "rect", x: at.x, y: inner, w: at.w, h: width, fill: colour });
      }
    }
    for (const child of element.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) collectText(child, style, origin, orders);
      else if (child.nodeType === Node.ELEMENT_NODE) collect(child, origin, orders);
    }
  }

  // The fragments of a text node, one per line it occupies.
  function collectText(node, style, origin, orders) {
    const range = document.createRange();
    const font = { fill: style.color, size: parseFloat(style.fontSize), family: style.fontFamily, weight: style.fontWeight, font: style.fontWeight + " " + style.fontSize + " " + style.fontFamily };
    pen.font = font.font;
    const ascent = pen.measureText("x").fontBoundingBoxAscent;
    const put = (start, end, box) => {
      const text = node.data.slice(start, end).replace(/[\n\t]/g, "");
      if (text.trim()) orders.push({ kind: "text", x: box.left - origin.x, y: box.top - origin.y + ascent, w: box.width, text, ...font });
    };
    range.selectNodeContents(node);
    const boxes = range.getClientRects();
    if (boxes.length === 1) { put(0, node.data.length, boxes[0]); return; }
    let start = 0;
    let open = null;
    for (let at = 0; at < node.data.length; at += 1) {
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      const box = range.getClientRects()[0];
      if (!box) continue;
      if (open && Math.abs(box.top - open.top) > 3) { put(start, at, open); open = null; }
      if (!open) { start = at; open = { left: box.left, top: box.top, width: box.width }; } else open.width = box.right - open.left;
    }
    if (open) put(start, node.data.length, open);
  }

  function collectSvg(element, origin, orders) {
    const box = element.getBoundingClientRect();
    const base = { x: box.left - origin.x, y: box.top - origin.y };
    for (const shape of element.querySelectorAll("rect, line, path, text")) {
      const style = getComputedStyle(shape);
      if (style.display === "none" || shape.classList.contains("cursor")) continue;
      const number = (name) => parseFloat(shape.getAttribute(name) || "0");
      const alpha = parseFloat(style.opacity);
      if (shape.tagName === "rect" && solid(style.fill)) orders.push({ kind: "rect", x: base.x + number("x"), y: base.y + number("y"), w: number("width"), h: number("height"), fill: style.fill, alpha });
      if (shape.tagName === "line" && solid(style.stroke)) orders.push({ kind: "path", x: base.x, y: base.y, d: "M" + number("x1") + " " + number("y1") + "L" + number("x2") + " " + number("y2"), stroke: style.stroke, width: parseFloat(style.strokeWidth), dash: style.strokeDasharray });
      if (shape.tagName === "path") orders.push({ kind: "path", x: base.x, y: base.y, d: shape.getAttribute("d"), stroke: style.stroke, fill: style.fill, width: parseFloat(style.strokeWidth) });
      if (shape.tagName === "text") orders.push({ kind: "text", x: base.x + number("x"), y: base.y + number("y"), text: shape.textContent, fill: style.fill, size: parseFloat(style.fontSize), family: style.fontFamily, weight: style.fontWeight, font: style.fontWeight + " " + style.fontSize + " " + style.fontFamily, anchor: style.textAnchor });
    }
  }

  function svgText(picture) {
    const svg = s("svg", { xmlns: SVG, viewBox: "0 0 " + picture.width + " " + picture.height, width: picture.width, height: picture.height });
    svg.append(s("title", {}, "A_t, " + views().map((view) => view.title).join(", ")));
    for (const order of picture.orders) {
      const number = (value) => String(Math.round(value * 100) / 100);
      if (order.kind === "rect") svg.append(s("rect", { x: number(order.x), y: number(order.y), width: number(order.w), height: number(order.h), fill: order.fill, "fill-opacity": known(order.alpha) ? order.alpha : 1 }));
      if (order.kind === "path") svg.append(s("path", { transform: "translate(" + number(order.x) + " " + number(order.y) + ")", d: order.d, fill: order.fill || "none", stroke: order.stroke || "none", "stroke-width": order.width, ...(order.dash && order.dash !== "none" ? { "stroke-dasharray": order.dash } : {}) }));
      if (order.kind === "text") {
        svg.append(s("text", {
          x: number(order.x), y: number(order.y), fill: order.fill, "font-size": order.size, "font-family": order.family, "font-weight": order.weight || 400,
          "text-anchor": order.anchor || "start", "xml:space": "preserve", ...(order.w ? { textLength: number(order.w), lengthAdjust: "spacingAndGlyphs" } : {}),
        }, order.text));
      }
    }
    return new XMLSerializer().serializeToString(svg);
  }

  function exportSvg() {
    save(new Blob([svgText(drawing())], { type: "image/svg+xml" }), "svg");
  }

  // Drawn straight onto a canvas: loading an image would need a hole in the content security policy.
  function exportPng() {
    const picture = drawing();
    const canvas = document.createElement("canvas");
    const zoom = Math.min(2, 16000 / picture.height);
    canvas.width = picture.width * zoom;
    canvas.height = picture.height * zoom;
    const brush = canvas.getContext("2d");
    brush.scale(zoom, zoom);
    for (const order of picture.orders) {
      brush.save();
      if (known(order.alpha)) brush.globalAlpha = order.alpha;
      if (order.kind === "rect") { brush.fillStyle = order.fill; brush.fillRect(order.x, order.y, order.w, order.h); }
      if (order.kind === "path") {
        brush.translate(order.x, order.y);
        const path = new Path2D(order.d);
        if (solid(order.fill)) { brush.fillStyle = order.fill; brush.fill(path); }
        if (solid(order.stroke)) {
          brush.strokeStyle = order.stroke;
          brush.lineWidth = order.width;
          if (order.dash && order.dash !== "none") brush.setLineDash(order.dash.split(/[ ,]+/).map(parseFloat));
          brush.stroke(path);
        }
      }
      if (order.kind === "text") {
        brush.font = order.font;
        brush.fillStyle = order.fill;
        brush.textAlign = { middle: "center", end: "right" }[order.anchor] || "left";
        brush.fillText(order.text, order.x, order.y);
      }
      brush.restore();
    }
    canvas.toBlob((blob) => save(blob, "png"), "image/png");
  }

  function save(blob, ending) {
    const name = "rollout-" + String(current().id).replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 60) + (state.diff ? "-difference" : "") + "." + ending;
    const link = h("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // ---------------------------------------------------------------- start

  load().then((loaded) => {
    data = loaded;
    if (!data.rollouts.length) { root.replaceChildren(h("p", { class: "empty", text: "No rollouts are stored in this signal." })); return; }
    for (const rollout of data.rollouts) rollout.strongest = Math.max(0, ...rollout.contexts.map((entry) => percentile(entry.a, 100)));
    data.rollouts = data.rollouts.filter((rollout) => rollout.contexts.length);
    state.shown = [...new Set(data.rollouts.flatMap(available))].sort((a, b) => a - b).slice(0, 2);
    // First look: a rollout with one wrong step, where the designs differ most; at its strongest token.
    const start = data.rollouts.findIndex((rollout) => rollout.case === "one_wrong_step");
    state.rollout = Math.max(start, 0);
    build();
    const linked = readHash();
    if (!linked) {
      state.token = Math.max(strongest(valuesOf(current(), views()[0])), 0);
      drawList();
    }
    drawRollout();
    root.classList.add("ready");
    if (linked) { root.scrollIntoView(); reveal(state.token); }
  }).catch((error) => {
    root.replaceChildren(h("p", { class: "empty", text: "The stored signal could not be read: " + error.message }));
    throw error;
  });
})();
