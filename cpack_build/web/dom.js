/**
 * Elements by one function, so that every text in the plugin's dialogs is set as text and never as markup: names of
 * models, nodes and packages come from files and servers, and are as hostile in a page as anywhere else.
 */

/** An element *tag* (as in "button.primary") with *props*; what begins with "on" listens, `null` and `false` are left out. */
export function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in PROPERTIES) element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

// Their attributes only give the first value, not the present one.
const PROPERTIES = { checked: true, value: true, disabled: true, indeterminate: true, textContent: true, hidden: true };

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Puts *children* in place of what *element* holds. */
export function fill(element, ...children) {
  element.replaceChildren(...flat(children));
  return element;
}

let numbers = 0;

/** An id that no other element of the page has. */
export function unique(prefix) {
  numbers += 1;
  return `cpack-${prefix}-${numbers}`;
}

const SHAPES = {
  package: "M12 3 20 7.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9M8 5.2l8 4.5",
  serve: "M7 4.5v15l12-7.5z",
  image: "M12 3 21 8l-9 5-9-5zM3 12l9 5 9-5M3 16l9 5 9-5",
  deploy: "M7 18a4.5 4.5 0 0 1-.6-9A6 6 0 0 1 18 8.6 4.7 4.7 0 0 1 17.5 18M12 20v-8M9 14.5l3-3 3 3",
  unpack: "M4 10v9a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-9M3 5h18v5H3zM12 12v5M9.5 15l2.5 2.5 2.5-2.5",
  check: "M9 4h6v3H9zM9 5H6v15h12V5h-3M9 13.5l2 2 4-4.5",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  search: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13M15.5 15.5 20 20",
  folder: "M3 6h6l2 2.5h10V19H3z",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  error: "M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18M12 7.5v5.5M12 16.2v.3",
  warning: "M12 4 21.5 20h-19zM12 10v4.5M12 17v.3",
  note: "M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18M12 11v5.5M12 7.6v.3",
  done: "M4.5 12.5 10 18 20 7",
  link: "M14 4h6v6M20 4l-9 9M18 13v6H5V6h6",
  download: "M12 4v11M7.5 10.5 12 15l4.5-4.5M4 20h16",
  chevron: "M9 6l6 6-6 6",
  target: "M12 6a6 6 0 1 1 0 12 6 6 0 0 1 0-12M12 2v5M12 17v5M2 12h5M17 12h5",
  stop: "M6 6h12v12H6z",
};

/** A line drawing named as in SHAPES; it says nothing to a screen reader, for a text stands beside it. */
export function icon(name) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: `icon ${name}`, "aria-hidden": "true" }))
    drawing.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[name]);
  drawing.append(path);
  return drawing;
}
