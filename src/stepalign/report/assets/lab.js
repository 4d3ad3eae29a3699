// The lab's form: what is typed here is scored by the server this page came from, and drawn by the viewer.

const DEBOUNCE = 350; // milliseconds between the last keystroke and the question
const form = { more: {}, question: "", completion: "", answer: "", reference: "", temperature: null, count: 8, contexts: [{ name: "feedback", text: "" }] };
const MORE = ["id", "verdict", "case", "wrong_step", "wrong_text", "system", "chat_options", "prompts"];
const fields = {};
const client = crypto.randomUUID();
let beginning; // what the server said the form starts with
let number = 0; // of the newest request
let timer = 0;
let asking = null; // the newest request, while it is on its way

async function ask(path, body, signal) {
  const token = new URLSearchParams(location.search).get("token") || "";
  const response = await fetch(path, {
    method: "POST", signal, headers: { "content-type": "application/json", "x-lab-token": token }, body: JSON.stringify({ client, ...body }),
  });
  const value = await response.json();
  if (response.status === 409) return null;
  if (!response.ok) throw new Error(value.error || "the server answered " + response.status);
  return value;
}

const request = () => ({
  ...form.more, // what a file says beyond what the form shows: labels, prompts of its own
  question: form.question, completion: form.completion, answer: form.answer, reference: form.reference, temperature: form.temperature,
  contexts: Object.fromEntries(form.contexts.map(({ name, text }) => [name, text])),
});

// Nothing to ask about, or a name given twice: shown beside the form, not asked.
function unready() {
  const names = form.contexts.map(({ name }) => name.trim());
  if (!form.completion) return "Paste an attempt.";
  if (names.some((name) => !name)) return "Every feedback needs a name.";
  if (new Set(names).size < names.length) return "Two feedbacks have the same name.";
  return "";
}

function changed() {
  clearTimeout(timer);
  const missing = unready();
  say(missing);
  timer = missing ? 0 : setTimeout(scoreForm, DEBOUNCE);
  markWaiting();
}

// Whether the shown result is older than the form.
function markWaiting() {
  lab.toggleAttribute("data-waiting", Boolean(timer || asking));
}

async function scoreForm() {
  timer = 0;
  const mine = (number += 1);
  if (asking) asking.abort();
  asking = new AbortController();
  busy(true);
  try {
    const found = await ask("score", { request: request() }, asking.signal);
    if (mine !== number || !found) return; // a newer request is on its way
    showSignal(found);
    say("");
  } catch (error) {
    if (mine === number && error.name !== "AbortError") say(error.message, true);
  } finally {
    if (mine === number) { asking = null; busy(false); }
  }
}

// Continuations from just before a token, as written and with the self-teacher's; the card shows how many are right.
async function askWhatIf(token) {
  if (timer || asking) return; // what is shown is about to change
  const mine = (number += 1);
  asking = new AbortController();
  busy(true, "Drawing continuations\u2026");
  try {
    const found = await ask("what_if", { request: request(), token, count: form.count }, asking.signal);
    if (mine !== number || !found) return;
    data.what_if = { ...data.what_if, ...found.what_if };
    drawDock();
    say("");
  } catch (error) {
    if (mine === number && error.name !== "AbortError") say(error.message, true);
  } finally {
    if (mine === number) { asking = null; busy(false); }
  }
}

function whatIfControls(token) {
  const count = h("select", { "aria-label": "Continuations of each version", onchange: (event) => { form.count = Number(event.target.value); } },
    ...[4, 8, 16, 32].map((value) => option(value, "2 \u00d7 " + value, value === form.count)));
  return [chip("resample from here", () => askWhatIf(token), { kind: "what-if-ask" }), " ", count];
}

function cancelScoring() {
  if (!asking) return;
  number += 1;
  asking.abort();
  asking = null;
  ask("cancel", {}).catch(() => {});
  busy(false);
  say("Cancelled; what is shown is the last result.");
}

function busy(on, words = "Scoring\u2026") {
  lab.setAttribute("aria-busy", String(on));
  fields.cancel.disabled = !on;
  markWaiting();
  if (on) say(words);
}

function say(text, wrong = false) {
  fields.status.textContent = visible(text);
  fields.status.classList.toggle("wrong", wrong);
}

// The viewer draws what came, at the token one was looking at.
function showSignal({ index, rollouts }) {
  const before = data && data.contexts.map((context) => context.name);
  data = index;
  stored = rollouts.map((rollout) => ({ rollout }));
  const length = current().pieces.length;
  state.pins = state.pins.filter((token) => token < length);
  if (state.range && state.range[1] > length) state.range = null;
  const same = before && before.length === data.contexts.length;
  if (!same) state.shown = data.contexts.map((_, at) => at);
  if (state.shown.length < 2) state.diff = false;
  if (!part.main) { build(); listenToPage(); state.token = Math.max(strongest(valuesOf(current(), views()[0])), 0); }
  state.token = Math.min(state.token, length - 1);
  drawList();
  drawRollout();
  root.classList.add("ready", "single");
}

// ---- the form itself

// What was said about an attempt is not said about another one.
function forget() {
  for (const name of ["id", "verdict", "case", "wrong_step", "wrong_text"]) delete form.more[name];
}

function area(name, title, rows) {
  return h("label", { class: "field" }, h("span", { text: title }),
    h("textarea", { rows: String(rows), spellcheck: "false", "aria-label": title, oninput: (event) => { form[name] = event.target.value; forget(); changed(); } }));
}

