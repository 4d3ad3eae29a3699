// The colour scale of A; the same functions as in stepalign/report/scale.py.

const LEVELS = 16;
const KNEE = 0.05;

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
const beyond = (value, limit) => known(value) && Math.abs(value) > limit * (1 + 1e-9);

function percentile(values, percent) {
  const sizes = values.filter(known).map(Math.abs).sort((a, b) => a - b);
  return sizes[Math.max(1, Math.ceil((percent / 100) * sizes.length)) - 1] || sizes[sizes.length - 1] || 1;
}

const LIMITS = {
  all: ["limit: all rollouts", "99th percentile of |A| over all rollouts and contexts"],
  rollout: ["limit: this rollout", "99th percentile of |A| in this rollout"],
  largest: ["limit: largest |A|", "largest |A| in this rollout"],
  fixed: ["limit: fixed", "chosen by hand"],
};

// One limit for every panel, so that equal colours are equal values; numbers of a dump have one each.
function limit(view) {
  const own = view && !view.pair ? data.contexts[view.context].limit : null;
  if (state.limit === "fixed") return state.fixed;
  if (state.limit === "all") return own || data.limit;
  if (own) return percentile(contextOf(current(), view.context).a, state.limit === "rollout" ? data.percentile : 100);
  const values = current().contexts.flatMap((entry) => entry.a);
  return percentile(values, state.limit === "rollout" ? data.percentile : 100);
}
