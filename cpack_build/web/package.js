/** Package: the open workflow and what it needs, gathered into a .cpack.zip that can be restored, built and served elsewhere. */

import { fill, h, icon } from "./dom.js";
import { opened } from "./dialog.js";
import { findingList, summary } from "./findings.js";
import { button, choices, field, line, notice, tabs } from "./parts.js";
import { fileTree, modelList } from "./picking.js";
import { ask, downloadURL, openWorkflow, workflowName } from "./server.js";
import { bytes, t } from "./texts.js";
import { meter, run } from "./work.js";

/** Why *name* cannot be a file's name, or null. The server looks again. */
export function nameFault(name) {
  if (!name) return t("name.empty");
  return /^[\p{L}\p{N}][\p{L}\p{N}_ .()+=,@-]{0,98}$/u.test(name) && !name.endsWith(".") && !name.includes("..") ? null : t("name.letters");
}

function nodesSeen(nodes) {
  const row = (node) => h("li", {}, icon("package"), h("div.grow", {}, h("div", {}, node.name),
    h("div.small.soft", {}, [t(`node.${node.kind}`), node.version ?? node.commit?.slice(0, 10), node.note].filter(Boolean).join(" · "))),
    node.disabled && h("span.badge", {}, t("node.disabled")), node.used && h("span.badge.accent", {}, t("node.used")), node.dirty && h("span.badge.warn", { title: t("node.dirty.why") }, t("node.dirty")));
  return h("div.stack.tight", {}, h("p.soft.small", {}, t("nodes.what")),
    nodes.length ? h("ul.plain", {}, [...nodes].sort((one, other) => Number(other.used) - Number(one.used)).map(row)) : h("p.empty", {}, t("nodes.absent")));
}

function packagesSeen(packages) {
  const rows = packages.map((each) => h("li", {}, h("span.grow", {}, each.name), each.source && h("span.badge.warn.clip", { title: each.source }, each.source), h("span.amount", {}, each.version)));
  const list = h("ul.plain", {}, rows);
  const search = h("input", { type: "search", placeholder: t("packages.search"), "aria-label": t("packages.search"), oninput: () =>
    packages.forEach((each, at) => (rows[at].hidden = !each.name.toLowerCase().includes(search.value.trim().toLowerCase()))) });
  return h("div.stack.tight", {}, h("p.soft.small", {}, t("packages.what")), h("div.searching", {}, icon("search"), search), list);
}

/** Asks whether what only this computer has may travel along; `params()` says so to the server. */
export function takeAlong(nodes) {
  const only = nodes.filter((node) => node.local && !node.disabled);
  if (!only.length) return { element: null, params: () => ({}) };
  const box = h("input", { type: "checkbox", checked: only.some((node) => node.used) });
  const names = only.map((node) => node.name).join(", ");
  const element = h("label.row", {}, box, h("span", {}, t("package.local", { names }), h("span.small.soft", { style: "display:block" }, t("package.local.why"))));
  return { element, params: () => ({ include_local: box.checked }) };
}

/** Asks for what there is to pack and what the preflight thinks of it; both are real work on big folders. */
async function look(dialog) {
  const wait = meter();
  wait.show({ label: t("package.wait") });
  dialog.say(wait.element);
  dialog.buttons("", button(t("close"), { onclick: () => dialog.close() }));
  const workflow = await openWorkflow();
  const [inventory, checked] = await Promise.all([
    ask("/inventory", { body: workflow, signal: dialog.gone }),
    ask("/check", { body: workflow, signal: dialog.gone }),
  ]);
  return { workflow, inventory, findings: checked.findings };
}

export async function pack() {
  const dialog = await opened({ name: "package", title: "package.title", subtitle: "package.subtitle", drawing: "package", width: 940, height: 720 });
  await dialog.attempt(async () => form(dialog, await look(dialog)));
}

