/** Build image: the open workflow as a container image, after a look at its layers. */

import { app } from "../../scripts/app.js";
import { fill, h, icon } from "./dom.js";
import { opened } from "./dialog.js";
import { picture } from "./layers.js";
import { takeAlong } from "./package.js";
import { button, choices, code, copying, field, line, notice, select } from "./parts.js";
import { ask, openWorkflow, workflowName } from "./server.js";
import { bytes, t } from "./texts.js";
import { meter, run } from "./work.js";

const TARGETS = ["", "cpu", "cuda12.6", "cuda12.8", "cuda13.0", "rocm6.4"];
const BASES = ["", "cuda", "cuda-base", "cuda-devel"];

// repository path and tag of the distribution specification, behind a host that may have a port
const REFERENCE = /^(?:[a-z0-9.-]+(?::\d+)?\/)?[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*(?::[\w][\w.-]{0,127})?$/;

function proposed() {
  const before = app.extensionManager?.setting?.get?.("CPack.Image.Prefix") ?? "";
  const name = workflowName().toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "") || "workflow";
  return `${before ? `${before.replace(/\/$/, "")}/` : ""}${name}`;
}

export async function image() {
  const dialog = await opened({ name: "image", title: "image.title", subtitle: "image.subtitle", drawing: "image", width: 840, height: 720 });
  await dialog.attempt(async () => {
    const wait = meter();
    wait.show({ label: t("package.wait") });
    dialog.say(wait.element);
    const workflow = await openWorkflow();
    form(dialog, { workflow, inventory: await ask("/inventory", { body: workflow, signal: dialog.gone }) });
  });
}

function form(dialog, { workflow, inventory }) {
  const reference = field(t("image.reference"), line({ value: proposed() }), { hint: t("image.reference.hint") });
  const target = field(t("image.target"), select(TARGETS.map((value) => [value, value ? t(`target.${value}`) : t("image.target.same")]), ""), { hint: t("image.target.hint") });
  const base = field(t("image.base"), select([...BASES.map((value) => [value, t(`base.${value || "default"}`)]), ["other", t("base.other")]], ""), { hint: t("image.base.hint") });
  const named = field(t("image.base.named"), line({ placeholder: "debian:12-slim" }));
  named.element.hidden = true;
  base.input.addEventListener("change", () => (named.element.hidden = base.input.value !== "other"));
  const then = choices(t("image.then"), [
    { value: "load", label: t("image.load"), hint: t("image.load.hint") },
    { value: "push", label: t("image.push"), hint: t("image.push.hint") },
    { value: "folder", label: t("image.folder"), hint: t("image.folder.hint") },
  ], { value: "load" });
  const models = inventory.models.filter((model) => model.referenced);
  const inputs = inventory.inputs.filter((file) => file.referenced);
  const local = takeAlong(inventory.nodes);
  const plan = h("div");
  const elements = h("form.stack", { novalidate: true, onsubmit: (event) => (event.preventDefault(), start()) }, reference.element, h("div.pair", {}, target.element, base.element), named.element, then.element, local.element, plan, h("button", { type: "submit", hidden: true }));

  function asked() {
    const value = reference.input.value.trim();
    if (!value) return reference.tell(t("image.reference.empty")), null;
    if (!REFERENCE.test(value)) return reference.tell(t("image.reference.wrong")), null;
    if (then.chosen() === "push" && !value.includes("/")) return reference.tell(t("image.reference.registry")), null;
    const chosenBase = base.input.value === "other" ? named.input.value.trim() : base.input.value;
    if (base.input.value === "other" && !chosenBase) return named.tell(t("image.base.empty")), null;
    return {
      ...workflow, name: workflowName(), reference: value, then: then.chosen(), models: models.map((model) => model.path), inputs: inputs.map((file) => file.path), ...local.params(),
      ...(target.input.value ? { target: target.input.value } : {}), ...(chosenBase ? { base: chosenBase } : {}),
    };
  }
  async function start() {
    const params = asked();
    if (!params) return;
    await run(dialog, "image", params, { done: (ended) => built(dialog, ended), back });
  }
  async function preview() {
    const params = asked();
    if (!params) return;
    const shown = (ended) => {
      back();
      fill(plan, picture(ended.result.layers));
      plan.scrollIntoView({ block: "nearest" });
    };
    await run(dialog, "plan", params, { done: shown, back, doing: t("plan.doing") });
  }
  function back() {
    dialog.say(elements);
    const size = models.reduce((sum, model) => sum + model.size, 0);
    dialog.buttons(t("image.sum", { models: t("models.count", { count: models.length }), size: bytes(size) }), button(t("plan.preview"), { onclick: preview }), button(t("image.start"), { kind: "primary", drawing: "image", onclick: start }));
    reference.input.focus();
  }
  back();
}

/** The end of a build: what it is called, by which digest, and the line that runs it. */
export function built(dialog, job) {
  const { digest, reference, run: line, saved } = job.result;
  const fact = (name, value) => value && [h("dt", {}, t(name)), h("dd.row", {}, h("span", {}, value), copying(() => value))];
  dialog.say(h("div.stack.middle", { "data-part": "outcome" },
    notice("done", t("image.done", { reference: reference || saved || job.title })),
    h("dl.facts", {}, fact("image.reference", reference), fact("image.digest", digest), fact("image.saved", saved)),
    line && h("div.stack.tight", {}, h("h3", {}, h("strong", {}, t("image.run"))), code(line, { label: t("image.run") }))));
  const close = button(t("close"), { kind: "primary", onclick: () => dialog.close() });
  dialog.buttons("", close);
  close.focus();
}