function drawDesk() {
  for (const name of ["question", "completion", "answer", "reference"]) fields[name].querySelector("textarea").value = form[name];
  fields.temperature.value = known(form.temperature) ? form.temperature : beginning.temperature;
  keepingFocus(fields.contexts, () => fields.contexts.replaceChildren(...form.contexts.map(contextCard)));
  fields.add.disabled = form.contexts.length >= 4;
}

function contextCard(context, at) {
  const text = h("textarea", { rows: "6", spellcheck: "false", "aria-label": "Feedback " + (at + 1), oninput: (event) => { context.text = event.target.value; changed(); } });
  text.value = context.text;
  const name = h("input", { type: "text", class: "context-name", maxlength: "80", "aria-label": "Name of feedback " + (at + 1), oninput: (event) => { context.name = event.target.value; changed(); } });
  name.value = context.name;
  const fill = h("select", { "aria-label": "Fill feedback " + (at + 1) + " from a design", onchange: (event) => fillFrom(context, event.target) },
    option("", "fill in\u2026"), ...beginning.designs.map((design) => option(design.name, design.label)));
  const drop = h("button", { type: "button", class: "chip", "aria-label": "Remove feedback " + (at + 1), disabled: form.contexts.length < 2, text: "\u00d7", onclick: () => {
    form.contexts = form.contexts.filter((one) => one !== context);
    drawDesk();
    changed();
  } });
  return h("div", { class: "context-card" }, h("p", { class: "context-top" }, name, fill, drop), text);
}

async function fillFrom(context, select) {
  const design = select.value;
  select.value = "";
  if (!design) return;
  try {
    say("Writing\u2026");
    const found = await ask("fill", { request: request(), design });
    if (!found) return;
    context.text = found.text;
    if (/^feedback( \d)?$/.test(context.name) && !form.contexts.some(({ name }) => name === design)) context.name = design;
    drawDesk();
    changed();
  } catch (error) {
    say(error.message, true);
  }
}

function addContext() {
  const names = form.contexts.map(({ name }) => name);
  let at = form.contexts.length + 1;
  while (names.includes("feedback " + at)) at += 1;
  form.contexts.push({ name: "feedback " + at, text: "" });
  drawDesk();
  changed();
}

function layOut(found) {
  form.contexts = Object.entries(found.contexts).map(([name, text]) => ({ name, text }));
  for (const name of ["question", "completion", "answer", "reference"]) form[name] = String(found[name] || "");
  form.temperature = known(found.temperature) ? found.temperature : null;
  form.more = {};
  for (const name of MORE) if (known(found[name])) form.more[name] = found[name];
  drawDesk();
  changed();
}

// One line, as `stepalign signal` reads it.
function saveRequest() {
  const row = Object.fromEntries(Object.entries(request()).filter(([name, value]) => known(value) && (value !== "" || name === "wrong_step")));
  const link = h("a", { href: URL.createObjectURL(new Blob([JSON.stringify(row) + "\n"], { type: "application/jsonl" })), download: "lab.jsonl" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function openFile(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const found = (await file.text()).split("\n").filter((line) => line.trim()).map((line) => ({ name: file.name, request: JSON.parse(line) }));
    const fitting = found.filter((one) => one.request && typeof one.request.completion === "string" && one.request.contexts && Object.keys(one.request.contexts).length <= 4);
    if (!fitting.length) throw new Error("no line with question, completion and one to four contexts");
    fitting.forEach((one, at) => { one.name = visible(file.name) + (fitting.length > 1 ? " " + (at + 1) : ""); });
    beginning.examples = [...fitting, ...beginning.examples];
    drawExamples();
    layOut(fitting[0].request);
  } catch (error) {
    say("This file cannot be read: " + error.message, true);
  }
}

function drawExamples() {
  fields.examples.replaceChildren(option("", "load\u2026"), ...beginning.examples.map((example, at) => option(at, visible(example.name))));
}

function buildDesk() {
  Object.assign(fields, {
    question: area("question", "Question", 2),
    completion: area("completion", "Attempt", 6),
    answer: area("answer", "Expected answer", 1),
    reference: area("reference", "Reference solution", 4),
    contexts: h("div", { class: "contexts" }),
    status: h("p", { class: "status", role: "status" }),
    examples: h("select", { "aria-label": "Examples", onchange: (event) => { if (event.target.value !== "") layOut(beginning.examples[Number(event.target.value)].request); event.target.value = ""; } }),
    temperature: h("input", { type: "number", class: "fixed", min: "0.01", step: "any", "aria-label": "Temperature", onchange: (event) => { form.temperature = Number(event.target.value) > 0 ? Number(event.target.value) : null; changed(); } }),
    add: chip("add feedback", addContext),
    cancel: chip("cancel", cancelScoring, { kind: "cancel", off: true }),
  });
  const file = h("input", { type: "file", accept: ".jsonl,.json", hidden: true, "aria-label": "Open a JSONL file", onchange: openFile });
  lab.replaceChildren(
    h("div", { class: "form-tools" }, fields.examples, chip("open", () => file.click()), chip("save", saveRequest, { kind: "save" }), file,
      h("label", { class: "temperature" }, h("span", { text: "temperature" }), fields.temperature)),
    h("div", { class: "form-tools" }, fields.status, fields.cancel),
    fields.question, fields.completion,
    h("details", {}, h("summary", { text: "Expected answer and reference" }), fields.answer, fields.reference),
    fields.contexts,
    h("div", { class: "form-tools" }, fields.add));
}

if (lab) {
  beginning = JSON.parse(document.getElementById("lab-data").textContent);
  buildDesk();
  drawExamples();
  if (beginning.examples.length) layOut(beginning.examples[0].request);
  else { drawDesk(); changed(); }
  window.addEventListener("pagehide", () => { if (asking) asking.abort(); });
}
