/** What the preflight found: sorted by weight, in words with the next step; one that is about a node leads to it on the canvas. */

import { app } from "../../scripts/app.js";
import { h, icon } from "./dom.js";
import { notice } from "./parts.js";
import { t } from "./texts.js";

const WEIGHT = { error: 0, warning: 1, note: 2 };

function find(graph, id) {
  return graph.getNodeById?.(Number(id)) ?? graph.getNodeById?.(id);
}

/** Shows node *id* ("12", or "12:3" in a subgraph) in the middle of the canvas, selected. */
export function jump(id) {
  const steps = String(id).split(":");
  let graph = app.rootGraph ?? app.graph.rootGraph ?? app.graph;
  for (const step of steps.slice(0, -1)) graph = find(graph, step)?.subgraph ?? graph;
  const node = find(graph, steps.at(-1));
  if (!node) return false;
  if (app.canvas.graph !== graph) app.canvas.setGraph?.(graph);
  app.canvas.selectNode?.(node, false);
  app.canvas.centerOnNode?.(node);
  app.canvas.setDirty?.(true, true);
  return true;
}

/** The title of node *id* as its author wrote it. */
export function titleOf(id) {
  const steps = String(id).split(":");
  let graph = app.rootGraph ?? app.graph.rootGraph ?? app.graph;
  for (const step of steps.slice(0, -1)) graph = find(graph, step)?.subgraph ?? graph;
  return find(graph, steps.at(-1))?.title ?? `#${id}`;
}

/** *findings* as a list; *leave()* is called before a jump, to get out of the canvas' way. */
export function findingList(findings, { leave }) {
  if (!findings.length) return notice("done", t("check.clean"), t("check.clean.next"));
  const sorted = [...findings].sort((one, other) => WEIGHT[one.level] - WEIGHT[other.level]);
  return h("ul.stack.tight", { "aria-label": t("findings") }, sorted.map((finding) => {
    const leads = finding.node_id !== undefined && finding.node_id !== null;
    const words = [icon(finding.level), h("span.grow", {}, h("span.out-of-sight", {}, `${t(`level.${finding.level}`)}: `), h("span", { style: "display:block" }, finding.message), finding.next && h("span.soft.small", { style: "display:block" }, finding.next))];
    if (!leads) return h("li.finding", {}, words);
    const go = () => {
      leave();
      jump(finding.node_id);
    };
    return h("li", {}, h("button.finding", { type: "button", "data-node": finding.node_id, title: t("check.jump"), onclick: go }, words, h("span.badge.accent", {}, icon("target"), titleOf(finding.node_id))));
  }));
}

/** How many errors and warnings there are, in one line. */
export function summary(findings) {
  const count = (level) => findings.filter((finding) => finding.level === level).length;
  const [errors, warnings] = [count("error"), count("warning")];
  return [errors && t("check.errors", { count: errors }), warnings && t("check.warnings", { count: warnings })].filter(Boolean).join(", ") || t("check.none");
}
