// Study files: what a study is made of, as TOML.

const FIELDS = ["name", "directions", "search_space", "sampler", "pruner", "limits", "lease_seconds", "narrowing", "objective", "metadata"];

/** The body with which this study could be created again; what later versions have added comes along. */
export function bodyOf(study, ofService) {
  const body = {};
  for (const field of [...FIELDS, ...ofService]) if (study[field] !== undefined && study[field] !== null) body[field] = structuredClone(study[field]);
  body.search_space = Object.fromEntries(Object.entries(body.search_space).map(([name, parameter]) => [name, withoutDefaults(parameter)]));
  body.limits = withoutNulls(body.limits);
  if (!Object.keys(body.metadata ?? {}).length) delete body.metadata;
  if (body.pruner?.name === "none") delete body.pruner;
  if (body.define_by_run === false) delete body.define_by_run;
  if (!Object.keys(body.requires ?? {}).length) delete body.requires;
  return body;
}

function withoutNulls(table) {
  return Object.fromEntries(Object.entries(table ?? {}).filter(([, value]) => value !== null));
}

function withoutDefaults(parameter) {
  const { type, ...rest } = withoutNulls(parameter);
  for (const flag of ["log", "ordered"]) if (rest[flag] === false) delete rest[flag];
  return { type, ...rest };
}

/** A study whose only configuration is this one. */
export function fixedTo(study, params, ofService) {
  const body = bodyOf(study, ofService);
  body.name = named(study.name, "best");
  body.search_space = Object.fromEntries(Object.entries(body.search_space).filter(([name]) => name in params).map(([name, parameter]) => [name, fixed(parameter, params[name])]));
  body.sampler = { name: "random" };
  body.limits = { trials: 1 };
  delete body.narrowing;
  delete body.pruner;
  delete body.define_by_run;
  return body;
}

function fixed(parameter, value) {
  if (parameter.type === "categorical") return { type: "categorical", choices: [value] };
  return { type: parameter.type, low: value, high: value };
}

/** The study with what an advice suggests: for a parameter, the limits or the pruner. */
export function suggested(study, suggestion, ofService) {
  const body = bodyOf(study, ofService);
  body.name = named(study.name, "next");
  const { parameter, limits, pruner, ...changes } = suggestion;
  if (parameter && body.search_space[parameter]) Object.assign(body.search_space[parameter], changes);
  if (limits) body.limits = { ...body.limits, ...limits };
  if (pruner) body.pruner = pruner;
  return body;
}

function named(name, ending) {
  return `${name.slice(0, 62 - ending.length).replace(/[-_]+$/, "")}-${ending}`;
}

/** The body as TOML: plain values first, then a table for each object, one line a parameter. */
export function toml(body) {
  const plain = [];
  const tables = [];
  for (const [name, value] of Object.entries(body)) {
    if (isTable(value)) tables.push(`\n[${word(name)}]`, ...Object.entries(value).filter(([, member]) => member !== null).map(([member, its]) => `${word(member)} = ${written(its)}`));
    else plain.push(`${word(name)} = ${written(value)}`);
  }
  return `${[...plain, ...tables].join("\n")}\n`;
}

function isTable(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function word(name) {
  return /^[A-Za-z0-9_-]+$/.test(name) ? name : text(name);
}

function text(value) {
  return JSON.stringify(value).replace(/\u007f/g, "\\u007f");
}

function written(value) {
  if (typeof value === "string") return text(value);
  if (Array.isArray(value)) return `[${value.map(written).join(", ")}]`;
  if (isTable(value)) return `{ ${Object.entries(value).filter(([, member]) => member !== null).map(([name, member]) => `${word(name)} = ${written(member)}`).join(", ")} }`;
  return String(value);
}

/** Whether TOML has all of it: it knows no null. */
export function fitsToml(value) {
  if (Array.isArray(value)) return value.every((member) => member !== null && fitsToml(member));
  return !isTable(value) || Object.values(value).every(fitsToml);
}
