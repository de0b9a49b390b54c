/**
 * Lists of files to tick: one flat with search and filters (models), one a tree of folders (input files). Both take the
 * keyboard as ARIA's listbox and tree do: arrows walk, Home and End jump, Space ticks, Left and Right fold.
 */

import { fill, h, icon } from "./dom.js";
import { button } from "./parts.js";
import { bytes, t } from "./texts.js";

/** Lets the arrow keys walk among the visible *rows()* of *element*; *act(row, key)* answers whether it used another key. */
function walking(element, { rows, act }) {
  const stand = (row) => {
    for (const each of element.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
  };
  element.addEventListener("keydown", (event) => {
    const all = rows();
    const at = all.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1, PageDown: Math.min(at + 8, all.length - 1), PageUp: Math.max(at - 8, 0) }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      if (all[to]) stand(all[to]);
    } else if (act(all[at], event.key)) event.preventDefault();
  });
  return stand;
}

function parted(path) {
  const at = path.lastIndexOf("/");
  return at < 0 ? ["", path] : [path.slice(0, at), path.slice(at + 1)];
}

/** The models of *inventory*, referenced ones ticked and first; `chosen()` gives their paths, *onchange(models)* hears of each change. */
export function modelList(models, { onchange }) {
  const ticked = new Set(models.filter((model) => model.referenced).map((model) => model.path));
  const rank = (model) => (model.referenced ? 0 : model.recent ? 1 : 2);
  const sorted = [...models].sort((one, other) => rank(one) - rank(other) || one.path.localeCompare(other.path));
  const rows = new Map(sorted.map((model) => [model.path, row(model)]));
  const nothing = h("p.empty", { role: "status", hidden: true });
  const list = h("ul.picker", { role: "listbox", "aria-multiselectable": "true", "aria-label": t("models") }, [...rows.values()]);
  const search = h("input", { type: "search", placeholder: t("models.search"), "aria-label": t("models.search"), spellcheck: "false", oninput: narrow });
  const kinds = h("select", { "aria-label": t("models.show"), onchange: narrow },
    ["all", "referenced", "recent", "ticked"].map((kind) => h("option", { value: kind }, t(`models.show.${kind}`))));
  kinds.style.width = "auto";
  const visible = () => [...rows.values()].filter((each) => !each.hidden);
  const every = button(t("models.every"), { kind: "quiet", onclick: () => tickAll(true) });
  const none = button(t("models.none"), { kind: "quiet", onclick: () => tickAll(false) });

  function row(model) {
    const [folder, name] = parted(model.path);
    return h("li.pick", { role: "option", "data-path": model.path, tabindex: "-1", "aria-selected": String(ticked.has(model.path)), onclick: () => tick(model.path) },
      h("span.tick", {}, icon("done")),
      h("div.grow", {}, h("div.clip", { title: model.path }, name), h("div.small.soft.clip", {}, model.folder ?? folder)),
      model.referenced && h("span.badge.accent", { title: t("models.referenced.why") }, t("models.referenced")),
      model.recent && h("span.badge", { title: t("models.recent.why") }, t("models.recent")),
      h("span.amount", {}, bytes(model.size)));
  }
  function mark(path, on) {
    if (on) ticked.add(path);
    else ticked.delete(path);
    rows.get(path).setAttribute("aria-selected", String(on));
  }
  function tick(path) {
    mark(path, !ticked.has(path));
    stand(rows.get(path));
    onchange(chosen());
  }
  function tickAll(on) {
    for (const each of visible()) mark(each.dataset.path, on);
    onchange(chosen());
  }
  function narrow() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = kinds.value;
    for (const model of sorted) {
      const fits = { all: true, referenced: model.referenced, recent: model.recent, ticked: ticked.has(model.path) }[kind];
      rows.get(model.path).hidden = !(fits && words.every((word) => `${model.folder}/${model.path}`.toLowerCase().includes(word)));
    }
    const shown = visible();
    nothing.hidden = shown.length > 0;
    list.hidden = shown.length === 0;
    nothing.textContent = models.length ? t("models.nothing") : t("models.absent");
    for (const each of rows.values()) each.tabIndex = each === shown[0] ? 0 : -1;
  }
  const chosen = () => sorted.filter((model) => ticked.has(model.path));
  const stand = walking(list, { rows: visible, act: (each, key) => (key === " " || key === "Enter") && (tick(each.dataset.path), true) });
  narrow();
  const element = h("div.tall", {}, h("div.row", {}, h("div.searching.grow", {}, icon("search"), search), kinds, every, none), list, nothing);
  return { element, chosen };
}

