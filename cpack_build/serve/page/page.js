// The page for people: a form made from /interface.json, the stream of a run, its results, and the same call elsewhere.
// No build step, no library, no other host.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const base = new URL(".", location.href);
const fields = new Map(); // name → {schema, given(): value or undefined, problem: element}
let running = null;

const headers = () => ($("token").value ? { Authorization: `Bearer ${$("token").value}` } : {});

async function load() {
  $("token").value = sessionStorage.getItem("cpack-token") || "";
  $("token").addEventListener("change", () => {
    sessionStorage.setItem("cpack-token", $("token").value);
    load();
  });
  watch();
  const answer = await fetch(new URL("interface.json", base), { headers: headers() });
  if (answer.status === 401) {
    $("access").open = true;
    fail("This service wants its token.");
    return;
  }
  $("error").hidden = true;
  const schema = await answer.json();
  $("fields").replaceChildren();
  fields.clear();
  for (const [name, property] of Object.entries(schema.properties)) {
    $("fields").append(field(name, property, (schema.required || []).includes(name)));
  }
  tell();
}

async function watch() {
  clearTimeout(watch.timer);
  let ready = false;
  try {
    ready = (await fetch(new URL("readyz", base))).ok;
  } catch { /* the service is gone: not ready */ }
  $("state").textContent = ready ? "ready" : "not ready";
  $("state").classList.toggle("off", !ready);
  watch.timer = setTimeout(watch, ready ? 15000 : 2000);
}

function field(name, schema, required) {
  const problem = make("div", { className: "problem" });
  const id = `field-${name}`;
  const limits = [schema.minimum ?? "", schema.maximum ?? ""];
  const hint = [schema.title, schema.description, limits.join("") !== "" ? limits.join(" … ") : "", required ? "required" : ""]
    .filter(Boolean).join(" · ");
  const label = make("label", { htmlFor: id }, name, " ", make("span", { className: "hint", textContent: hint }));
  let input, given, place;
  if (schema.format === "binary") {
    let file = null;
    input = make("input", { type: "file", id });
    const shown = make("img", { alt: "", hidden: true });
    place = make("div", { className: "drop" }, input, make("span", { className: "hint", textContent: " or drop it here" }), shown);
    const take = (chosen) => {
      file = chosen || null;
      if (shown.src) URL.revokeObjectURL(shown.src);
      shown.hidden = !file || !file.type.startsWith("image/");
      if (!shown.hidden) shown.src = URL.createObjectURL(file);
      tell();
    };
    input.addEventListener("change", () => take(input.files[0]));
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      place.addEventListener(kind, (event) => {
        event.preventDefault();
        place.classList.toggle("over", kind === "dragenter" || kind === "dragover");
        if (kind === "drop" && event.dataTransfer.files.length) {
          input.files = event.dataTransfer.files;
          take(input.files[0]);
        }
      });
    }
    given = () => file || undefined;
  } else if (schema.enum) {
    input = make("select", { id }, ...schema.enum.map((value, at) => make("option", { value: at, textContent: value })));
    if (schema.default !== undefined) input.selectedIndex = Math.max(0, schema.enum.indexOf(schema.default));
    given = () => schema.enum[input.selectedIndex];
  } else if (schema.type === "boolean") {
    input = make("input", { type: "checkbox", id, checked: Boolean(schema.default) });
    given = () => input.checked;
  } else if (schema.type === "integer" || schema.type === "number") {
    input = make("input", { type: "number", id, step: schema.type === "integer" ? 1 : "any", value: schema.default ?? "" });
    if (schema.minimum !== undefined) input.min = schema.minimum;
    if (schema.maximum !== undefined) input.max = schema.maximum;
    // As text: a seed beyond 2**53 must not be rounded here.
    given = () => (input.value === "" ? undefined : input.value);
  } else {
    input = make("textarea", { id, value: typeof schema.default === "string" ? schema.default : schema.default === undefined ? "" : JSON.stringify(schema.default) });
    given = () => input.value;
  }
  input.name = name;
  input.addEventListener("input", tell);
  fields.set(name, { schema, given, problem, label: String(schema.default ?? "") });
  return make("div", { className: "field" }, label, place || input, problem);
}

function values() {
  const found = [];
  for (const [name, item] of fields) {
    const value = item.given();
    const isDefault = !(value instanceof File) && value !== undefined && String(value) === item.label;
    if (value !== undefined && !isDefault) found.push([name, value]);
  }
  return found;
}

