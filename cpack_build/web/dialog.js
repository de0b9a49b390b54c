/**
 * The frame of every dialog: the browser's own modal <dialog> in a shadow root. The browser keeps the focus inside, closes
 * it on Escape, gives the focus back afterwards and draws it above all else, in every version of the frontend; the frontend's
 * shortcuts (its R, Delete, Ctrl+C, paste and drop act on the canvas) never see what is typed here.
 */

import { app } from "../../scripts/app.js";
import { fill, h, icon, unique } from "./dom.js";
import { button, complaint } from "./parts.js";
import { follow, t } from "./texts.js";

const KEPT = ["keydown", "keyup", "keypress", "copy", "cut", "paste", "dragenter", "dragover", "dragleave", "drop", "wheel", "contextmenu"];
const sheet = new CSSStyleSheet();
let styled = null;
let open = null;

/** Reads the stylesheet, once. */
export function style() {
  styled ??= fetch(new URL("./cpack.css", import.meta.url)).then(async (answer) => sheet.replace(await answer.text()));
  return styled;
}

/** A shadow root in *host* that looks like the theme; its native controls are dark on a dark ground. */
export function rooted(host) {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [sheet];
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--comfy-menu-bg") || "#353535";
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = ground;
  canvas.fillRect(0, 0, 1, 1);
  const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
  host.style.colorScheme = 0.3 * red + 0.59 * green + 0.11 * blue < 128 ? "dark" : "light";
  return root;
}

/** An open dialog. *body* and *foot* are the dialog's to fill; *gone* is aborted when it closes. */
class Dialog {
  #ends = new AbortController();

  constructor({ name, title, subtitle, drawing, width, height }) {
    this.gone = this.#ends.signal;
    this.host = h("div", { "data-cpack-dialog": name });
    for (const kind of KEPT) this.host.addEventListener(kind, (event) => event.stopPropagation());
    const heading = unique("title");
    this.body = h("div.body", { "data-part": "body" });
    this.foot = h("div.foot", { "data-part": "foot" });
    this.element = h("dialog", { "aria-labelledby": heading, style: `--width:${width}px;${height ? `--height:${height}px` : ""}` },
      h("div.head", {}, h("span.mark", {}, icon(drawing)), h("div.grow", {}, h("h2", { id: heading }, title), h("p.soft", {}, subtitle)),
        button("", { kind: "quiet.square", drawing: "close", "aria-label": t("close"), title: `${t("close")} (Esc)`, onclick: () => this.close() })),
      this.body, this.foot);
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.foot.querySelector(".primary:not(:disabled)")?.click();
      if (event.key === "Tab") this.#turn(event);
    });
    this.element.addEventListener("close", () => this.#end());
    rooted(this.host).append(this.element);
  }

  show() {
    document.body.append(this.host);
    this.element.showModal();
  }

  /** Puts *children* in place of the body; the focus goes to its first field. */
  say(...children) {
    fill(this.body, children);
    this.body.scrollTop = 0;
  }

  /** The line of buttons below: *left* is a text, the last button the one that Enter means. */
  buttons(left, ...rest) {
    fill(this.foot, h("div.grow", { role: "status" }, left), rest);
  }

  /** Moves the focus to what should be typed into next. */
  focus(selector = "input:not([type=radio]):not([disabled]), select, textarea, [role=tab][tabindex='0'], button") {
    (this.body.querySelector(selector) ?? this.foot.querySelector("button:last-of-type"))?.focus();
  }

  /** Does *work*; what it refuses is told in the body's place, with a button that tries again. */
  async attempt(work) {
    try {
      await work();
    } catch (error) {
      if (this.gone.aborted || error.name === "AbortError") return;
      this.say(complaint(error));
      this.buttons("", button(t("again"), { kind: "primary", onclick: () => this.attempt(work) }));
      this.focus(".none");
    }
  }

  close() {
    if (this.element.open) this.element.close();
    else this.#end();
  }

  /** Leads Tab from the last button to the first and back: the browser itself would let it out to its own toolbar. */
  #turn(event) {
    const first = this.element.querySelector("button");
    const last = [...this.foot.querySelectorAll("button:not(:disabled), a")].at(-1) ?? first;
    const [from, to] = event.shiftKey ? [first, last] : [last, first];
    if (this.host.shadowRoot.activeElement !== from) return;
    event.preventDefault();
    to.focus();
  }

  #end() {
    if (open === this) open = null;
    this.#ends.abort();
    this.host.remove();
  }
}

/** Opens a dialog in the language of now; the one that was open closes. */
export async function opened({ name, title, subtitle, drawing, width = 720, height = null }) {
  await Promise.all([follow(), style()]);
  open?.close();
  open = new Dialog({ name, title: t(title), subtitle: t(subtitle), drawing, width, height });
  open.show();
  return open;
}

/** A short message in the frontend's own corner; *severity* as its toasts have it. */
export function toast(severity, summary, detail = "") {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: severity === "error" ? 12000 : 6000 });
}
