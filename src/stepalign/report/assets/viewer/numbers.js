// This rollout in numbers, for every context that is shown.

function drawNumbers() {
  const rollout = current();
  const wrong = rollout.steps.find((step) => step[1] === "wrong");
  const right = rollout.steps.filter((step) => step[1] === "right");
  const after = rollout.steps.filter((step) => step[1] === "after_error");
  const shown = available(rollout).filter((context) => state.shown.includes(context)).map((context) => viewOf(rollout, context));
  const inside = (steps) => (values) => signed(mean(steps.flatMap((step) => values.slice(step[2], step[3]))), 3);
  const rows = [];
  if (right.length) rows.push(["Mean A on right steps", inside(right)]);
  if (wrong) {
    const tokens = (100 * (wrong[3] - wrong[2])) / rollout.pieces.length;
    const share = (values) => {
      const sizes = values.map((value) => Math.abs(value || 0));
      const all = total(sizes);
      return (all ? ((100 * total(sizes.slice(wrong[2], wrong[3]))) / all).toFixed(1) + " %" : MISSING) + " (its share of tokens: " + tokens.toFixed(1) + " %)";
    };
    rows.push(["Mean A on the first wrong step", inside([wrong])]);
    if (tokens < 100) rows.push(["Share of |A| in the first wrong step", share]); // all of it otherwise
  }
  if (after.length) rows.push(["Mean A after the error", inside(after)]);
  if (right.length) {
    rows.push(["Tokens of right steps suppressed (A < 0)", (values) => {
      const found = right.flatMap((step) => values.slice(step[2], step[3])).filter(known);
      return found.filter((value) => value < 0).length + " of " + found.length;
    }]);
  }
  rows.push([numeric() ? "Tokens below 0" : "Tokens suppressed (A < 0)", (values) => values.filter((value) => known(value) && value < 0).length + " of " + values.filter(known).length]);
  rows.push(["Strongest token", (values) => {
    const at = strongest(values);
    return at < 0 ? MISSING : [signed(values[at], 2) + " at ", h("button", { type: "button", class: "link", text: "token " + at, onclick: () => { reveal(at); writeHash(); } })];
  }]);
  part.numbers.replaceChildren(scrollable("Numbers of this rollout", h("table", {},
    h("caption", { text: "This rollout in numbers (" + visible(data.unit) + ")" }),
    h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "Quantity" }), ...shown.map((view) => h("th", { scope: "col", text: view.title })))),
    h("tbody", {}, ...rows.map(([name, compute]) => h("tr", {}, h("th", { scope: "row", text: name }),
      ...shown.map((view) => h("td", {}, ...[compute(valuesOf(rollout, view))].flat()))))))));
}
