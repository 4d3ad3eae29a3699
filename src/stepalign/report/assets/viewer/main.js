// The frame of the viewer, and its start.

const FIRST = ["step_aligned", "reference"];

function build() {
  part.head = h("header", { class: "attempt-head" });
  part.tools = h("div", { class: "tools", role: "toolbar", "aria-label": "View" });
  part.legend = h("div", { class: "legend" });
  part.definition = h("p", { class: "definition" });
  part.panels = h("div", { class: "panels" });
  part.strips = h("div", { class: "strips" });
  part.numbers = h("div", { class: "numbers" });
  part.dock = h("aside", { class: "dock", "aria-label": "Token under the cursor" });
  part.peek = h("div", { class: "peek", hidden: true, "aria-hidden": "true" });
  part.figure = h("div", { class: "figure" }, part.legend, part.panels, part.definition, part.strips);
  part.main = h("div", { class: "view" }, part.head, part.tools, part.figure, part.numbers, part.dock);
  root.replaceChildren(buildList(), part.main, part.peek, buildHelp());
  part.panels.addEventListener("mousemove", hover);
  part.panels.addEventListener("mouseleave", unpeek);
  part.panels.addEventListener("click", (event) => pin(event.target.closest(".t")));
  part.panels.addEventListener("focusin", (event) => {
    const token = event.target.closest(".t");
    if (token && Number(token.dataset.t) !== state.token) select(Number(token.dataset.t));
  });
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(part.main.clientWidth - width) > 2) { width = part.main.clientWidth; drawStrips(); }
  }).observe(part.main);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawStrips);
}

function listenToPage() {
  document.addEventListener("keydown", keys);
  window.addEventListener("hashchange", async () => { if (await readHash()) { drawList(); drawRollout(); } });
  if (!lab) listenForFiles();
}

function drawRollout() {
  keepingFocus(part.head, drawHead);
  redraw();
}

function redraw() {
  const walking = part.panels.contains(document.activeElement) && document.activeElement.closest(".t");
  keepingFocus(part.tools, drawTools);
  drawLegend();
  drawPanels();
  drawStrips();
  drawNumbers();
  select(state.token);
  if (walking) focusToken();
}

function complain(error) {
  root.replaceChildren(h("p", { class: "empty", text: "The stored signal could not be read: " + error.message }));
  throw error;
}

// Two of the contexts that the rollouts have: the step-aligned critique and the reference before any others.
function firstShown() {
  if (stepped()) state.at = steps()[0];
  const rank = (at) => (FIRST.indexOf(data.contexts[at].of || data.contexts[at].name) + 1 || FIRST.length + 1);
  const there = [...new Set(data.rollouts.flatMap((rollout) => rollout.contexts))].filter(atStep);
  return there.sort((a, b) => rank(a) - rank(b) || a - b).slice(0, 2).sort((a, b) => a - b);
}

async function start() {
  readPage();
  const nothing = data.rollouts.every((rollout) => !rollout.contexts.length);
  if (nothing) { root.replaceChildren(h("p", { class: "empty", text: "No rollouts are stored in this signal." })); return; }
  state.shown = firstShown();
  root.classList.toggle("single", data.rollouts.length === 1);
  build();
  listenToPage();
  const linked = await readHash();
  if (!linked) {
    state.rollout = data.first; // at its strongest token
    await fetchRollout(state.rollout);
    state.token = Math.max(strongest(valuesOf(current(), views()[0])), 0);
  }
  drawList();
  drawRollout();
  root.classList.add("ready");
  if (linked) { root.scrollIntoView(); reveal(state.token); }
}

if (root && document.getElementById("signal-data")) start().catch(complain);
