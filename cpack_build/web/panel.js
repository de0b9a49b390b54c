/** The sidebar panel: what can be done, the service that runs, and the jobs of this server, whoever started them. */

import { fill, h, icon } from "./dom.js";
import { opened, rooted, style } from "./dialog.js";
import { deployed } from "./deploy.js";
import { built } from "./image.js";
import { ended, jobs } from "./jobs.js";
import { picture } from "./layers.js";
import { finished } from "./package.js";
import { button, code, complaint, notice } from "./parts.js";
import { ask, downloadURL } from "./server.js";
import { clock, follow, t } from "./texts.js";
import { restored } from "./unpack.js";
import { meter, watch } from "./work.js";

const RESULTS = {
  pack: finished,
  image: built,
  deploy: deployed,
  unpack: restored,
  plan: (dialog, job) => {
    dialog.say(picture(job.result.layers));
    dialog.buttons("", button(t("close"), { kind: "primary", onclick: () => dialog.close() }));
  },
};

/** Job *id* in a dialog of its own: how far it is, or what came of it. */
async function show(job) {
  const drawing = { pack: "package", plan: "image", inspect: "unpack" }[job.kind] ?? job.kind;
  const dialog = await opened({ name: "job", title: `kind.${job.kind}`, subtitle: "panel.job", drawing, width: 760 });
  const back = () => dialog.close();
  watch(dialog, job.id, { done: (now) => (RESULTS[now.kind] ? RESULTS[now.kind](dialog, now) : dialog.close()), back });
}

function entry(job, { commands }) {
  const how = meter();
  const label = h("strong.grow.clip");
  const state = h("span.state");
  const line = h("p.small.soft");
  const buttons = h("div.row.wrap");
  const element = h("li.job", { "data-job": job.id }, h("div.row", {}, label, state), how.element, line, buttons);
  const cancel = async () => {
    await jobs.cancel(job.id).catch((error) => line.replaceWith(complaint(error)));
  };
  const update = (now) => {
    const over = ended(now);
    label.textContent = now.title || t(`kind.${now.kind}`);
    label.title = label.textContent;
    const live = now.kind === "serve" && !over ? (now.result?.health ?? "starting") : now.state;
    state.className = `state small ${live}`;
    state.textContent = t(now.kind === "serve" && !over ? `health.${live}` : `state.${live}`);
    how.element.hidden = over || now.kind === "serve";
    how.show(now.progress);
    line.textContent = now.error?.message ?? (over ? [clock(now.ended ?? now.started), now.result?.name ?? now.result?.reference ?? now.result?.folder].filter(Boolean).join(" · ") : "");
    line.hidden = !line.textContent;
    const shape = `${over}-${now.state}-${Boolean(now.result?.url)}`;
    if (buttons.dataset.shape === shape) return; // a button that has the focus keeps it
    buttons.dataset.shape = shape;
    fill(buttons,
      now.kind === "serve" && !over && now.result?.url && h("a.button", { href: now.result.url, target: "_blank", rel: "noopener" }, t("panel.page"), icon("link")),
      over && now.state === "done" && now.result?.download && h("a.button", { href: downloadURL(now.id), download: now.result.name ?? "" }, icon("download"), t("download")),
      button(t("panel.look"), { onclick: () => (now.kind === "serve" && !over ? commands.serve() : show(jobs.get(job.id) ?? now)) }),
      !over && button(t(now.kind === "serve" ? "serve.stop" : "work.cancel"), { kind: "danger", onclick: cancel }));
  };
  update(job);
  return { element, update };
}

/** What to do when the command-line tool is not found: this ComfyUI can do nothing without it. */
function missingTool(status) {
  const { how, problem } = status.tool;
  return notice("warning", problem || t("tool.missing"), t("tool.missing.next"), how && code(Array.isArray(how) ? how.join("\n") : how, { label: t("tool.how") }));
}

/** Draws the panel into *host*; *commands* are the dialogs by name. Returns what takes it down again. */
export function panel(host, { commands }) {
  const gone = new AbortController();
  void draw(host, { commands, gone });
  return () => gone.abort();
}

async function draw(host, { commands, gone }) {
  await Promise.all([follow(), style()]);
  const tool = h("div");
  const list = h("ul.stack.tight", { "aria-label": t("panel.jobs") });
  const empty = h("p.soft", {}, t("panel.empty"));
  const entries = new Map();
  const quick = Object.keys(commands).map((name) => h("button", { type: "button", "data-action": name, onclick: () => commands[name]() }, icon(name), h("span", {}, t(`${name}.short`))));
  fill(rooted(host), h("div.side", {}, tool, h("section", {}, h("h3", {}, t("panel.actions")), h("div.actions", {}, quick)), h("section", {}, h("h3", {}, t("panel.jobs")), empty, list)));
  const update = () => {
    const all = jobs.all().filter((job) => job.kind !== "inspect"); // a step of Unpack, whose dialog shows it
    empty.hidden = all.length > 0;
    for (const [id, { element }] of entries) if (!jobs.get(id)) entries.delete(id), element.remove();
    all.forEach((job, at) => {
      if (!entries.has(job.id)) entries.set(job.id, entry(job, { commands }));
      else entries.get(job.id).update(job);
      const { element } = entries.get(job.id);
      if (list.children[at] !== element) list.insertBefore(element, list.children[at] ?? null);
    });
  };
  jobs.addEventListener("change", update, { signal: gone.signal });
  update();
  try {
    let status = await ask("/status", { signal: gone.signal });
    while (status.tool.looking && !gone.signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      status = await ask("/status", { signal: gone.signal });
    }
    if (!status.tool.found) fill(tool, missingTool(status));
    await jobs.refresh();
  } catch (error) {
    if (!gone.signal.aborted) fill(tool, complaint(error));
  }
}
