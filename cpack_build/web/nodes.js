/**
 * The interface nodes in the editor: Any, File and Choice take the widget of the input that they are connected to.
 *
 * The widget stays the node's own, under its own name, so that a saved workflow and an export have it at the same place
 * whatever it looks like; what it looks like is kept in the node's properties, and taken anew from the input it feeds
 * when a workflow has been opened. A value or a title that a person has set is never replaced.
 */

import { app } from "../../scripts/app.js";

const VALUE = { CPackInputAny: "input", CPackInputFile: "path", CPackInputChoice: "value" };
const BOUNDED = ["CPackInputInt", "CPackInputFloat"];
const PICTURES = ["CPackInputImage", "CPackInputMask"];
const SHAPE = "cpack_widget";
const OUTPUT = 2; // LiteGraph's NodeSlotType
const NUMBER_OPTIONS = ["min", "max", "step", "step2", "round", "precision"];

const named = (node, name) => node.widgets?.find((widget) => widget.name === name);
const lines = (text) => [...new Set(String(text ?? "").split(/\r?\n/).map((line) => line.trim()).filter(Boolean))];

function pick(from, keys) {
  return Object.fromEntries(keys.filter((key) => typeof from?.[key] === "number").map((key) => [key, from[key]]));
}

function choices(widget, node) {
  const values = widget.options?.values;
  const listed = typeof values === "function" ? values(widget, node) : values;
  return Array.isArray(listed) ? [...listed] : Object.values(listed ?? {});
}

/** What a widget looks like: `{type, options, values?}`; null for one that holds no value of a kind we know. */
function shapeOf(widget, node) {
  switch (widget?.type) {
    case "number":
    case "slider":
    case "knob":
    case "gradientslider":
      return { type: widget.options?.precision === 0 ? "INT" : "FLOAT", options: pick(widget.options, NUMBER_OPTIONS) };
    case "toggle":
      return { type: "BOOLEAN", options: {} };
    case "combo":
      return { type: "COMBO", options: {}, values: choices(widget, node) };
    case "text":
    case "string":
      return { type: "STRING", options: {} };
    case "customtext":
    case "textarea":
      return { type: "STRING", options: { multiline: true } };
    default:
      return null;
  }
}

/** How ComfyUI declares such an input: `[type, options]`. */
function declared(shape) {
  if (shape.type === "COMBO") return [shape.values ?? [], {}];
  const { step, step2, ...options } = shape.options;
  return [shape.type, { ...options, ...(step2 ?? step ? { step: step2 ?? step / 10 } : {}) }];
}

function fits(value, shape) {
  switch (shape.type) {
    case "INT":
    case "FLOAT":
      return value !== "" && value !== null && typeof value !== "boolean" && Number.isFinite(Number(value));
    case "BOOLEAN":
      return typeof value === "boolean";
    case "COMBO":
      return !shape.values || shape.values.includes(value);
    default:
      return value !== "" && value !== null && value !== undefined;
  }
}

const cast = (value, shape) => {
  if (shape.type === "INT" || shape.type === "FLOAT") return Number(value);
  return shape.type === "STRING" ? String(value) : value;
};

/** Give the widget called `name` of `node` the look of `shape`; its value stays. Returns the widget. */
function reshape(node, name, shape) {
  const present = named(node, name);
  const now = shapeOf(present, node);
  if (present && now?.type === shape.type && !!now.options.multiline === !!shape.options.multiline) {
    if (shape.values) present.options.values = shape.values;
    Object.assign(present.options, shape.options);
    return present;
  }
  const { value, label, tooltip } = present ?? {};
  const place = present ? node.widgets.indexOf(present) : 0;
  const slots = node.inputs?.slice();
  if (present) {
    present.onRemove?.();
    node.widgets.splice(place, 1);
  }
  const made = app.widgets[shape.type](node, name, declared(shape), app).widget;
  node.widgets.splice(node.widgets.indexOf(made), 1);
  node.widgets.splice(place, 0, made);
  if (slots) node.inputs = slots; // a widget's slot belongs to its name
  Object.assign(made.options, shape.options);
  if (label !== undefined) made.label = label;
  if (tooltip !== undefined) made.tooltip = tooltip;
  if (value !== undefined) made.value = value;
  const size = node.computeSize?.();
  if (size) node.setSize?.([Math.max(size[0], node.size[0]), Math.max(size[1], node.size[1])]);
  return made;
}

/** The widget that feeds the slot `index` of `target` where nothing is connected, or null. */
function widgetOf(target, index) {
  const slot = target?.inputs?.[index];
  return slot?.widget ? (named(target, slot.widget.name) ?? null) : null;
}

/** The first input that `node` feeds: `{target, index}`. */
function fed(node) {
  const links = node.graph?.links;
  for (const id of node.outputs?.[0]?.links ?? []) {
    const link = links?.get?.(id) ?? links?.[id];
    const target = link && node.graph.getNodeById(link.target_id);
    if (target) return { target, index: link.target_slot };
  }
  return null;
}

