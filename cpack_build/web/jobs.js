/**
 * The jobs that this server runs or ran for any page. The WebSocket, which is open to other pages, too, tells only that one
 * changed; the routes tell what it is. A page that is reloaded asks for all and is where it was; one that lost its connection
 * asks again.
 */

import { api } from "../../scripts/api.js";
import { ask } from "./server.js";

const ENDED = new Set(["done", "failed", "cancelled"]);

/** Whether nothing more will happen to *job*. */
export const ended = (job) => ENDED.has(job.state);

// Some proxies drop WebSocket messages; who looks at a job asks for it as often as this (milliseconds).
const ASK_EVERY = 4000;
// Between two questions about one job (milliseconds), however often it changes.
const PAUSE = 250;

class Jobs extends EventTarget {
  #known = new Map();
  #followed = new Map();
  #asking = new Map();

  /** Listens to the server from now on; called once. */
  connect() {
    api.addEventListener("cpack.job", (event) => void this.#hear(event.detail.id));
    api.addEventListener("reconnected", () => void this.refresh());
    return this.refresh();
  }

  async refresh() {
    const { jobs } = await ask("/jobs");
    const kept = new Set(jobs.map((job) => job.id));
    for (const id of this.#known.keys()) if (!kept.has(id)) this.#known.delete(id);
    for (const job of jobs) this.#known.set(job.id, job);
    this.dispatchEvent(new Event("change"));
  }

  /** Job *id* changed: what it is now is asked, once at a time and again if more was heard meanwhile. */
  async #hear(id) {
    const waits = this.#asking.has(id);
    this.#asking.set(id, waits);
    if (waits) return;
    await this.#read(id);
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    const more = this.#asking.get(id);
    this.#asking.delete(id);
    if (more) void this.#hear(id);
  }

  /** Asks for job *id*. What goes wrong is told by the page's own connection; the next change asks again. */
  async #read(id, { signal } = {}) {
    await ask(`/jobs/${encodeURIComponent(id)}`, { signal }).then((answer) => this.#take(answer.job), () => {});
  }

  #take(job) {
    const before = this.#known.get(job.id);
    if (before && ended(before) && !ended(job)) return; // a late message of a connection that hung
    this.#known.set(job.id, job);
    this.dispatchEvent(new Event("change"));
    if (ended(job) && !(before && ended(before))) this.dispatchEvent(new CustomEvent("end", { detail: job }));
  }

  /** All of them, the newest first. */
  all() {
    return [...this.#known.values()].sort((one, other) => (other.started ?? Infinity) - (one.started ?? Infinity));
  }

  get(id) {
    return this.#known.get(id);
  }

  /** The one of *kind* that is at work, if any. */
  running(kind) {
    return this.all().find((job) => job.kind === kind && !ended(job));
  }

  async start(kind, params) {
    const { job } = await ask("/jobs", { body: { kind, params, client_id: api.clientId } });
    if (!this.#known.has(job.id)) this.#take(job);
    return this.#known.get(job.id);
  }

  async cancel(id) {
    await ask(`/jobs/${encodeURIComponent(id)}/cancel`, { body: {} });
  }

  /** Whether a dialog shows job *id*, and so its end. */
  isFollowed(id) {
    return this.#followed.get(id) > 0;
  }

  /** Calls *seen* with job *id* now and at each change until it ended or *signal* says so. */
  follow(id, seen, { signal }) {
    this.#followed.set(id, (this.#followed.get(id) ?? 0) + 1);
    signal.addEventListener("abort", () => this.#followed.set(id, this.#followed.get(id) - 1));
    let last = null;
    const look = () => {
      const job = this.get(id);
      if (!job || job === last || signal.aborted) return;
      last = job;
      seen(job);
    };
    this.addEventListener("change", look, { signal });
    const timer = setInterval(async () => {
      const job = this.get(id);
      if (!job || ended(job)) return;
      await this.#read(id, { signal });
    }, ASK_EVERY);
    signal.addEventListener("abort", () => clearInterval(timer));
    look();
  }
}

export const jobs = new Jobs();
