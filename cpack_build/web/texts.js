/**
 * The words of the dialogs, in the language that ComfyUI's settings name (Comfy.Locale): `locales/en.json` always, another
 * over it where there is one. Numbers and sizes are written as that language writes them.
 */

import { app } from "../../scripts/app.js";

const OTHERS = ["zh"];
let words = {};
let english = {};
let language = "en";

function set() {
  const settings = app.extensionManager?.setting;
  return settings?.get?.("Comfy.Locale") ?? app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
}

function known(locale) {
  const short = String(locale).toLowerCase().split(/[-_]/)[0];
  return OTHERS.includes(short) ? short : "en";
}

async function read(name) {
  const answer = await fetch(new URL(`./locales/${name}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`the texts ${name}.json of cpack-build could not be read: HTTP ${answer.status}`);
  return answer.json();
}

/** Makes t() speak *locale*, by default the one that is set now; quick when it already does. */
export async function follow(locale = set()) {
  if (!Object.keys(english).length) english = await read("en");
  const next = known(locale);
  if (next !== language || !Object.keys(words).length) {
    words = next === "en" ? english : { ...english, ...(await read(next)) };
    language = next;
  }
}

/** The text *key*, with {names} filled in; a number called `count` chooses between `key.one` and `key.other`. */
export function t(key, values = {}) {
  let text = words[key];
  if ("count" in values) text = words[`${key}.${new Intl.PluralRules(language).select(values.count)}`] ?? words[`${key}.other`] ?? text;
  if (text === undefined) return key;
  return text.replace(/\{(\w+)\}/g, (all, name) => {
    const value = values[name];
    if (value === undefined) return all;
    return typeof value === "number" ? value.toLocaleString(language) : String(value);
  });
}

/** The text *key*, or *otherwise* where the language has none: for words whose list is the server's. */
export function named(key, otherwise) {
  return words[key] === undefined ? otherwise : t(key);
}

/** *size* in bytes, in words of three digits at most: "6.9 GB". */
export function bytes(size) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  let value = Number(size) || 0;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  return new Intl.NumberFormat(language, { style: "unit", unit: units[unit], unitDisplay: unit ? "short" : "long", maximumFractionDigits: digits }).format(value);
}

/** How long *seconds* are, roughly: "12 s", "3 min". */
export function duration(seconds) {
  const [value, unit] = seconds < 90 ? [seconds, "second"] : seconds < 5400 ? [seconds / 60, "minute"] : [seconds / 3600, "hour"];
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 0 }).format(Math.max(0, value));
}

/** The time of day of *stamp*, in seconds since 1970. */
export function clock(stamp) {
  return new Date(stamp * 1000).toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit" });
}
