/** What the browser loads of the plugin: the only file that registers an extension with ComfyUI's frontend. */

import { app } from "../../scripts/app.js";
import { offered, settle } from "./dialogs.js";
import { hooks } from "./nodes.js";
import { follow } from "./texts.js";

// The frontend asks for labels as soon as the extension is registered.
await follow();

app.registerExtension(Object.assign(offered(), hooks, { name: "cpack", setup: () => settle(app) }));
