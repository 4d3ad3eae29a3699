// Export of the screen as drawing orders, which become an SVG or a PNG, and of the numbers as CSV.

const pen = document.createElement("canvas").getContext("2d");

function drawing() {
  part.figure.classList.add("exporting");
  const box = part.figure.getBoundingClientRect();
  const paper = getComputedStyle(document.body).backgroundColor;
  const orders = [{ kind: "rect", x: 0, y: 0, w: box.width + 32, h: box.height + 56, fill: paper }];
  collect(part.figure, { x: box.left - 16, y: box.top - 16 }, orders);
  const rollout = current();
  const line = [data.model, "rollout " + rollout.id, caseFact(rollout.case), views().map((view) => view.title).join(" | ")].filter(Boolean).map(visible).join(" \u00b7 ");
  part.figure.classList.remove("exporting");
  orders.push({ kind: "text", x: 16, y: box.height + 40, text: line, fill: getComputedStyle(part.figure).color, font: "11px sans-serif", size: 11, family: "sans-serif" });
  return { width: Math.ceil(box.width + 32), height: Math.ceil(box.height + 56), orders };
}

const solid = (colour) => colour && colour !== "none" && colour !== "transparent" && !/rgba\(.*, 0\)$/.test(colour);

function collect(element, origin, orders) {
  if (element.hasAttribute("data-noexport")) return;
  const style = getComputedStyle(element);
  if (style.display === "none" || style.visibility === "hidden") return;
  if (element instanceof SVGSVGElement) { collectSvg(element, origin, orders); return; }
  for (const box of element.getClientRects()) {
    const at = { x: box.left - origin.x, y: box.top - origin.y, w: box.width, h: box.height };
    if (solid(style.backgroundColor)) orders.push({ kind: "rect", ...at, fill: style.backgroundColor });
    for (const [edge, y] of [["Top", at.y], ["Bottom", at.y + at.h]]) {
      const width = parseFloat(style["border" + edge + "Width"]);
      const colour = style["border" + edge + "Color"];
      if (!width || !solid(colour)) continue;
      const inner = edge === "Top" ? y : y - width;
      if (style["border" + edge + "Style"] === "double") {
        orders.push({ kind: "rect", x: at.x, y: inner, w: at.w, h: width / 3, fill: colour }, { kind: "rect", x: at.x, y: inner + (2 * width) / 3, w: at.w, h: width / 3, fill: colour });
      } else orders.push({ kind: "rect", x: at.x, y: inner, w: at.w, h: width, fill: colour });
    }
  }
  for (const child of element.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) collectText(child, style, origin, orders);
    else if (child.nodeType === Node.ELEMENT_NODE) collect(child, origin, orders);
  }
}

// The fragments of a text node, one per line it occupies.
function collectText(node, style, origin, orders) {
  const range = document.createRange();
  const font = { fill: style.color, size: parseFloat(style.fontSize), family: style.fontFamily, weight: style.fontWeight, font: style.fontWeight + " " + style.fontSize + " " + style.fontFamily };
  pen.font = font.font;
  const ascent = pen.measureText("x").fontBoundingBoxAscent;
  const put = (start, end, box) => {
    const text = node.data.slice(start, end).replace(/[\n\t]/g, "");
    if (text.trim()) orders.push({ kind: "text", x: box.left - origin.x, y: box.top - origin.y + ascent, w: box.width, text, ...font });
  };
  range.selectNodeContents(node);
  const boxes = range.getClientRects();
  if (boxes.length === 1) { put(0, node.data.length, boxes[0]); return; }
  let start = 0;
  let open = null;
  for (let at = 0; at < node.data.length; at += 1) {
    range.setStart(node, at);
    range.setEnd(node, at + 1);
    const box = range.getClientRects()[0];
    if (!box) continue;
    if (open && Math.abs(box.top - open.top) > 3) { put(start, at, open); open = null; }
    if (!open) { start = at; open = { left: box.left, top: box.top, width: box.width }; } else open.width = box.right - open.left;
  }
  if (open) put(start, node.data.length, open);
}

function collectSvg(element, origin, orders) {
  const box = element.getBoundingClientRect();
  const base = { x: box.left - origin.x, y: box.top - origin.y };
  for (const shape of element.querySelectorAll("rect, line, path, text")) {
    const style = getComputedStyle(shape);
    if (style.display === "none" || shape.classList.contains("cursor")) continue;
    const number = (name) => parseFloat(shape.getAttribute(name) || "0");
    const alpha = parseFloat(style.opacity);
    if (shape.tagName === "rect" && solid(style.fill)) orders.push({ kind: "rect", x: base.x + number("x"), y: base.y + number("y"), w: number("width"), h: number("height"), fill: style.fill, alpha });
    if (shape.tagName === "line" && solid(style.stroke)) orders.push({ kind: "path", x: base.x, y: base.y, d: "M" + number("x1") + " " + number("y1") + "L" + number("x2") + " " + number("y2"), stroke: style.stroke, width: parseFloat(style.strokeWidth), dash: style.strokeDasharray });
    if (shape.tagName === "path") orders.push({ kind: "path", x: base.x, y: base.y, d: shape.getAttribute("d"), stroke: style.stroke, fill: style.fill, width: parseFloat(style.strokeWidth) });
    if (shape.tagName === "text") orders.push({ kind: "text", x: base.x + number("x"), y: base.y + number("y"), text: shape.textContent, fill: style.fill, size: parseFloat(style.fontSize), family: style.fontFamily, weight: style.fontWeight, font: style.fontWeight + " " + style.fontSize + " " + style.fontFamily, anchor: style.textAnchor });
  }
}

