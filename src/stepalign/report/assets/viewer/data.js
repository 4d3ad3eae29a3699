// The data of the page and the shown part of it. The index is read at once, a rollout when it is opened: the one shown
// first comes before this script, the others behind it, so that the tokens wait for none of them.

const CASES = {
  correct: "Fully correct", one_wrong_step: "One wrong step", incomplete: "Incomplete", wrong_approach: "Wrong approach",
};
const VERDICTS = { correct: "correct", incorrect: "wrong", undecided: "undecided" };
const STATUS = { right: "right", wrong: "first wrong step", after_error: "after the error", unknown: "not judged" };
const FATE = { copied: "kept", edited: "rewritten", missing: "dropped", added: "added" };

let data; // the index: contexts, scale, one summary per rollout
let stored = []; // one per rollout: its data, still packed or open
const state = {
  rollout: 0, token: 0, panel: 0, at: null, shown: [0, 1], diff: false, calibrated: false, beside: false, log: false, limit: "all", fixed: 1,
  spaces: false, pins: [], range: null, verdict: "", case: "", sort: "file", search: "", collapsed: new Set(),
};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function readPage() {
  data = JSON.parse(document.getElementById("signal-data").textContent);
  stored = data.rollouts.map(() => ({}));
}

const pageRead = () => new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));

// Opens a rollout's data; at once where they are open already.
function fetchRollout(at) {
  const entry = stored[at];
  if (entry.rollout) return entry.rollout;
  const element = document.querySelector('[data-rollout="' + at + '"]');
  // Text behind an element says that all of it has come.
  if (document.readyState === "loading" && !(element && element.nextSibling)) return pageRead().then(() => fetchRollout(at));
  const found = JSON.parse(element.textContent);
  if (typeof found !== "string") return (entry.rollout = found);
  entry.coming = entry.coming || unpack(found).then((rollout) => (entry.rollout = rollout));
  return entry.coming;
}

const numeric = () => data.kind === "numbers"; // numbers that a dump holds, no A_t
const NAMES = () => (numeric()
  ? { value: "value", less: "negative", more: "positive", up: "positive", down: "negative" }
  : { value: "A", less: "less likely with the feedback", more: "more likely", up: "reinforced", down: "suppressed" });
const current = () => stored[state.rollout].rollout;
const label = (context) => visible(data.contexts[context].label);
const contextOf = (rollout, context) => rollout.contexts.find((entry) => entry.context === context);
const stepped = () => known(data.contexts[0]) && known(data.contexts[0].step); // the same rollouts at several checkpoints
const steps = () => [...new Set(data.contexts.map((context) => context.step))].sort((a, b) => a - b);
const atStep = (context) => !stepped() || data.contexts[context].step === state.at;
const available = (rollout) => rollout.contexts.map((entry) => entry.context).filter(atStep);
const side = (rollout, entry, key) => entry[key] || rollout[key] || [];
const caseName = (name) => CASES[name] || (name ? visible(name).replace(/_/g, " ") : "no case");
const caseFact = (name) => (name && name !== "unknown" ? caseName(name) : "");
const statusOf = (step) => (step && STATUS[step[1]] ? step[1] : "unknown");
const stepOf = (rollout, token) => rollout.steps.findIndex((step) => token >= step[2] && token < step[3]);

function stepName(step) {
  if (!step || step[0] === "") return step && step[1] !== "unknown" ? "Attempt" : "Text";
  const [name, turn] = [visible(step[0]), step[0].endsWith(".answer") && visible(step[0].slice(0, -7))];
  return { answer: "Answer", tool: "The tool", user: "The user" }[step[0]] || (turn ? "Answer " + turn : "Step " + name);
}

// The null context that a context is calibrated by: its own ("NAME / null"), else the design of that name.
function nullOf(rollout, context) {
  const nameOf = (at) => data.contexts[at].of || data.contexts[at].name;
  const name = nameOf(context);
  const find = (wanted) => rollout.contexts.find((entry) => nameOf(entry.context) === wanted && data.contexts[entry.context].step === data.contexts[context].step);
  return !contextOf(rollout, context).text || name === "null" || name.endsWith(" / null") ? undefined : find(name + " / null") || find("null");
}

const less = (values, others) => values.map((value, at) => (known(value) && known(others[at]) ? value - others[at] : null));

// All that is stored about one token under one context.
function reading(rollout, context, token) {
  const entry = contextOf(rollout, context);
  if (!entry) return {};
  const student = side(rollout, entry, "student")[token];
  const ratio = entry.a[token];
  const rest = entry.rest[token];
  return {
    ratio,
    calibrated: less([ratio], [(nullOf(rollout, context) || { a: [] }).a[token]])[0],
    student,
    teacher: known(rest) ? Math.round((student + ratio) * 1e6 + rest) / 1e6 : null,
    kl: entry.kl[token],
    studentEntropy: side(rollout, entry, "student_entropy")[token],
    teacherEntropy: entry.entropy[token],
    topStudent: side(rollout, entry, "top_student")[token] || [],
    topTeacher: (entry.top || [])[token] || [],
  };
}

// A view is the content of one panel: a context, or the difference of two.
function views() {
  const rollout = current();
  const shown = state.shown.filter((context) => contextOf(rollout, context));
  if (state.diff && shown.length > 1) return [{ title: label(shown[0]) + " \u2212 " + label(shown[1]), pair: shown.slice(0, 2) }];
  return (shown.length ? shown : available(rollout).slice(0, 1)).map((context) => viewOf(rollout, context));
}

function viewOf(rollout, context) {
  const calibrated = state.calibrated && Boolean(nullOf(rollout, context));
  return { title: label(context) + (calibrated ? " \u2212 null" : ""), context, calibrated };
}

function valuesOf(rollout, view) {
  if (view.pair) return less(...view.pair.map((context) => contextOf(rollout, context).a));
  const { a } = contextOf(rollout, view.context);
  return view.calibrated ? less(a, nullOf(rollout, view.context).a) : a;
}
