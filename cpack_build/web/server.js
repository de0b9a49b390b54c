/**
 * The plugin's own routes: one function that asks, one exception that says what was wrong and what to do next. Every
 * request goes to the server that this page came from, with the header that no foreign page can send.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { t } from "./texts.js";

/** What the server refused: *message* says what happened, *next* what to do. */
export class Refusal extends Error {
  constructor({ code, message, next }) {
    super(message || code);
    this.code = code;
    this.next = next;
  }
}

async function answered(path, options) {
  let answer;
  try {
    answer = await api.fetchApi(`/cpack${path}`, { ...options, headers: { "X-CPack": "1", ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ code: "unreachable", message: t("error.unreachable"), next: t("error.unreachable.next") });
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Refusal(
    told?.error ?? { code: `http-${answer.status}`, message: t("error.http", { path: `/cpack${path}`, status: String(answer.status) }), next: t("error.http.next") },
  );
}

/** The JSON that `/cpack` + *path* answers; with *body*, posted. */
export async function ask(path, { body, signal } = {}) {
  const options = body === undefined
    ? { signal }
    : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
  return (await answered(path, options)).json();
}

/** The text (a log) that `/cpack` + *path* answers. */
export async function text(path, { signal } = {}) {
  return (await answered(path, { signal })).text();
}

/** Sends *file*; *progress* is called with the bytes sent and all of them. fetch() cannot tell them, so this is a request of the older kind. */
export function upload(file, { progress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const unreachable = () => reject(new Refusal({ code: "unreachable", message: t("error.unreachable"), next: t("error.unreachable.next") }));
    request.open("POST", api.apiURL("/cpack/uploads"));
    request.setRequestHeader("X-CPack", "1");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => progress(event.loaded, event.total));
    request.addEventListener("error", unreachable);
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(request.response);
      else if (request.response?.error) reject(new Refusal(request.response.error));
      else reject(new Refusal({ code: `http-${request.status}`, message: t("error.http", { path: "/cpack/uploads", status: String(request.status) }), next: t("error.http.next") }));
    });
    signal?.addEventListener("abort", () => request.abort());
    const form = new FormData();
    form.append("file", file, file.name);
    request.send(form);
  });
}

/** Where a browser gets what job *id* made. */
export function downloadURL(id) {
  return api.apiURL(`/cpack/jobs/${encodeURIComponent(id)}/download`);
}

/** The workflow that is open: as the API takes it (`prompt`) and as the editor saves it (`workflow`). */
export async function openWorkflow() {
  const { output, workflow } = await app.graphToPrompt();
  return { prompt: output, workflow };
}

/** The name of the open workflow, as a file could be called; "workflow" when it has none yet. */
export function workflowName() {
  const active = app.extensionManager?.workflow?.activeWorkflow;
  const name = String(active?.filename ?? active?.name ?? "").replace(/\.json$/, "");
  return name.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 80) || "workflow";
}