/** Take the look of the widget that `node` feeds; and its value, where the one here is none of its kind, if `fresh`. */
function mirror(node, { fresh }) {
  const found = fed(node);
  const theirs = found && widgetOf(found.target, found.index);
  const shape = theirs && shapeOf(theirs, found.target);
  if (!shape) return;
  if (node.type === "CPackInputChoice") return mirrorChoices(node, theirs, shape, { fresh });
  const name = VALUE[node.type];
  const before = named(node, name)?.value;
  const widget = reshape(node, name, shape);
  if (fits(before, shape)) widget.value = cast(before, shape);
  else if (fresh || before === "" || before === undefined) widget.value = theirs.value;
  else widget.value = before;
  node.properties[SHAPE] = { type: shape.type, options: shape.options };
}

function mirrorChoices(node, theirs, shape, { fresh }) {
  const listed = named(node, "choices");
  if (fresh && shape.values && listed && !lines(listed.value).length) {
    listed.value = shape.values.join("\n");
    if (!shape.values.includes(named(node, "value").value)) named(node, "value").value = theirs.value;
  }
  offerChoices(node);
}

/** Offer the lines of `choices` as values, or a free text while there are none. */
function offerChoices(node) {
  const values = lines(named(node, "choices")?.value);
  reshape(node, "value", values.length ? { type: "COMBO", options: {}, values } : { type: "STRING", options: {} });
}

/** Have `then` called after the function called `name` of `object`, if it has one. */
function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

function keepBounds(node) {
  const [value, min, max] = ["value", "min", "max"].map((name) => named(node, name));
  if (!value || !min || !max) return;
  const hold = () => {
    if (min.value <= max.value) Object.assign(value.options, { min: min.value, max: max.value });
  };
  after(min, "callback", hold);
  after(max, "callback", hold);
  after(node, "onConfigure", hold);
}

/** Put the upload button behind the picture's name, where workflows of comfy-pack have saved it. */
function keepPlaces(node) {
  const button = named(node, "upload");
  if (!button) return;
  node.widgets.splice(node.widgets.indexOf(button), 1);
  node.widgets.splice(1, 0, button);
}

function follow(node) {
  const title = node.title; // what it is called before anyone has named it
  // An own function stands before one of the prototype, such as comfy-pack's, which would replace the node's widget.
  node.onConnectOutput = (slot, type, input) => {
    if (node.type !== "CPackInputFile") return true;
    return ["COMBO", "STRING", "*"].includes(String(input?.type ?? type));
  };
  after(node, "onConnectionsChange", function (type, slot, connected) {
    if (type !== OUTPUT || !connected || app.configuringGraph || !node.graph) return;
    const found = fed(node);
    if (!found) return;
    mirror(node, { fresh: true });
    const fedName = found.target.inputs?.[found.index]?.name;
    if (node.title === title && fedName) node.title = fedName;
  });
  after(node, "onConfigure", function (saved) {
    if (node.type === "CPackInputChoice") return offerChoices(node);
    const name = VALUE[node.type];
    const value = saved?.widgets_values_named?.[name] ?? saved?.widgets_values?.[0];
    const shape = node.properties?.[SHAPE];
    const widget = shape?.type in app.widgets ? reshape(node, name, { options: {}, ...shape }) : named(node, name);
    if (widget && value !== undefined && value !== null) widget.value = value;
    setTimeout(() => mirror(node, { fresh: false })); // once its links are there, as after pasting or making a subgraph
  });
  if (node.type === "CPackInputChoice") {
    const listed = named(node, "choices");
    if (listed) after(listed, "callback", () => offerChoices(node));
  }
}

const root = () => app.rootGraph ?? app.graph?.rootGraph ?? app.graph;

/** The node that an export calls `id`: `12`, or `12:3` for node 3 of the subgraph that node 12 is. */
function exported(id) {
  let graph = root();
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

/** Tell in an export what the widget of each Any offers, as comfy-pack does: bounds and choices reach the API by it. */
function tellOptions(output) {
  for (const [id, entry] of Object.entries(output ?? {})) {
    if (entry.class_type !== "CPackInputAny") continue;
    const node = exported(id);
    if (node) mirror(node, { fresh: false });
    const shape = node && shapeOf(named(node, "input"), node);
    const options = { ...shape?.options, ...(shape?.values ? { values: shape.values } : {}) };
    delete options.multiline;
    if (Object.keys(options).length) entry._meta = { ...entry._meta, options };
  }
}

/** What the extension of `cpack.js` does for the nodes. */
export const hooks = {
  init() {
    const original = app.graphToPrompt;
    app.graphToPrompt = async function (...given) {
      const found = await original.apply(this, given);
      tellOptions(found?.output);
      return found;
    };
  },
  nodeCreated(node) {
    if (node.comfyClass in VALUE) follow(node);
    else if (BOUNDED.includes(node.comfyClass)) keepBounds(node);
    else if (PICTURES.includes(node.comfyClass)) keepPlaces(node);
  },
  afterConfigureGraph() {
    const graphs = [root(), ...(root()?.subgraphs?.values?.() ?? [])];
    for (const graph of graphs) {
      for (const node of graph?.nodes ?? []) if (node.comfyClass in VALUE) mirror(node, { fresh: false });
    }
  },
};
