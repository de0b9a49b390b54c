/** Unpack: a .cpack.zip, what it needs and what of that is missing here, restored into a new ComfyUI folder beside this one. */

import { h, icon } from "./dom.js";
import { opened } from "./dialog.js";
import { nameFault } from "./package.js";
import { button, code, complaint, field, line, notice, tabs } from "./parts.js";
import { upload } from "./server.js";
import { bytes, t } from "./texts.js";
import { meter, run } from "./work.js";

export async function unpack() {
  const dialog = await opened({ name: "unpack", title: "unpack.title", subtitle: "unpack.subtitle", drawing: "unpack", width: 760, height: 640 });
  choose(dialog);
}

function choose(dialog, trouble = null) {
  const input = h("input", { type: "file", accept: ".zip", hidden: true, onchange: () => input.files[0] && take(dialog, input.files[0]) });
  const pick = button(t("unpack.choose"), { kind: "primary", drawing: "folder", onclick: () => input.click() });
  const over = (on) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", on);
  };
  const drop = (event) => {
    over(false)(event);
    const file = event.dataTransfer?.files?.[0];
    if (file) void take(dialog, file);
  };
  const zone = h("div.drop", { ondragenter: over(true), ondragover: over(true), ondragleave: over(false), ondrop: drop }, icon("unpack"), h("p", {}, t("unpack.drop")), pick, input, h("p.small.soft", {}, t("unpack.what")));
  dialog.say(h("div.stack", {}, trouble, zone));
  dialog.buttons("", button(t("close"), { onclick: () => dialog.close() }));
  pick.focus();
}

async function take(dialog, file) {
  if (!file.name.toLowerCase().endsWith(".zip")) return choose(dialog, notice("error", t("unpack.wrong", { name: file.name }), t("unpack.wrong.next")));
  const how = meter();
  const stopped = new AbortController();
  dialog.gone.addEventListener("abort", () => stopped.abort());
  dialog.say(how.element);
  how.show({ label: t("unpack.sending", { name: file.name }), done: 0, total: file.size, unit: "bytes" });
  dialog.buttons("", button(t("work.cancel"), { kind: "danger", onclick: () => (stopped.abort(), choose(dialog)) }));
  try {
    const sent = await upload(file, { progress: (done, total) => how.show({ label: t("unpack.sending", { name: file.name }), done, total, unit: "bytes" }), signal: stopped.signal });
    await run(dialog, "inspect", { upload: sent.upload }, { done: (ended) => needs(dialog, { sent, found: ended.result }), back: () => choose(dialog), doing: t("unpack.reading") });
  } catch (error) {
    if (!stopped.signal.aborted) choose(dialog, complaint(error));
  }
}

const here = (entry) => h(`span.badge.${entry.here ? "good" : "warn"}`, {}, t(entry.here ? "unpack.here" : "unpack.missing"));

function listed(entries, drawing, about, absent) {
  if (!entries.length) return h("p.empty", {}, absent);
  const sorted = [...entries].sort((one, other) => Number(one.here) - Number(other.here));
  return h("ul.plain", {}, sorted.map((entry) => h("li", {}, icon(drawing), h("div.grow", {}, h("div", {}, entry.name ?? entry.path), h("div.small.soft", {}, about(entry))), entry.size !== undefined && entry.size !== null && h("span.amount", {}, bytes(entry.size)), here(entry))));
}

/** What the pack *found* asks for, and the name of the folder to restore it into. */
function needs(dialog, { sent, found }) {
  const { models = [], nodes = [], comfyui = {}, python, inputs = [], packages = [], problem } = found;
  const missing = models.filter((model) => !model.here);
  const lost = missing.filter((model) => !model.source);
  const name = field(t("unpack.name"), line({ value: sent.name.replace(/(\.cpack)?\.zip$/i, "").replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[.-]+/, "") || "workflow" }), { hint: t("unpack.name.hint") });
  const withModels = h("input", { type: "checkbox", checked: true });
  const fact = (label, value) => value && [h("dt", {}, label), h("dd", {}, value)];
  const overview = h("form.stack", { novalidate: true, onsubmit: (event) => (event.preventDefault(), start()) },
    h("dl.facts", {},
      fact("ComfyUI", [comfyui.version ?? comfyui.commit?.slice(0, 12) ?? "?", (comfyui.same ?? null) === null ? null : [" ", h(`span.badge.${comfyui.same ? "good" : ""}`.replace(/\.$/, ""), {}, t(comfyui.same ? "unpack.same" : "unpack.other"))]]),
      fact("Python", python),
      fact(t("nodes"), t("unpack.of", { missing: nodes.filter((node) => !node.here).length, total: nodes.length })),
      fact(t("models"), t("unpack.of", { missing: missing.length, total: models.length })),
      fact(t("unpack.toget"), missing.length ? bytes(missing.reduce((sum, model) => sum + (model.size ?? 0), 0)) : null),
      fact(t("inputs"), inputs.length ? String(inputs.length) : null),
      fact(t("packages"), packages.length ? String(packages.length) : null)),
    problem ? notice("warning", problem) : null,
    lost.length ? notice("warning", t("unpack.lost", { count: lost.length }), t("unpack.lost.next")) : null,
    name.element,
    models.length ? h("label.row", {}, withModels, h("span", {}, t("unpack.models"))) : null,
    notice("note", t("unpack.trust"), t("unpack.trust.next")),
    h("button", { type: "submit", hidden: true }));
  const pages = tabs([
    { id: "overview", label: t("tab.overview"), panel: overview },
    { id: "models", label: t("models"), count: models.length, panel: listed(models, "file", (model) => model.folder ?? model.path, t("unpack.models.none")) },
    { id: "nodes", label: t("nodes"), count: nodes.length, panel: listed(nodes, "package", (node) => [t(`node.${node.kind}`), node.version ?? node.commit?.slice(0, 10)].filter(Boolean).join(" · "), t("nodes.absent")) },
  ], { label: t("unpack.title"), across: true });
  async function start() {
    const called = name.input.value.trim();
    const fault = nameFault(called);
    if (fault) {
      pages.choose("overview");
      return name.tell(fault);
    }
    await run(dialog, "unpack", { upload: sent.upload, name: called, models: withModels.checked }, { done: (ended) => restored(dialog, ended), back });
  }
  function back() {
    dialog.say(pages.element);
    dialog.buttons(sent.name, button(t("unpack.another"), { onclick: () => choose(dialog) }), button(t("unpack.start"), { kind: "primary", drawing: "unpack", onclick: start }));
    name.input.focus();
  }
  back();
}

/** The end of a restore: the folder and the line that starts it. */
export function restored(dialog, job) {
  const { folder, command, notes = [] } = job.result;
  dialog.say(h("div.stack.middle", { "data-part": "outcome" }, notice("done", t("unpack.done"), folder), notes.map((note) => notice("note", note)), command && h("div.stack.tight", {}, h("p.soft", {}, t("unpack.done.next")), code(command, { label: t("unpack.command.code") }))));
  const close = button(t("close"), { kind: "primary", onclick: () => dialog.close() });
  dialog.buttons("", close);
  close.focus();
}
