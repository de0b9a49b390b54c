/** A job as a person sees it: its stages, how far it is by real bytes or items, its log, and how it ended. */

import { fill, h } from "./dom.js";
import { ended, jobs } from "./jobs.js";
import { button, complaint, notice } from "./parts.js";
import { text } from "./server.js";
import { bytes, duration, named, t } from "./texts.js";

function amount({ done, total, unit }) {
  const write = unit === "bytes" ? bytes : (value) => value.toLocaleString();
  return total ? t("work.of", { done: write(done ?? 0), total: write(total) }) : done ? write(done) : "";
}

function left({ done, total, rate }) {
  return rate && total ? t("work.left", { time: duration((total - (done ?? 0)) / rate) }) : "";
}

/** A bar with what it means; `show(progress)` moves it, and tells a screen reader only whole percents. */
export function meter() {
  const fillings = h("i");
  const bar = h("div.bar.unknown", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": t("work.progress") }, fillings);
  const label = h("span.grow.clip.label");
  const figures = h("span.amount");
  const element = h("div.stack.tight", {}, h("div.row.wrap", {}, label, figures), bar);
  const show = (progress) => {
    const known = Boolean(progress?.total);
    const part = known ? Math.min(1, (progress.done ?? 0) / progress.total) : 0;
    bar.classList.toggle("unknown", !known);
    fillings.style.width = known ? `${part * 100}%` : "";
    if (known) bar.setAttribute("aria-valuenow", String(Math.floor(part * 100)));
    else bar.removeAttribute("aria-valuenow");
    label.textContent = progress?.label ?? "";
    label.title = label.textContent;
    figures.textContent = progress ? [amount(progress), progress.rate && progress.unit === "bytes" ? `${bytes(progress.rate)}/s` : "", left(progress)].filter(Boolean).join(" · ") : "";
  };
  return { element, show };
}

/** The log of job *id*, read when it is opened; `add(lines)` follows it. */
export function log(id, { open = false } = {}) {
  const lines = h("pre.log", { tabindex: "0", "aria-label": t("work.log") });
  let whole = null;
  const element = h("details", { open, ontoggle: () => element.open && whole === null && void read() }, h("summary", {}, t("work.log")), h("div.code", {}, lines));
  const put = (value) => {
    const below = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
    lines.textContent = value || t("work.log.empty");
    if (below) lines.scrollTop = lines.scrollHeight;
  };
  const read = async () => {
    whole = "";
    await text(`/jobs/${encodeURIComponent(id)}/log`).then((told) => put((whole = told)), (error) => put(error.message));
  };
  const add = (tail) => element.open && put((tail ?? []).join("\n"));
  if (open) void read();
  return { element, add };
}

/**
 * Shows job *id* in *dialog* from now to its end: then *done(job)* fills the dialog with what came of it, or what went wrong is
 * told and *back()* leads to the form again; *consent(code)* may answer what to do once the person agrees to what was refused. Closing the dialog leaves the job at work; the panel has it.
 */
export function watch(dialog, id, { done, back, doing, consent }) {
  const how = meter();
  const list = h("ol.stages");
  const record = log(id);
  dialog.say(h("div.stack.middle", { "data-part": "work" }, how.element, list, record.element));
  const cancel = button(t("work.cancel"), {
    kind: "danger",
    onclick: async () => {
      cancel.disabled = true;
      await jobs.cancel(id).catch((error) => {
        cancel.disabled = false;
        dialog.body.prepend(complaint(error));
      });
    },
  });
  dialog.buttons(doing ?? t("work.behind"), cancel, button(t("work.hide"), { onclick: () => dialog.close() }));
  cancel.focus();
  jobs.follow(id, (job) => {
    how.show(job.progress);
    fill(list, (job.stages ?? []).map((stage) => h(`li.${stage.state}`, {}, named(`stage.${stage.code}`, stage.label), h("span.out-of-sight", {}, t(`state.${stage.state}`)))));
    record.add(job.log_tail);
    if (!ended(job)) return;
    if (job.state === "done") return done(job);
    const again = button(t("work.back"), { kind: "primary", onclick: back });
    const outcome = job.state === "cancelled" ? notice("note", t("work.cancelled"), t("work.cancelled.next")) : complaint(job.error ?? { message: t("work.failed") });
    dialog.say(h("div.stack.middle", { "data-part": "outcome" }, outcome, log(id, { open: job.state === "failed" }).element));
    const more = job.state === "failed" && consent?.(job.error?.code);
    dialog.buttons(more ? t(`consent.${job.error.code}`) : "", more && button(t("consent.agree"), { onclick: more }), again);
    again.focus();
  }, { signal: dialog.gone });
}

// What the tool refuses until somebody agrees, and the parameter that says so.
const CONSENTS = { NeedsTrust: "trust", UnsafeInput: "include_local" };

/** Starts a job of *kind* with *params* and shows it in *dialog* as watch() does; what keeps it from starting leads back, too. */
export async function run(dialog, kind, params, { done, back, doing }) {
  dialog.foot.querySelectorAll("button").forEach((each) => (each.disabled = true));
  try {
    const job = await jobs.start(kind, params);
    if (dialog.gone.aborted) return;
    const consent = (code) => {
      const flag = CONSENTS[code];
      return flag && !params[flag] ? () => run(dialog, kind, { ...params, [flag]: true }, { done, back, doing }) : null;
    };
    watch(dialog, job.id, { done, back, doing, consent });
  } catch (error) {
    if (dialog.gone.aborted) return;
    const again = button(t("work.back"), { kind: "primary", onclick: back });
    dialog.say(h("div.stack.middle", { "data-part": "outcome" }, complaint(error)));
    dialog.buttons("", again);
    again.focus();
  }
}
