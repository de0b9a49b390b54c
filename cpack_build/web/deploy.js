/**
 * Deploy: to BentoCloud, or as files for Kubernetes or Compose. The API token goes to the server once, which keeps it in its
 * memory; nothing of the browser ever stores it, and the field is emptied as it is sent.
 */

import { h, icon } from "./dom.js";
import { opened } from "./dialog.js";
import { jobs } from "./jobs.js";
import { button, code, field, line, notice, tabs } from "./parts.js";
import { ask, downloadURL, openWorkflow, workflowName } from "./server.js";
import { t } from "./texts.js";
import { run } from "./work.js";

const NAME = /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/; // a label of RFC 1035, which Kubernetes and BentoCloud ask for

function fieldName() {
  const value = workflowName().toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^[^a-z]+|-+$/g, "") || "workflow";
  return field(t("deploy.name"), line({ value }), { hint: t("deploy.name.hint") });
}

function rightName(name) {
  return NAME.test(name.input.value.trim()) || name.tell(t("deploy.name.wrong"));
}

/** The form for BentoCloud; `asked()` gives its parameters or null. */
function bentocloud(status) {
  const name = fieldName();
  const endpoint = field(t("deploy.endpoint"), line({ type: "url", placeholder: "https://team.cloud.example" }), { hint: t("deploy.endpoint.hint") });
  // "off" is not obeyed for passwords; "new-password" keeps browsers from offering to store it
  const token = field(t("deploy.token"), h("input", { type: "password", autocomplete: "new-password", spellcheck: "false", placeholder: status.token_known ? t("deploy.token.known") : "" }), { hint: t("deploy.token.hint") });
  const asked = () => {
    let url = null;
    try {
      url = new URL(endpoint.input.value.trim());
    } catch {
      return endpoint.tell(t("deploy.endpoint.wrong")), null;
    }
    if (!rightName(name)) return null;
    if (url.protocol !== "https:" && !["localhost", "127.0.0.1", "[::1]"].includes(url.hostname)) return endpoint.tell(t("deploy.endpoint.wrong")), null;
    const typed = token.input.value.trim();
    if (!typed && !status.token_known) return token.tell(t("deploy.token.empty")), null;
    token.input.value = "";
    return { name: name.input.value.trim(), endpoint: endpoint.input.value.trim(), ...(typed ? { token: typed } : {}) };
  };
  const element = h("div.stack", {}, h("p.soft", {}, t("deploy.bentocloud.what")), name.element, endpoint.element, token.element);
  return { element, asked };
}

/** The form for files: *where* is kubernetes or compose. */
function files(where) {
  const name = fieldName();
  const image = field(t("deploy.image"), line({ placeholder: "registry.example/team/upscale:1" }), { hint: t("deploy.image.hint") });
  const asked = () => {
    if (!rightName(name)) return null;
    if (!image.input.value.trim()) return image.tell(t("deploy.image.empty")), null;
    return { name: name.input.value.trim(), image: image.input.value.trim() };
  };
  const built = jobs.all().find((job) => job.kind === "image" && job.state === "done" && job.result?.reference);
  if (built) image.input.value = built.result.reference;
  return { element: h("div.stack", {}, h("p.soft", {}, t(`deploy.${where}.what`)), name.element, image.element), asked };
}

export async function deploy() {
  const dialog = await opened({ name: "deploy", title: "deploy.title", subtitle: "deploy.subtitle", drawing: "deploy", width: 720, height: 620 });
  await dialog.attempt(async () => {
    await jobs.refresh();
    form(dialog, await ask("/status", { signal: dialog.gone }));
  });
}

function form(dialog, status) {
  const forms = { bentocloud: bentocloud(status), kubernetes: files("kubernetes"), compose: files("compose") };
  let where = "bentocloud";
  const chosen = (id) => {
    where = id;
    dialog.buttons("", button(t("close"), { onclick: () => dialog.close() }),
      button(t(`deploy.${id}.start`), { kind: "primary", drawing: id === "bentocloud" ? "deploy" : "file", onclick: start }));
  };
  const pages = tabs(Object.entries(forms).map(([id, { element }]) => ({ id, label: t(`deploy.${id}`), panel: h("form", { novalidate: true, onsubmit: (event) => (event.preventDefault(), start()) }, element, h("button", { type: "submit", hidden: true })) })), { label: t("deploy.title"), across: true, onchange: chosen });

  async function start() {
    const params = forms[where].asked();
    if (!params) return;
    await run(dialog, "deploy", { where, ...params, ...(await openWorkflow()) }, { done: (ended) => deployed(dialog, ended), back });
    if (params.token) status.token_known = true;
  }
  function back() {
    dialog.say(pages.element);
    chosen(where);
    pages.element.querySelector("[role=tabpanel]:not([hidden]) input").focus();
  }
  back();
}

/** The end of a deployment: a link to it, or its files. */
export function deployed(dialog, job) {
  const { name, url, download, apply } = job.result ?? {};
  const link = download ? h("a.button.primary", { href: downloadURL(job.id), download: name ?? "" }, icon("download"), t("download")) : button(t("close"), { kind: "primary", onclick: () => dialog.close() });
  dialog.say(h("div.stack.middle", { "data-part": "outcome" },
    notice("done", t(download ? "deploy.done.files" : "deploy.done", { name: name ?? job.title })),
    url && /^https?:/.test(url) && h("p", {}, h("a", { href: url, target: "_blank", rel: "noopener" }, url, " ", icon("link"))),
    apply && code(apply, { label: t("deploy.apply") })));
  dialog.buttons("", download && button(t("close"), { onclick: () => dialog.close() }), link);
  link.focus();
}
