/** A plan as a picture: the image's layers stacked as they lie, each as high as it weighs, hatched where it need not be made or sent again. */

import { h } from "./dom.js";
import { bytes, named, t } from "./texts.js";

// Hues far apart also for those who see red and green alike; the words beside them say the same.
const HUES = {
  base: "#7d8590", system: "#a8763e", debs: "#a8763e", interpreter: "#3c8d6e", service: "#2f9e9e", wheel: "#3f7fd6", wheels: "#3f7fd6",
  model: "#c2622d", models: "#c2622d", comfyui: "#8a63c9", node: "#b0589b", nodes: "#b0589b", config: "#8c8c42", app: "#8c8c42",
};
const TALLEST = 88; // pixels, of the heaviest layer

/** The *layers* of a plan, from the base at the bottom up, under a line of sums. */
export function picture(layers) {
  const heaviest = Math.max(1, ...layers.map((layer) => layer.size ?? 0));
  const total = layers.reduce((sum, layer) => sum + (layer.size ?? 0), 0);
  const fresh = layers.filter((layer) => !layer.known);
  const rows = layers.map((layer) => {
    const height = Math.max(26, Math.round(TALLEST * Math.sqrt((layer.size ?? 0) / heaviest)));
    const shared = layer.shared_with?.[0];
    return h(`li${layer.known ? ".known" : ""}`, { style: `--hue:${HUES[layer.kind] ?? "#7d8590"};height:${height}px`, title: [layer.name, ...(layer.shared_with ?? [])].join("\n") },
      h("span.grow.clip", {}, layer.name), shared && h("span.badge", { title: shared }, t("plan.shared")), layer.known && h("span.badge.good", {}, t("plan.known")), h("span.amount", {}, layer.size === null ? "" : bytes(layer.size)));
  });
  const kinds = [...new Set(layers.map((layer) => layer.kind))];
  return h("div.stack", { "data-part": "plan" },
    h("p", {}, h("strong", {}, t("plan.layers", { count: layers.length })), " · ", bytes(total), " · ",
      fresh.length ? t("plan.new", { count: fresh.length, size: bytes(fresh.reduce((sum, layer) => sum + (layer.size ?? 0), 0)) }) : t("plan.nothing")),
    h("ol.layers", { "aria-label": t("plan.picture") }, rows),
    h("p.legend", {}, kinds.map((kind) => h("span", {}, h("i", { style: `--hue:${HUES[kind] ?? "#7d8590"}` }), named(`layer.${kind}`, kind)))));
}
