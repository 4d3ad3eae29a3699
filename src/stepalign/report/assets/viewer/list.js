// The list of rollouts: filters, order, search.

function buildList() {
  part.filters = h("div", { class: "filters" });
  part.list = h("ol", { class: "rollouts", "aria-label": "Rollouts" });
  part.search = h("input", {
    type: "search", class: "search", placeholder: "search  /", "aria-label": "Search questions and attempts", autocomplete: "off",
    oninput: (event) => search(event.target.value),
    onkeydown: searchKeys,
  });
  part.found = h("p", { class: "found", role: "status" });
  const sort = h("select", { "aria-label": "Order of the rollouts", onchange: (event) => { state.sort = event.target.value; drawList(); } },
    option("file", "as stored"), option("signal", "strongest signal"), option("length", "longest"));
  return h("nav", { class: "side", "aria-label": "Rollouts" }, part.search, part.found, part.filters,
    h("label", { class: "sort" }, h("span", { text: "order" }), sort), part.list);
}

function listed() {
  const list = data.rollouts.map((rollout, at) => ({ rollout, at })).filter(({ rollout, at }) =>
    (!state.verdict || rollout.verdict === state.verdict) && (!state.case || rollout.case === state.case) && matches(rollout, at));
  if (state.sort === "signal") list.sort((a, b) => b.rollout.strongest - a.rollout.strongest);
  if (state.sort === "length") list.sort((a, b) => b.rollout.tokens - a.rollout.tokens);
  return list;
}

function drawList() {
  keepingFocus(part.filters, drawFilters);
  const rows = listed();
  part.list.replaceChildren(...rows.map(({ rollout, at }) => h("li", {},
    h("button", { type: "button", class: "rollout", "data-at": at, onclick: () => open(at) },
      h("span", { class: "rollout-top" }, h("b", { text: String(at + 1) }), h("span", { class: "case", text: caseFact(rollout.case) || VERDICTS[rollout.verdict] || "" })),
      h("span", { class: "rollout-question", text: visible(rollout.question).slice(0, 80) }),
      barcode(rollout)))));
  part.found.textContent = state.search ? plural(rows.length, "rollout") + " with \u201c" + visible(state.search) + "\u201d" : rows.length ? "" : "No rollout passes these filters.";
  markCurrent();
}

function markCurrent() {
  for (const button of part.list.querySelectorAll(".rollout")) {
    if (Number(button.dataset.at) === state.rollout) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function drawFilters() {
  const group = (name, key, names, title) => {
    const counts = new Map();
    for (const rollout of data.rollouts) counts.set(rollout[key], (counts.get(rollout[key]) || 0) + 1);
    if (counts.size < 2) return null;
    const one = (value, text) => chip(text, () => { state[key] = state[key] === value ? "" : value; drawList(); }, { pressed: state[key] === value });
    return h("div", { class: "chips", role: "group", "aria-label": name },
      one("", "All " + data.rollouts.length), ...[...counts].filter(([value]) => value).map(([value, count]) => one(value, title(value) + " " + count)));
  };
  part.filters.replaceChildren(...[
    group("Filter by verdict", "verdict", VERDICTS, (name) => VERDICTS[name] || visible(name)),
    group("Filter by case", "case", CASES, caseName),
  ].filter(known));
}

// Where the signal of a rollout falls, in the colours of the scale: the strongest A of each stretch of tokens.
function barcode(rollout) {
  const context = state.shown.find((at) => rollout.contexts.includes(at));
  const bars = rollout.bars[Math.max(rollout.contexts.indexOf(context), 0)] || [];
  return h("span", { class: "barcode", "aria-hidden": "true" }, ...bars.map((value) => h("i", { class: levelClass(level(value, data.limit)) })));
}

// ---- search: in questions and attempts, without regard to case

const attempt = (rollout) => rollout.pieces.filter((_, at) => !rollout.joined.includes(at)).join("");

function matches(rollout, at) {
  if (!state.search) return true;
  const opened = stored[at].rollout;
  const texts = [rollout.question, rollout.id, opened ? attempt(opened) : ""];
  return texts.some((text) => String(text).toLowerCase().includes(state.search));
}

async function search(words) {
  state.search = words.toLowerCase();
  if (state.search) {
    part.found.textContent = "searching";
    await Promise.all(data.rollouts.map((_, at) => fetchRollout(at)));
    if (state.search !== words.toLowerCase()) return; // something else was typed meanwhile
  }
  drawList();
  markHits();
}

// First tokens of all places of the words in the open attempt.
function hits() {
  if (!state.search) return [];
  const rollout = current();
  const starts = [];
  let text = "";
  rollout.pieces.forEach((piece, token) => { if (!rollout.joined.includes(token)) { starts.push([text.length, token]); text += piece; } });
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return []; // a letter whose small form is longer: places would be off
  const found = [];
  for (let at = lower.indexOf(state.search); at >= 0; at = lower.indexOf(state.search, at + state.search.length)) {
    const inside = starts.filter(([start], place) => start < at + state.search.length && (starts[place + 1] ? starts[place + 1][0] : text.length) > at);
    found.push(inside.map(([, token]) => token));
  }
  return found;
}

function markHits() {
  const marked = new Set(hits().flat());
  for (const panel of cells) panel.forEach((cell, token) => cell.classList.toggle("hit", marked.has(token)));
}

// Enter walks from hit to hit and, after the last, to the next rollout that has one.
async function searchKeys(event) {
  if (event.key === "Escape") {
    event.target.value = "";
    await search("");
    focusToken();
  }
  if (event.key !== "Enter") return;
  event.preventDefault();
  const onward = hits().find((tokens) => tokens[0] > state.token);
  if (onward) { reveal(onward[0], { focus: false }); return; }
  const rows = listed().map(({ at }) => at);
  if (!rows.length) return;
  await open(rows[(rows.indexOf(state.rollout) + 1) % rows.length]);
  const first = hits()[0];
  if (first) reveal(first[0], { focus: false });
}
