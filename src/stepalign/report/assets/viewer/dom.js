"use strict";
// The token viewer, in parts: page.py joins these files, in its order, into one closure and inlines it.
// Text written by a solver or a critic is data: it reaches the page through textContent and in no other way. Nothing
// here asks the network for anything; exports are drawn in the page and handed over as files.

const SVG = "http://www.w3.org/2000/svg";
const root = document.getElementById("viewer");
const lab = document.getElementById("lab"); // the form, on the lab's page only
const part = {}; // the regions of the viewer, by name

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function s(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const option = (value, text, chosen) => h("option", { value: String(value), text, selected: chosen });
const keyCap = (key) => h("kbd", { text: key, "aria-hidden": "true" });

function chip(text, act, { key, pressed, name, kind, off } = {}) {
  return h("button", {
    type: "button", class: "chip" + (kind ? " " + kind : ""), "aria-pressed": known(pressed) ? String(pressed) : null,
    "aria-label": name, disabled: off, onclick: act,
  }, key ? keyCap(key) : null, text ? h("span", { text }) : null);
}

// Draws a region anew and gives the focus back to the control that had it, so that the keyboard never falls out.
function keepingFocus(region, draw) {
  const controls = () => [...region.querySelectorAll("button, select, input, textarea")];
  const place = controls().indexOf(document.activeElement);
  draw();
  const again = place >= 0 && controls()[place];
  if (again) again.focus({ preventScroll: true });
}

function scrollable(name, ...children) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, ...children);
}
