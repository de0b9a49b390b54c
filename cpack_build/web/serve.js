/** Serve: the open workflow as an HTTP service of this ComfyUI, with the lines that call it. */

import { app } from "../../scripts/app.js";
import { fill, h, icon } from "./dom.js";
import { opened } from "./dialog.js";
import { ended, jobs } from "./jobs.js";
import { button, choices, code, complaint, field, notice, tabs } from "./parts.js";
import { openWorkflow, text } from "./server.js";
import { t } from "./texts.js";

const LOG_EVERY = 2000; // milliseconds between two readings of the log

const setting = (id) => app.extensionManager?.setting?.get?.(id);

export async function serve() {
  const dialog = await opened({ name: "serve", title: "serve.title", subtitle: "serve.subtitle", drawing: "serve", width: 780 });
  await dialog.attempt(async () => {
    await jobs.refresh();
    const running = jobs.running("serve");
    if (running) show(dialog, running);
    else form(dialog);
  });
}

function form(dialog, trouble = null) {
  const port = field(t("serve.port"), h("input", { type: "number", min: 1, max: 65535, value: setting("CPack.Serve.Port") ?? 3000, inputmode: "numeric" }), { hint: t("serve.port.hint") });
  const risk = h("div", { "aria-live": "polite" });
  const warn = (value) => fill(risk, value === "network" && notice("warning", t("serve.network.risk"), t("serve.network.risk.next")));
  const first = setting("CPack.Serve.Listen") ?? "loopback";
  const listen = choices(t("serve.listen"), [
    { value: "loopback", label: t("serve.loopback"), hint: t("serve.loopback.hint") },
    { value: "network", label: t("serve.network"), hint: t("serve.network.hint") },
  ], { value: first, onchange: warn });
  const token = field(t("serve.token"), h("input", { type: "password", autocomplete: "new-password", spellcheck: "false" }), { hint: t("serve.token.hint") });
  const start = async () => {
    const number = Number(port.input.value);
    if (!Number.isInteger(number) || number < 1 || number > 65535) return port.tell(t("serve.port.wrong"));
    go.disabled = true;
    try {
      const job = await jobs.start("serve", { ...(await openWorkflow()), port: number, listen: listen.chosen(), ...(token.input.value.trim() ? { token: token.input.value.trim() } : {}) });
      if (!dialog.gone.aborted) show(dialog, job);
    } catch (error) {
      form(dialog, complaint(error));
    }
  };
  const go = button(t("serve.start"), { kind: "primary", drawing: "serve", onclick: start });
  warn(first);
  dialog.say(h("form.stack", { novalidate: true, onsubmit: (event) => (event.preventDefault(), start()) }, trouble, h("p.soft", {}, t("serve.what")), h("div.pair", {}, port.element, token.element), listen.element, risk, h("button", { type: "submit", hidden: true })));
  dialog.buttons("", button(t("close"), { onclick: () => dialog.close() }), go);
  port.input.focus();
}

function shownLog(dialog) {
  const lines = h("pre.log", { tabindex: "0", "aria-label": t("work.log") }, t("work.log.empty"));
  const read = async () => {
    if (!element.open || document.hidden) return;
    const told = await text("/serve/log", { signal: dialog.gone }).catch((error) => (error.name === "AbortError" ? null : error.message));
    if (told === null || told === lines.textContent) return;
    const below = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
    lines.textContent = told || t("work.log.empty");
    if (below) lines.scrollTop = lines.scrollHeight;
  };
  const element = h("details", { ontoggle: () => void read() }, h("summary", {}, t("work.log")), h("div.code", {}, lines));
  const timer = setInterval(read, LOG_EVERY);
  dialog.gone.addEventListener("abort", () => clearInterval(timer));
  return element;
}

/** The running service *first*: its health, its address, its log, how to call it, and the way to stop it. */
function show(dialog, first) {
  const health = h("strong.state.starting", { role: "status" }, t("health.starting"));
  const where = h("p");
  const calls = h("div");
  const stop = button(t("serve.stop"), {
    kind: "danger", drawing: "stop",
    onclick: async () => {
      stop.disabled = true;
      await jobs.cancel(first.id).catch((error) => {
        stop.disabled = false;
        dialog.body.prepend(complaint(error));
      });
    },
  });
  let address = null;
  dialog.say(h("div.stack", {}, h("div.row.wrap", {}, health, where), calls, shownLog(dialog)));
  dialog.buttons(t("serve.behind"), stop, button(t("close"), { onclick: () => dialog.close() }));
  stop.focus();
  jobs.follow(first.id, (job) => {
    if (ended(job)) {
      const outcome = job.state === "failed" ? complaint(job.error ?? { message: t("work.failed") }) : notice("note", t("serve.stopped"));
      return form(dialog, outcome);
    }
    const { url, network_url: wide, listen, health: how = "starting", examples } = job.result ?? {};
    health.className = `state ${how}`;
    health.textContent = t(`health.${how}`);
    if (!url || url === address) return;
    address = url;
    fill(where, h("a", { href: url, target: "_blank", rel: "noopener" }, url, " ", icon("link")), " ", wide && h("span.soft", {}, `(${wide}) `), h("span.badge", {}, t(`serve.${listen}`)));
    const entries = [["curl", "curl"], ["python", "Python"], ["javascript", "JavaScript"]].filter(([id]) => examples?.[id]);
    if (entries.length) fill(calls, tabs(entries.map(([id, label]) => ({ id, label, panel: code(examples[id], { label }) })), { label: t("serve.calls"), across: true }).element);
  }, { signal: dialog.gone });
}
