// Above the panels: the question, the switches, and the legend with the distribution of A.

function drawHead() {
  const rollout = current();
  const facts = [caseFact(rollout.case), VERDICTS[rollout.verdict] || visible(rollout.verdict), plural(rollout.pieces.length, "token"), "rollout " + visible(rollout.id)];
  const line = (name, text) => h("p", { class: "question" }, h("span", { class: "tag", text: name }), h("span", { class: "raw", tabindex: "0", text: visible(text) }));
  part.head.replaceChildren(...[
    h("p", { class: "attempt-facts" },
      h("button", { type: "button", class: "step-button", "aria-label": "Previous rollout", text: "\u2190", onclick: () => neighbour(-1) }),
      h("span", { class: "place", text: state.rollout + 1 + " / " + data.rollouts.length }),
      h("button", { type: "button", class: "step-button", "aria-label": "Next rollout", text: "\u2192", onclick: () => neighbour(1) }),
      h("span", { text: facts.filter(Boolean).join(" \u00b7 ") })),
    rollout.question ? line("Question", rollout.question) : null,
    known(rollout.expected) ? line("Expected", rollout.expected) : null,
    rollout.unknown ? h("p", { class: "note-unknown", role: "note", text: unknownNote(rollout) }) : null,
    rollout.reference ? h("details", { class: "reference" }, h("summary", { text: "Reference solution" }), h("pre", { class: "raw", tabindex: "0", text: visible(rollout.reference) })) : null,
  ].filter(known));
}

function unknownNote(rollout) {
  const tokens = rollout.pieces.length;
  const note = rollout.unknown + " of " + plural(tokens, "token") + (rollout.unknown === 1 ? " is" : " are") + " unknown to this model\u2019s tokenizer";
  return 2 * rollout.unknown > tokens ? note + ": the numbers mean little." : note + ".";
}

function drawTools() {
  const rollout = current();
  const group = (...children) => h("span", { class: "group" }, ...children);
  const all = available(rollout);
  const toggle = (context, at) => chip(label(context), () => toggleContext(at), { key: at < 4 ? String(at + 1) : null, pressed: state.shown.includes(context), kind: "context" });
  const contexts = all.map((context, at) => (at < 9 || state.shown.includes(context) ? toggle(context, at) : null)).filter(known);
  const others = all.slice(9).filter((context) => !state.shown.includes(context));
  if (others.length) contexts.push(h("select", { "aria-label": "Show another context", onchange: (event) => toggleContext(all.indexOf(Number(event.target.value))) },
    option("", others.length + " more contexts", true), ...others.map((context) => option(context, label(context)))));
  const limits = h("select", { "aria-label": "Limit of the colour scale", onchange: (event) => {
    state.fixed = Math.max(Number(limit(views()[0]).toFixed(2)), 0.01);
    state.limit = event.target.value;
    redraw();
    writeHash();
  } }, ...Object.entries(LIMITS).map(([value, [text]]) => option(value, text, state.limit === value)));
  const fixed = h("input", { type: "number", class: "fixed", min: "0.01", step: "any", value: state.fixed, "aria-label": "Fixed limit, " + visible(data.unit), onchange: (event) => {
    if (Number(event.target.value) > 0) { state.fixed = Number(event.target.value); redraw(); writeHash(); }
  } });
  part.tools.replaceChildren(
    stepped() ? stepSlider() : "",
    group(...contexts),
    group(
      chip("difference", toggleDifference, { key: "d", pressed: state.diff, off: rollout.contexts.length < 2 }),
      state.diff ? pairPicker() : null,
      rollout.contexts.some((entry) => nullOf(rollout, entry.context)) ? chip("less the null", toggleCalibrated, { key: "z", pressed: state.calibrated && !state.diff, off: state.diff }) : null,
      chip("feedback beside", toggleBeside, { key: "c", pressed: state.beside, off: !rollout.contexts.some((entry) => entry.rows.length) })),
    group(limits, state.limit === "fixed" ? fixed : null, chip("log scale", () => flip("log"), { pressed: state.log }), chip("blanks", () => flip("spaces"), { pressed: state.spaces })),
    group(
      chip("strongest", jumpStrongest, { key: "g" }),
      chip(state.collapsed.size ? "open all" : "fold all", foldAll, { key: "f" }),
      chip("SVG", exportSvg, { key: "e", kind: "export-svg" }), chip("PNG", exportPng, { kind: "export-png" }), chip("CSV", exportCsv, { kind: "export-csv" }),
      chip("", () => part.help.showModal(), { key: "?", name: "Keyboard help" })));
}