function tell() {
  const quote = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
  const url = new URL("generate", base).href;
  const token = $("token").value ? ` -H 'Authorization: Bearer '"$CPACK_TOKEN"` : "";
  const parts = values().map(([name, value]) => value instanceof File
    ? ` \\\n  -F ${quote(`${name}=@${value.name}`)}` : ` \\\n  --form-string ${quote(`${name}=${value}`)}`);
  $("curl").textContent = `curl -OJ${token}${parts.length ? "" : " -X POST"} ${url}${parts.join("")}`;
  const python = values().map(([name, value]) => {
    const kind = fields.get(name).schema.type;
    const text = value instanceof File ? `Path(${JSON.stringify(value.name)})`
      : kind === "integer" || kind === "number" ? value : value === true ? "True" : value === false ? "False" : JSON.stringify(value);
    return `    ${JSON.stringify(name)}: ${text},\n`;
  });
  $("python").textContent = `from pathlib import Path\nfrom cpack_build import Client\n\nclient = Client(${JSON.stringify(base.href.replace(/\/$/, ""))}` +
    `${$("token").value ? ', token="…"' : ""})\nresult = client.generate({\n${python.join("")}})\nresult.save("results")\n`;
}

async function run(event) {
  event.preventDefault();
  if (running) return;
  for (const item of fields.values()) item.problem.textContent = "";
  $("error").hidden = true;
  $("results").replaceChildren();
  $("preview").hidden = true;
  $("bar").removeAttribute("value");
  $("doing").textContent = "Sending …";
  $("progress").hidden = false;
  $("run").disabled = true;
  $("cancel").hidden = false;
  running = new AbortController();
  const form = new FormData();
  // As a Blob, because FormData makes each line end of a text two characters.
  for (const [name, value] of values()) form.append(name, value instanceof File ? value : new Blob([value]));
  const empty = !values().length; // a form without any field would be no form
  try {
    const answer = await fetch(new URL("generate/stream", base), {
      method: "POST",
      headers: { ...headers(), ...(empty ? { "Content-Type": "application/json" } : {}) },
      body: empty ? "{}" : form,
      signal: running.signal,
    });
    if (!answer.ok) refused(await answer.json());
    else await follow(answer.body.getReader());
  } catch (error) {
    fail(error.name === "AbortError" ? "Cancelled." : `The service was lost: ${error.message}`);
  } finally {
    running = null;
    $("progress").hidden = true;
    $("run").disabled = false;
    $("cancel").hidden = true;
  }
}

async function follow(reader) {
  const decoder = new TextDecoder();
  let rest = "", ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (name && data) ended = (await happened(name[1], JSON.parse(data[1]))) || ended;
    }
  }
  if (!ended) fail("The stream ended without a result.");
}

async function happened(name, data) {
  if (name === "queued") $("doing").textContent = `Waiting, number ${data.position} in the queue`;
  else if (name === "started") $("doing").textContent = "Started";
  else if (name === "node") {
    $("doing").textContent = data.node.title;
    $("bar").max = data.nodes;
    $("bar").value = data.done;
    happened.node = data;
  } else if (name === "step") {
    $("doing").textContent = `${data.node.title}: step ${data.step} of ${data.steps}`;
    if (happened.node) $("bar").value = happened.node.done + data.step / data.steps;
  } else if (name === "preview") {
    $("preview").src = `data:${data.media_type};base64,${data.data}`;
    $("preview").hidden = false;
  } else if (name === "error") {
    refused(data);
    return true;
  } else if (name === "result") {
    for (const output of data.outputs) $("results").append(await result(output));
    return true;
  }
  return false;
}

async function result(output) {
  const answer = await fetch(new URL(output.url.slice(1), base), { headers: headers() });
  const blob = new Blob([await answer.arrayBuffer()], { type: output.media_type });
  const url = URL.createObjectURL(blob);
  const kind = output.media_type.split("/")[0];
  let shown = "";
  if (kind === "image" && output.media_type !== "image/svg+xml") shown = make("img", { src: url, alt: output.name });
  else if (kind === "video" || kind === "audio") shown = make(kind, { src: url, controls: true });
  else if (kind === "text" || output.media_type === "application/json") {
    shown = make("pre", { className: "output", textContent: (await blob.text()).slice(0, 20000) });
  }
  const link = make("a", { href: url, download: output.name, textContent: output.name });
  return make("figure", {}, shown, make("figcaption", {}, link, ` ${output.media_type}, ${output.size} bytes`));
}

function refused(answer) {
  const about = [];
  for (const detail of answer.detail || []) {
    const item = fields.get(detail.loc[0]);
    if (item) item.problem.textContent = detail.msg;
    else about.push(`${detail.loc.join(".")}: ${detail.msg}`);
  }
  for (const name of answer.parameters || []) {
    if (fields.has(name)) fields.get(name).problem.textContent = "the node that failed uses this";
  }
  fail([answer.error, answer.hint, ...about].filter(Boolean).join(" "));
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = false;
}

$("form").addEventListener("submit", run);
$("cancel").addEventListener("click", () => running && running.abort());
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault()); // not opened instead
load().catch((error) => fail(`The page could not be set up: ${error.message}`));
