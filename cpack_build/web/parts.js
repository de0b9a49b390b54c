/** The pieces that dialogs are made of: buttons, fields, notices, tabs, code to copy. Each is an element and knows nothing of any job. */

import { fill, h, icon, unique } from "./dom.js";
import { t } from "./texts.js";

export function button(label, { onclick, kind = "", drawing = null, ...props } = {}) {
  return h(`button.button${kind && `.${kind}`}`, { type: "button", onclick, ...props }, drawing && icon(drawing), label);
}

/** *input* under its label; *hint* says what it is for. `tell(message)` marks it as wrong, or as right again with none. */
export function field(label, input, { hint = null } = {}) {
  input.id ||= unique("field");
  const below = h("div.hint", { id: unique("hint") }, hint);
  const wrong = h("div.wrong", { id: unique("wrong"), role: "alert" });
  input.setAttribute("aria-describedby", `${below.id} ${wrong.id}`);
  const element = h("div.field", {}, h("label", { for: input.id }, label), input, hint && below, wrong);
  const tell = (message) => {
    wrong.textContent = message ?? "";
    input.setAttribute("aria-invalid", message ? "true" : "false");
    if (message) input.focus();
    return !message;
  };
  input.addEventListener("input", () => wrong.textContent && tell(null));
  return { element, input, tell };
}

export function line(props) {
  return h("input", { type: "text", spellcheck: "false", autocomplete: "off", ...props });
}

/** A drop-down of [value, label] pairs. */
export function select(options, value) {
  const element = h("select", {}, options.map(([each, label]) => h("option", { value: each }, label)));
  element.value = value;
  return element;
}

/** One of several *options* {value, label, hint}, as cards; `chosen()` tells which. */
export function choices(legend, options, { value, onchange = () => {} }) {
  const name = unique("choice");
  const inputs = options.map((option) => h("input", { type: "radio", name, value: option.value, checked: option.value === value, onchange: () => onchange(option.value) }));
  const cards = options.map((option, at) =>
    h("label.choice", {}, inputs[at], h("span", {}, option.label, option.hint && h("span.small.soft", { style: "display:block" }, option.hint))),
  );
  const element = h("fieldset", {}, h("legend", {}, legend), h("div.choices", {}, cards));
  return { element, chosen: () => inputs.find((input) => input.checked)?.value };
}

/** Something told: *kind* is error, warning, note or done. Errors and results are read out at once. */
export function notice(kind, message, next = null, ...more) {
  return h("div.notice." + kind, { role: kind === "error" ? "alert" : "status" }, icon(kind), h("div.grow.stack.tight", {}, h("p", {}, message), next && h("p.soft", {}, next), more));
}

/** What *error* says, in words with the next step. */
export function complaint(error) {
  return notice("error", error.message || String(error), error.next);
}

/** Copies *text*; also where the page is not served over HTTPS and browsers hide the clipboard from it. */
async function copy(text, near) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea.out-of-sight", { value: text, readonly: true });
  near.after(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error(t("copy.refused"));
}

/** A button that copies what *text()* gives, and says that it did. */
export function copying(text, { label = null } = {}) {
  const said = h("span", { role: "status" }, label);
  const element = button("", {
    kind: label ? "quiet" : "quiet.square",
    "aria-label": label ? null : t("copy"),
    title: t("copy"),
    onclick: async () => {
      let outcome = "done";
      await copy(text(), element).catch(() => (outcome = "error"));
      fill(element, icon(outcome), h("span", { role: "status", class: label ? "" : "out-of-sight" }, t(outcome === "done" ? "copied" : "copy.refused")));
      setTimeout(() => fill(element, icon("copy"), said), 1600);
      element.focus();
    },
  });
  return fill(element, icon("copy"), said), element;
}

/** *text* as code, with a button that copies it. */
export function code(text, { label } = {}) {
  return h("div.code", {}, h("pre", { tabindex: "0", "aria-label": label ?? t("code") }, text), copying(() => text));
}

/** Tabs {id, label, count?, panel}; down the side or *across* the top. Arrow keys walk, as ARIA's pattern has it. */
export function tabs(entries, { label, across = false, chosen = 0, onchange = () => {} }) {
  const badges = entries.map(({ count }) => h("span.badge", { hidden: count === undefined || count === null }, count));
  const panels = entries.map(({ id, panel }) => h("section", { role: "tabpanel", id: unique(id), style: across ? null : "height:100%", hidden: true }, panel));
  const handles = entries.map((entry, at) =>
    h("button", { type: "button", role: "tab", id: unique(`tab-${entry.id}`), "aria-controls": panels[at].id, "data-tab": entry.id, onclick: () => choose(at) }, entry.label, badges[at]),
  );
  const choose = (at) => {
    handles.forEach((handle, each) => {
      handle.setAttribute("aria-selected", String(each === at));
      handle.tabIndex = each === at ? 0 : -1;
      panels[each].hidden = each !== at;
      panels[each].setAttribute("aria-labelledby", handle.id);
    });
    onchange(entries[at].id);
  };
  const walk = (event) => {
    const at = handles.indexOf(event.target.closest("[role=tab]"));
    const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: handles.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = (to + handles.length) % handles.length;
    choose(next);
    handles[next].focus();
  };
  choose(chosen);
  const list = h("div", { role: "tablist", "aria-label": label, "aria-orientation": across ? "horizontal" : "vertical", onkeydown: walk }, handles);
  const element = h(across ? "div.across" : "div.tabbed", {}, list, h("div.panels", {}, panels));
  const count = (id, value) => {
    const badge = badges[entries.findIndex((entry) => entry.id === id)];
    badge.hidden = false;
    badge.textContent = value;
  };
  return { element, count, choose: (id) => choose(entries.findIndex((entry) => entry.id === id)) };
}
