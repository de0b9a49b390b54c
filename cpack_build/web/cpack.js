// What the browser loads of the plugin: the only file that registers an extension with ComfyUI's frontend.

import { app } from "../../scripts/app.js";

app.registerExtension({ name: "cpack" });