function svgText(picture) {
  const svg = s("svg", { xmlns: SVG, viewBox: "0 0 " + picture.width + " " + picture.height, width: picture.width, height: picture.height });
  svg.append(s("title", {}, "A_t, " + views().map((view) => view.title).join(", ")));
  for (const order of picture.orders) {
    const number = (value) => String(Math.round(value * 100) / 100);
    if (order.kind === "rect") svg.append(s("rect", { x: number(order.x), y: number(order.y), width: number(order.w), height: number(order.h), fill: order.fill, "fill-opacity": known(order.alpha) ? order.alpha : 1 }));
    if (order.kind === "path") svg.append(s("path", { transform: "translate(" + number(order.x) + " " + number(order.y) + ")", d: order.d, fill: order.fill || "none", stroke: order.stroke || "none", "stroke-width": order.width, ...(order.dash && order.dash !== "none" ? { "stroke-dasharray": order.dash } : {}) }));
    if (order.kind === "text") {
      svg.append(s("text", {
        x: number(order.x), y: number(order.y), fill: order.fill, "font-size": order.size, "font-family": order.family, "font-weight": order.weight || 400,
        "text-anchor": order.anchor || "start", "xml:space": "preserve", ...(order.w ? { textLength: number(order.w), lengthAdjust: "spacingAndGlyphs" } : {}),
      }, order.text));
    }
  }
  return new XMLSerializer().serializeToString(svg);
}

function exportSvg() {
  save(new Blob([svgText(drawing())], { type: "image/svg+xml" }), "svg");
}

// Drawn straight onto a canvas: loading an image would need a hole in the content security policy.
function exportPng() {
  const picture = drawing();
  const canvas = document.createElement("canvas");
  const zoom = Math.min(2, 16000 / picture.height);
  canvas.width = picture.width * zoom;
  canvas.height = picture.height * zoom;
  const brush = canvas.getContext("2d");
  brush.scale(zoom, zoom);
  for (const order of picture.orders) {
    brush.save();
    if (known(order.alpha)) brush.globalAlpha = order.alpha;
    if (order.kind === "rect") { brush.fillStyle = order.fill; brush.fillRect(order.x, order.y, order.w, order.h); }
    if (order.kind === "path") {
      brush.translate(order.x, order.y);
      const path = new Path2D(order.d);
      if (solid(order.fill)) { brush.fillStyle = order.fill; brush.fill(path); }
      if (solid(order.stroke)) {
        brush.strokeStyle = order.stroke;
        brush.lineWidth = order.width;
        if (order.dash && order.dash !== "none") brush.setLineDash(order.dash.split(/[ ,]+/).map(parseFloat));
        brush.stroke(path);
      }
    }
    if (order.kind === "text") {
      brush.font = order.font;
      brush.fillStyle = order.fill;
      brush.textAlign = { middle: "center", end: "right" }[order.anchor] || "left";
      brush.fillText(order.text, order.x, order.y);
    }
    brush.restore();
  }
  canvas.toBlob((blob) => save(blob, "png"), "image/png");
}

function save(blob, ending) {
  const name = "rollout-" + String(current().id).replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 60) + (state.diff ? "-difference" : "") + "." + ending;
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// One row per token: the numbers of the card, for every context that is stored.
function exportCsv() {
  const rollout = current();
  const contexts = available(rollout);
  const quote = (value) => {
    const text = known(value) ? String(value) : "";
    return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  };
  const names = ["ratio", "calibrated", "teacher", "kl", "teacherEntropy"];
  const columns = ["log_ratio", "calibrated", "teacher_log_prob", "forward_kl", "teacher_entropy"];
  const heads = contexts.flatMap((context) => columns.map((column) => data.contexts[context].name + "." + column));
  const rows = [["rollout_id", "token", "id", "text", "step", "status", "student_log_prob", "student_entropy", ...heads]];
  rollout.pieces.forEach((piece, token) => {
    const step = rollout.steps[stepOf(rollout, token)];
    const readings = contexts.map((context) => reading(rollout, context, token));
    const student = readings[0] || {};
    // The text as a JSON string: it keeps its newlines in one cell, and no program takes it for a formula.
    rows.push([rollout.id, token, rollout.ids[token], JSON.stringify(piece), step[0], step[1], student.student, student.studentEntropy, ...readings.flatMap((values) => names.map((name) => values[name]))]);
  });
  save(new Blob([rows.map((row) => row.map(quote).join(",") + "\r\n").join("")], { type: "text/csv" }), "csv");
}