/** The files of ComfyUI's input folder as a tree, those that the workflow reads ticked; a folder ticks what is in it. */
export function fileTree(files, { onchange }) {
  const ticked = new Set(files.filter((file) => file.referenced).map((file) => file.path));
  const folders = new Map(); // path → {row, under: paths of files, open}
  const leaves = new Map();
  const order = [];
  const level = (path) => path.split("/").length;

  for (const file of [...files].sort((one, other) => one.path.localeCompare(other.path))) {
    const steps = file.path.split("/");
    for (let depth = 1; depth < steps.length; depth += 1) {
      const path = steps.slice(0, depth).join("/");
      if (!folders.has(path)) {
        folders.set(path, { row: row(`${path}/`, steps[depth - 1], { folder: true, depth }), under: [], open: false });
        order.push(`${path}/`);
      }
      folders.get(path).under.push(file.path);
    }
    leaves.set(file.path, row(file.path, steps.at(-1), { depth: level(file.path), size: file.size, referenced: file.referenced }));
    order.push(file.path);
  }
  for (const folder of folders.values()) folder.open = folder.under.length === files.length || folder.under.some((path) => ticked.has(path));

  function row(key, name, { folder = false, depth, size, referenced }) {
    return h("li.pick", { role: "treeitem", tabindex: "-1", "data-path": key, "aria-level": depth, style: `padding-left:${12 + (depth - 1) * 22}px`, onclick: (event) => click(key, event) },
      folder && h("span.turn", {}, icon("chevron")), h("span.tick", {}, icon("done")), icon(folder ? "folder" : "file"),
      h("div.grow.clip", { title: key }, name), referenced && h("span.badge.accent", { title: t("inputs.referenced.why") }, t("models.referenced")),
      size !== undefined && h("span.amount", {}, bytes(size)));
  }
  const isFolder = (key) => key.endsWith("/");
  const rowOf = (key) => (isFolder(key) ? folders.get(key.slice(0, -1)).row : leaves.get(key));
  function shownUnder(key) {
    const steps = key.replace(/\/$/, "").split("/");
    return steps.slice(0, -1).every((_, at) => folders.get(steps.slice(0, at + 1).join("/")).open);
  }
  function draw() {
    for (const key of order) rowOf(key).hidden = !shownUnder(key);
    for (const [path, each] of leaves) each.setAttribute("aria-checked", String(ticked.has(path)));
    for (const { row: each, under, open } of folders.values()) {
      const count = under.filter((path) => ticked.has(path)).length;
      each.setAttribute("aria-checked", count === 0 ? "false" : count === under.length ? "true" : "mixed");
      each.setAttribute("aria-expanded", String(open));
    }
  }
  function tick(key) {
    const under = isFolder(key) ? folders.get(key.slice(0, -1)).under : [key];
    const on = !under.every((path) => ticked.has(path));
    for (const path of under) if (on) ticked.add(path);
    else ticked.delete(path);
    draw();
    onchange(chosen());
  }
  function fold(key, open) {
    folders.get(key.slice(0, -1)).open = open;
    draw();
  }
  function click(key, event) {
    if (isFolder(key) && event.target.closest(".turn")) fold(key, !folders.get(key.slice(0, -1)).open);
    else tick(key);
    stand(rowOf(key));
  }
  function act(each, key) {
    const path = each.dataset.path;
    const folder = isFolder(path) && folders.get(path.slice(0, -1));
    if (key === " " || key === "Enter") tick(path);
    else if (key === "ArrowRight" && folder) fold(path, true);
    else if (key === "ArrowLeft" && folder?.open) fold(path, false);
    else if (key === "ArrowLeft" && level(path.replace(/\/$/, "")) > 1) stand(folders.get(path.replace(/\/$/, "").split("/").slice(0, -1).join("/")).row);
    else return false;
    return true;
  }
  const chosen = () => files.filter((file) => ticked.has(file.path));
  const element = h("ul.picker", { role: "tree", "aria-multiselectable": "true", "aria-label": t("inputs") }, order.map(rowOf));
  const stand = walking(element, { rows: () => order.map(rowOf).filter((each) => !each.hidden), act });
  draw();
  if (order.length) rowOf(order[0]).tabIndex = 0;
  const whole = h("div.tall", {}, h("p.soft.small", {}, t("inputs.what")), order.length ? element : fill(h("p.empty"), t("inputs.absent")));
  return { element: whole, chosen };
}
