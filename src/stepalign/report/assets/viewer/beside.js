// The feedback beside the attempt, step by step: kept, rewritten, dropped or added, as the alignment found.

const MOST_WORDS = 400; // of a step that are compared

const fatesKnown = (rollout, context) => contextOf(rollout, context).rows.length > 0;

// Rows of the alignment beside a step: its own, and the steps that the feedback adds behind it.
function fatesOf(rollout, context, step) {
  return contextOf(rollout, context).rows.filter((row) => row[0] === step)
    .map(([, fate, name, start, end]) => ({ fate: FATE[fate] ? fate : "edited", name, start, end }));
}

function alignmentFacts(found) {
  const parts = [["copied", "kept"], ["edited", "rewritten"], ["missing", "dropped"], ["added", "added"]]
    .filter(([key]) => found[key]).map(([key, word]) => found[key] + " " + word);
  if (found.full_solution) parts.push("a solution of its own");
  if (found.wrong_text_repeated) parts.push("repeats the wrong text");
  return "steps " + parts.join(", ");
}

function feedbackStep(rollout, context, step, fates) {
  const text = contextOf(rollout, context).text;
  const own = rollout.pieces.slice(step[2], step[3]).filter((_, at) => !rollout.special.includes(step[2] + at)).join("");
  const blocks = fates.map(({ fate, start, end }) => {
    const words = known(start) ? text.slice(start, end).trim() : "";
    const body = h("p", { class: "raw" });
    if (fate === "edited") body.append(...changes(own, words).map(([word, fresh]) => (fresh ? h("ins", { text: visible(word) }) : visible(word))));
    else body.textContent = fate === "missing" ? "(not in the feedback)" : visible(words);
    return h("div", { class: "feedback-step is-" + fate }, body);
  });
  return h("div", { class: "feedback-steps", role: "group", "aria-label": "Feedback " + label(context) + " on " + stepName(step) },
    ...(blocks.length ? blocks : [h("p", { class: "faint", text: "(no step of the feedback)" })]));
}

// The words of the new text, each with a mark where it is outside a longest common subsequence with the old.
function changes(before, after) {
  const split = (text) => text.match(/\s+|\p{N}+|\p{L}+|[^]/gu) || [];
  const old = split(before).filter((word) => word.trim()).slice(0, MOST_WORDS);
  const parts = split(after);
  const places = parts.map((word, at) => at).filter((at) => parts[at].trim()).slice(0, MOST_WORDS);
  const best = Array.from({ length: old.length + 1 }, () => new Uint16Array(places.length + 1));
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = places.length - 1; j >= 0; j -= 1) {
      best[i][j] = old[i] === parts[places[j]] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    }
  }
  const kept = new Set();
  for (let i = 0, j = 0; i < old.length && j < places.length;) {
    if (old[i] === parts[places[j]]) { kept.add(places[j]); i += 1; j += 1; } else if (best[i + 1][j] >= best[i][j + 1]) i += 1; else j += 1;
  }
  return parts.map((word, at) => [word, Boolean(word.trim()) && !kept.has(at)]);
}
