/** The dialogs by name, and what the frontend needs to offer them: commands, menu, shortcuts, buttons, settings and the sidebar's tab. */

import { check } from "./check.js";
import { deploy } from "./deploy.js";
import { toast } from "./dialog.js";
import { image } from "./image.js";
import { jobs } from "./jobs.js";
import { pack } from "./package.js";
import { panel } from "./panel.js";
import { serve } from "./serve.js";
import { follow, t } from "./texts.js";
import { unpack } from "./unpack.js";

const ACTIONS = { package: pack, serve, image, deploy, unpack, check };
const ICONS = { package: "pi pi-box", serve: "pi pi-play", image: "pi pi-clone", deploy: "pi pi-cloud-upload", unpack: "pi pi-folder-open", check: "pi pi-verified" };
const KEYS = { package: "p", serve: "s", image: "b", deploy: "d", unpack: "u", check: "c" };
const idOf = (name) => `CPack.${name[0].toUpperCase()}${name.slice(1)}`;

/**
 * What registerExtension() is given. Labels are functions and getters where the frontend allows it, so they speak its language
 * of now; the words of settings are English here, and the frontend translates them itself, by `locales/LANGUAGE/settings.json`.
 */
export function offered() {
  const names = Object.keys(ACTIONS);
  return {
    commands: names.map((name) => ({ id: idOf(name), icon: ICONS[name], label: () => t(`${name}.command`), menubarLabel: () => t(`${name}.short`), tooltip: () => t(`${name}.subtitle`), function: () => ACTIONS[name]() })),
    menuCommands: [{ path: ["CPack"], commands: names.map(idOf) }],
    keybindings: names.map((name) => ({ commandId: idOf(name), combo: { key: KEYS[name], alt: true, shift: true } })),
    settings: [
      { id: "CPack.Serve.Port", category: ["CPack", "Serve", "Port"], name: "Port that Serve proposes", tooltip: "It can be changed in the dialog.", type: "number", attrs: { min: 1, max: 65535 }, defaultValue: 3000 },
      { id: "CPack.Serve.Listen", category: ["CPack", "Serve", "Listen"], name: "Who may connect, as Serve proposes it", type: "combo", options: [{ value: "loopback", text: "This computer only" }, { value: "network", text: "Everyone in the network" }], defaultValue: "loopback" },
      { id: "CPack.Image.Prefix", category: ["CPack", "Image", "Prefix"], name: "Registry and path that Build image proposes", tooltip: "Such as registry.example/team", type: "text", defaultValue: "" },
    ],
    get actionBarButtons() {
      return ["package", "serve", "image"].map((name) => ({ icon: ICONS[name], tooltip: t(`${name}.command`), onClick: () => ACTIONS[name]() }));
    },
  };
}

/** Puts the panel into the sidebar, where the frontend has one, and tells of jobs that end while nobody looks. */
export function settle(app) {
  let leave = null;
  app.extensionManager?.registerSidebarTab?.({
    id: "cpack", icon: "pi pi-box", title: "CPack", tooltip: t("panel.tooltip"), type: "custom",
    render: (host) => (leave?.(), (leave = panel(host, { commands: ACTIONS }))),
    destroy: () => (leave?.(), (leave = null)),
  });
  jobs.addEventListener("end", ({ detail: job }) => {
    if (jobs.isFollowed(job.id) || job.state === "cancelled") return;
    const failed = job.state === "failed";
    toast(failed ? "error" : "success", t(failed ? "panel.failed" : "panel.done", { title: job.title || t(`kind.${job.kind}`) }), job.error?.message ?? "");
  });
  // Older frontends tell of the change before they have made it.
  app.ui?.settings?.addEventListener?.("Comfy.Locale.change", (event) => void follow(event.detail?.value));
  // The frontend need not wait for this, and what fails is told where it matters: in the panel and the dialogs.
  jobs.connect().catch((error) => console.warn("cpack-build:", error.message));
}
