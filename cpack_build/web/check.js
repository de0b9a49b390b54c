/** Check: the preflight of the open workflow, and the API that it would have. */

import { h, icon } from "./dom.js";
import { opened } from "./dialog.js";
import { findingList, summary, titleOf } from "./findings.js";
import { button, notice } from "./parts.js";
import { ask, openWorkflow } from "./server.js";
import { t } from "./texts.js";
import { meter } from "./work.js";

function described(parameter) {
  const { minimum, maximum } = parameter;
  const bounds = minimum !== undefined && minimum !== null && maximum !== undefined && maximum !== null ? `${minimum} – ${maximum}` : "";
  return [parameter.type ?? parameter.kind, bounds, parameter.required ? t("check.required") : "", parameter.description].filter(Boolean).join(" · ");
}

function list(title, entries, absent) {
  const rows = entries.map((entry) => h("li", {}, icon("serve"), h("div.grow", {}, h("strong", {}, entry.name), h("div.small.soft", {}, described(entry))), entry.node_id !== undefined && h("span.badge", {}, titleOf(entry.node_id))));
  return h("section.stack.tight", {}, h("h3", {}, h("strong", {}, title)), rows.length ? h("ul.plain", {}, rows) : notice("warning", ...absent));
}

export async function check() {
  const dialog = await opened({ name: "check", title: "check.title", subtitle: "check.subtitle", drawing: "check", height: 640 });
  const look = () => dialog.attempt(async () => {
    const wait = meter();
    wait.show({ label: t("check.wait") });
    dialog.say(wait.element);
    dialog.buttons("", button(t("close"), { onclick: () => dialog.close() }));
    const { findings, parameters = [], outputs = [] } = await ask("/check", { body: await openWorkflow(), signal: dialog.gone });
    dialog.say(h("div.stack", {},
      findingList(findings, { leave: () => dialog.close() }),
      list(t("check.parameters"), parameters, [t("check.parameters.absent"), t("check.parameters.absent.next")]),
      list(t("check.outputs"), outputs, [t("check.outputs.absent"), t("check.outputs.absent.next")])));
    dialog.buttons(summary(findings), button(t("again.check"), { onclick: look }), button(t("close"), { kind: "primary", onclick: () => dialog.close() }));
    dialog.focus("button.finding");
  });
  await look();
}
