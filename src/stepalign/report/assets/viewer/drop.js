// A signal.jsonl dropped on the page is shown in its place; nothing leaves the browser.

const SIDES = { student_log_prob: "student", student_entropy: "student_entropy", forward_kl: "kl", teacher_entropy: "entropy" };

// The data of the page from the lines of a signal.jsonl; throws where a line is none.
function readLines(text) {
  const names = [];
  const rollouts = new Map();
  text.split("\n").forEach((line, number, all) => {
    if (!line.trim()) return;
    let row;
    try { row = JSON.parse(line); } catch (error) {
      if (number === all.length - 1) return; // the torn end of a killed process
      throw new Error("line " + (number + 1) + " is no JSON");
    }
    if (!Array.isArray(row.log_ratio) || !Array.isArray(row.tokens)) throw new Error("line " + (number + 1) + " is no record of a signal");
    if (!names.includes(row.context)) names.push(row.context);
    if (!rollouts.has(row.rollout_id)) rollouts.set(row.rollout_id, rolloutOf(row));
    rollouts.get(row.rollout_id).contexts.push(contextOfLine(row, names.indexOf(row.context)));
  });
  if (!rollouts.size) throw new Error("it holds no rollouts");
  const found = [...rollouts.values()];
  return {
    rollouts: found,
    index: {
      kind: "signal", model: "", temperature: null, unit: "nats", definition: "", percentile: 99, alternatives: 5, digits: 4,
      limit: percentile(found.flatMap((one) => one.contexts.flatMap((entry) => entry.a)), 99),
      contexts: names.map((name) => ({ name, label: name })),
      rollouts: found.map((one) => ({
        id: one.id, case: one.case, verdict: one.verdict, question: one.question, tokens: one.pieces.length,
        contexts: one.contexts.map((entry) => entry.context),
        strongest: Math.abs(one.contexts.reduce((best, { a }) => Math.max(best, Math.abs(a[strongest(a)] || 0)), 0)),
        bars: one.contexts.map(({ a }) => barsOf(a)),
      })),
    },
  };
}

function barsOf(a) {
  const count = Math.min(48, a.length);
  return Array.from({ length: count }, (_, bar) => {
    const piece = a.slice(Math.floor((bar * a.length) / count), Math.floor(((bar + 1) * a.length) / count));
    return piece[strongest(piece)] || 0;
  });
}

function rolloutOf(row) {
  const gaps = {};
  let reached = 0;
  [...row.spans, [row.text.length, row.text.length + 1]].forEach(([start, end], at) => {
    if (end <= start) return;
    if (start > reached) gaps[at] = row.text.slice(reached, start);
    reached = Math.max(reached, end);
  });
  const special = new Set(row.special);
  const joined = row.spans.flatMap(([start, end], at) => (at && !special.has(at) && (start === end || start < row.spans[at - 1][1]) ? [at] : []));
  const steps = [];
  row.step.forEach((index, token) => {
    const last = steps[steps.length - 1];
    if (last && last.index === index) last.end = token + 1;
    else steps.push({ index, start: token, end: token + 1 });
  });
  return {
    id: row.rollout_id, case: row.case || "", verdict: row.verdict || "", question: row.question || "", expected: row.expected_answer,
    reference: row.reference, pieces: row.tokens, gaps, ids: row.token_ids, unknown: row.unknown_tokens || 0, special: row.special, joined,
    steps: steps.map(({ index, start, end }) => (index < 0 ? ["", "unknown", start, end] : [row.steps[index].label, row.steps[index].status, start, end])),
    contexts: [],
  };
}

function contextOfLine(row, context) {
  const flat = (lists) => (lists ? lists.map((list) => list.flat()) : null);
  return {
    context, text: row.context_text || "", prompt: null, dropped: row.context_tokens_dropped || 0, case: row.critic_case || "",
    first_error: row.first_error || "", a: row.log_ratio, rows: [], alignment: null,
    rest: row.log_ratio.map((value, at) => (known(value) && known(row.teacher_log_prob[at]) ? Math.round((row.teacher_log_prob[at] - row.student_log_prob[at] - value) * 1e6) : null)),
    ...Object.fromEntries(Object.entries(SIDES).map(([theirs, ours]) => [ours, row[theirs]])),
    top_student: flat(row.top_student), top: flat(row.top_teacher),
  };
}

async function openDropped(file) {
  let found;
  try { found = readLines(await file.text()); } catch (error) { announce(file.name + " is not shown: " + error.message); return; }
  data = found.index;
  stored = found.rollouts.map((rollout) => ({ rollout }));
  Object.assign(state, { rollout: 0, token: 0, pins: [], range: null, verdict: "", case: "", search: "", diff: false, calibrated: false, beside: false });
  state.collapsed.clear();
  state.shown = firstShown();
  root.classList.toggle("single", data.rollouts.length === 1);
  build();
  state.token = Math.max(strongest(valuesOf(current(), views()[0])), 0);
  drawList();
  drawRollout();
  announce(file.name + ": " + plural(data.rollouts.length, "rollout"));
}

function announce(text) {
  const note = h("p", { class: "dropped", role: "status", text: visible(text) });
  (root.querySelector(".dropped") || root.appendChild(h("p"))).replaceWith(note);
}

function listenForFiles() {
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    if (name === "drop" && event.dataTransfer.files[0]) openDropped(event.dataTransfer.files[0]);
  });
}