// Moves all panels to another checkpoint; the designs stay.
function stepSlider() {
  const all = steps();
  const go = (event) => {
    const designs = state.shown.map((context) => data.contexts[context].of);
    state.at = all[Number(event.target.value)];
    state.shown = designs.map((design) => data.contexts.findIndex((context) => context.of === design && context.step === state.at)).filter((at) => at >= 0);
    redraw();
    writeHash();
  };
  return h("label", { class: "group checkpoint" }, h("span", { text: "checkpoint" }),
    h("input", { type: "range", min: "0", max: String(all.length - 1), step: "1", value: String(all.indexOf(state.at)), "aria-valuetext": "step " + state.at, oninput: go }),
    h("output", { text: "step " + state.at }));
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
      writeHash();
    },
  }, ...available(current()).map((context) => option(context, label(context), state.shown[place] === context)));
  return h("span", { class: "pair-picker" }, pick(0, "Minuend"), h("span", { text: "\u2212" }), pick(1, "Subtrahend"));
}

function drawLegend() {
  const top = limit(views()[0]);
  const rollout = current();
  const ticks = [-1, -0.5, 0, 0.5, 1].map((share) => (share ? signed(Math.sign(share) * valueAt(Math.abs(share), top), top < 0.1 ? 4 : 2) : "0"));
  const ramp = h("div", { class: "ramp", role: "img", "aria-label": "Colour scale from " + ticks[0] + " to " + ticks[4] + " " + visible(data.unit) });
  for (let at = -LEVELS; at <= LEVELS; at += 1) ramp.append(h("i", { class: levelClass(at) }));
  const unscored = rollout.contexts.map((entry) => entry.a.filter((value) => !known(value)).length);
  part.legend.replaceChildren(
    h("div", { class: "scale" }, ramp,
      h("div", { class: "ticks" }, ...ticks.map((text) => h("span", { text }))),
      h("div", { class: "poles" }, h("span", { class: "less", text: NAMES().less }), h("span", { class: "more", text: NAMES().more }))),
    h("div", { class: "histograms" }, ...views().map((view) => histogram(rollout, view, limit(view)))));
  part.definition.replaceChildren(
      data.definition ? h("span", { class: "formula", text: visible(data.definition) }) : null,
      h("b", { text: (state.diff ? "Difference of " : "") + NAMES().value }), h("span", { text: ", " + visible(data.unit) + ". " }),
      h("span", { text: limitNote(top) }),
      h("span", { class: "key-up", text: "Line above" }), h("span", { text: ": " + NAMES().up + ". " }),
      h("span", { class: "key-down", text: "Line below" }), h("span", { text: ": " + NAMES().down + ". " }),
      h("span", { class: "key-clip", text: "Double line" }), h("span", { text: ": beyond the limit. " }),
      h("span", { text: known(data.temperature) ? "Both sides at temperature " + data.temperature + ". " : "" }),
      h("span", { text: unscored.some(Boolean) ? "Not scored, hatched: " + Math.max(...unscored) + " of " + plural(rollout.pieces.length, "token") + "." : "" }));
}

// Numbers of a dump have units of their own, so a scale for each; A has one for every panel.
function limitNote(top) {
  const own = views().filter((view) => !view.pair && data.contexts[view.context].limit);
  const log = state.log ? ", logarithmic. " : ". ";
  if (!own.length || state.limit === "fixed") return "Limit \u00b1" + plain(top, 2) + ": " + LIMITS[state.limit][1] + ", one scale for every panel" + log;
  return "A scale for each: " + own.map((view) => view.title + " \u00b1" + plain(limit(view), limit(view) < 0.1 ? 4 : 2)).join(", ") + log;
}

function histogram(rollout, view, top) {
  const counts = new Array(2 * LEVELS + 1).fill(0);
  const values = valuesOf(rollout, view).filter(known);
  for (const value of values) counts[level(value, top) + LEVELS] += 1;
  const highest = Math.sqrt(Math.max(...counts, 1));
  const drawing = s("svg", { viewBox: "0 0 132 34", width: "132", height: "34", role: "img", class: "histogram",
    "aria-label": "Distribution of " + NAMES().value + " under " + view.title + ": " + values.filter((value) => value < 0).length + " of " + plural(values.length, "token") + " negative" });
  counts.forEach((count, at) => {
    const size = (Math.sqrt(count) / highest) * 30;
    drawing.append(s("rect", { class: "bin " + levelClass(at - LEVELS), x: at * 4, y: 32 - size, width: 3.4, height: Math.max(size, count ? 1 : 0) }));
  });
  drawing.append(s("line", { class: "rule", x1: 0, x2: 132, y1: 32.5, y2: 32.5 }));
  return h("div", { class: "histogram-box" }, drawing, h("span", { text: view.title }));
}