function form(dialog, { workflow, inventory, findings }) {
  const { models, inputs, packages, nodes, system = [] } = inventory;
  const name = field(t("package.name"), line({ value: workflowName() }), { hint: t("package.name.hint") });
  const keep = choices(t("package.then"), [
    { value: "download", label: t("package.download"), hint: t("package.download.hint") },
    { value: "save", label: t("package.save"), hint: t("package.save.hint") },
  ], { value: "download" });
  const more = field(t("system.more"), h("textarea", { spellcheck: "false", placeholder: "libsndfile1" }), { hint: t("system.what", { names: system.join(", ") }) });
  const status = h("span");
  const tell = () => {
    const chosen = pickModels.chosen();
    pages.count("models", `${chosen.length}/${models.length}`);
    pages.count("inputs", `${pickFiles.chosen().length}/${inputs.length}`);
    const sums = { models: t("models.count", { count: chosen.length }), size: bytes(chosen.reduce((sum, model) => sum + model.size, 0)), files: t("inputs.count", { count: pickFiles.chosen().length }) };
    fill(inside, [
      [t("models"), t("package.inside.models", sums)],
      [t("inputs"), `${sums.files} (${bytes(pickFiles.chosen().reduce((sum, file) => sum + file.size, 0))})`],
      [t("nodes"), t("package.inside.nodes", { count: nodes.length, used: nodes.filter((node) => node.used).length })],
      [t("packages"), packages.length.toLocaleString()],
    ].map(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]));
    status.textContent = t("package.sum", sums);
  };
  const pickModels = modelList(models, { onchange: () => tell() });
  const pickFiles = fileTree(inputs, { onchange: () => tell() });
  const local = takeAlong(nodes);
  const inside = h("dl.facts");
  const errors = findings.some((finding) => finding.level === "error");
  const overview = h("form.stack", { novalidate: true, onsubmit: (event) => (event.preventDefault(), start()) }, name.element, keep.element,
    h("section.stack.tight", {}, h("h3", {}, h("strong", {}, t("package.inside"))), inside),
    local.element,
    findings.length ? notice(errors ? "error" : "note", t("package.findings", { summary: summary(findings) }), null, h("div", {}, button(t("package.findings.see"), { onclick: () => pages.choose("findings") }))) : notice("done", t("check.clean")));
  const pages = tabs([
    { id: "overview", label: t("tab.overview"), panel: overview },
    { id: "models", label: t("models"), panel: pickModels.element },
    { id: "inputs", label: t("inputs"), panel: pickFiles.element },
    { id: "nodes", label: t("nodes"), count: nodes.length, panel: nodesSeen(nodes) },
    { id: "packages", label: t("packages"), count: packages.length, panel: packagesSeen(packages) },
    { id: "system", label: t("system"), panel: more.element },
    { id: "findings", label: t("findings"), count: findings.length, panel: findingList(findings, { leave: () => dialog.close() }) },
  ], { label: t("package.title") });

  async function start() {
    const called = name.input.value.trim();
    const fault = nameFault(called);
    if (fault) {
      pages.choose("overview");
      return name.tell(fault);
    }
    const params = {
      name: called, ...workflow,
      models: pickModels.chosen().map((model) => model.path),
      inputs: pickFiles.chosen().map((file) => file.path),
      system: more.input.value.split(/[\s,]+/).filter(Boolean),
      ...local.params(),
      ...(keep.chosen() === "save" ? { save_as: called } : {}),
    };
    const saves = keep.chosen() === "save";
    await run(dialog, "pack", params, { done: (ended) => finished(dialog, ended, { saves }), back });
  }
  function back() {
    dialog.say(pages.element);
    dialog.buttons(status, button(t("close"), { onclick: () => dialog.close() }), button(t("package.start"), { kind: "primary", drawing: "package", onclick: start }));
    name.input.focus();
    name.input.select();
  }
  tell();
  back();
}

/** The end of a pack: the file, to take along. It is downloaded at once unless it was asked to lie on the server. */
export function finished(dialog, job, { saves = true } = {}) {
  const { name, size, saved, notes = [] } = job.result;
  const link = h("a.button.primary", { href: downloadURL(job.id), download: name }, icon("download"), t("download"));
  dialog.say(h("div.stack.middle", { "data-part": "outcome" },
    notice("done", t("package.done", { name, size: bytes(size) }), saved ? t("package.done.saved", { path: saved }) : null),
    notes.map((note) => notice("warning", note.message ?? String(note))),
    h("p.soft", {}, t("package.done.next"))));
  dialog.buttons("", button(t("close"), { onclick: () => dialog.close() }), link);
  link.focus();
  if (!saves) link.click();
}
