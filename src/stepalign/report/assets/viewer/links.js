// Deep links: the address names the shown state.

function writeHash() {
  if (location.protocol === "about:") return; // a frame of a notebook has no address of its own
  const fields = new URLSearchParams({ rollout: current().id, t: String(state.token), c: state.shown.map((at) => at + 1).join(",") });
  if (state.diff) fields.set("d", "1");
  if (state.calibrated) fields.set("z", "1");
  if (state.beside) fields.set("f", "1");
  if (state.log) fields.set("log", "1");
  if (state.limit !== "all") fields.set("limit", state.limit === "fixed" ? String(state.fixed) : state.limit);
  if (state.pins.length) fields.set("pins", state.pins.join(","));
  if (state.range) fields.set("range", state.range.join("-"));
  history.replaceState(null, "", "#" + fields);
}

// Sets the state from the address; false where it names nothing on the page.
async function readHash() {
  // "#ROLLOUT&TOKEN", as one writes it by hand, names a token too.
  const short = /^#([^=&]+)&(\d+)$/.exec(location.hash);
  if (!short && !location.hash.startsWith("#rollout=")) return false;
  const fields = new URLSearchParams(short ? { rollout: decodeURIComponent(short[1]), t: short[2] } : location.hash.slice(1));
  const name = fields.get("rollout");
  let at = data.rollouts.findIndex((rollout) => rollout.id === name);
  if (at < 0 && /^\d+$/.test(name)) at = Number(name) - 1;
  if (!data.rollouts[at]) return false;
  await fetchRollout(at);
  state.rollout = at;
  const length = current().pieces.length;
  const numbers = (key, separator) => (fields.get(key) || "").split(separator).filter((text) => /^\d+$/.test(text)).map(Number);
  const shown = numbers("c", ",").map((context) => context - 1).filter((context) => data.contexts[context]);
  state.token = Math.max(0, Math.min(length - 1, Number(fields.get("t")) || 0));
  if (shown.length) state.shown = [...new Set(shown)].slice(0, 4);
  if (shown.length && stepped()) state.at = data.contexts[shown[0]].step;
  state.diff = fields.get("d") === "1" && state.shown.length > 1;
  state.calibrated = fields.get("z") === "1";
  state.beside = fields.get("f") === "1";
  state.log = fields.get("log") === "1";
  const limits = fields.get("limit") || "all";
  if (Number(limits) > 0) Object.assign(state, { limit: "fixed", fixed: Number(limits) });
  else if (LIMITS[limits] && limits !== "fixed") state.limit = limits;
  state.pins = [...new Set(numbers("pins", ","))].filter((token) => token < length);
  const [from, to] = numbers("range", "-");
  state.range = known(to) && from < to && to <= length ? [from, to] : null;
  state.collapsed.clear();
  return true;
}
