/* Drafts on the page: pure functions over the JSON that `form_draft.py` describes and the controls of `form_schema.py`. */

/** A path as a key of elements. */
export function keyOf(path, role = "") {
  return `${JSON.stringify(path)}${role}`;
}

/** The node at a path, or undefined. */
export function draftAt(draft, path) {
  return path.reduce((node, step) => (node === null || node === undefined ? undefined : node[step]), draft);
}

/** `draft` with another node at `path`, the rest shared; `draft` itself where the path is not there. */
export function putAt(draft, path, node) {
  if (!path.length) return node;
  if (draft === null || typeof draft !== "object") return draft;
  const copy = Array.isArray(draft) ? [...draft] : { ...draft };
  copy[path[0]] = putAt(draft[path[0]], path.slice(1), node);
  return copy;
}

/** The draft with which a control begins that was chosen or added. */
export function blankDraft(control, classes) {
  switch (control.kind) {
    case "bool":
      return false;
    case "int":
    case "float":
      return control.start;
    case "str":
      return "";
    case "literal":
      return 0;
    case "tuple":
    case "sites":
      return [];
    case "union":
      return { at: 0, of: { 0: blankDraft(control.options[0], classes) } };
    case "value":
      return Object.fromEntries(classes[control.class].fields.map(({ name, default: found }) => [name, found]));
  }
  return null;
}

/** Whether two drafts of one control mean the same; what other options of a union hold does not matter. */
export function sameDraft(control, one, other, classes) {
  if (one === other) return true;
  if (one === null || other === null || one === undefined || other === undefined) return false;
  if (one.kept || other.kept) return one.kept === other.kept;
  switch (control.kind) {
    case "int":
    case "float":
      return sameNumber(one, other);
    case "union":
      return one.at === other.at && sameDraft(control.options[one.at], one.of[one.at], other.of[other.at], classes);
    case "value":
      return classes[control.class].fields.every((field) => sameDraft(field.control, one[field.name], other[field.name], classes));
    case "tuple":
      return one.length === other.length && one.every((item, at) => sameDraft(control.item, item, other[at], classes));
    case "sites":
      return one.length === other.length && one.every(([name, item], at) => name === other[at][0] && sameDraft(control.item, item, other[at][1], classes));
  }
  return false;
}

function sameNumber(one, other) {
  const short = one.length < 16 && other.length < 16 && one.trim() && other.trim();
  return one.trim() === other.trim() || Boolean(short && Number(one) === Number(other));
}

/** What is wrong with a leaf, as the kernel will say it, or "": ranges and numbers at once, the rest is the kernel's to judge. */
export function wrongDraft(control, node) {
  if (node === null && control.kind !== "none") return `missing, expected ${control.expected}`;
  if (control.kind !== "int" && control.kind !== "float") return "";
  const text = node.trim().replace(/(?<=\d)_(?=\d)/g, "");
  const wrong = `expected ${control.expected}, got ${/^[+-]?[\d.]/.test(text) && !Number.isNaN(Number(text)) ? text : JSON.stringify(node)}`;
  if (/^[+-]?(inf(inity)?|nan)$/i.test(text)) return control.kind === "int" ? wrong : "";
  const number = Number(text);
  if (!text || Number.isNaN(number) || /^0[xbo]/i.test(text) || (control.kind === "int" && !Number.isInteger(number))) return wrong;
  const low = control.low === null || (control.exclusive ? number > control.low : number >= control.low);
  return low && (control.high === null || number <= control.high) ? "" : wrong;
}

/** A number one step up or down: a whole one by `by`, another in its last written digit. */
export function stepped(control, text, by) {
  const number = Number(text);
  if (!text.trim() || !Number.isFinite(number)) return text;
  let next = control.kind === "int" ? number + by : number;
  if (control.kind === "float") {
    const [mantissa, exponent = "0"] = text.trim().toLowerCase().split("e");
    const digits = (mantissa.split(".")[1] ?? "").length;
    next = Number(`${(Number(mantissa) + by * 10 ** -digits).toFixed(digits)}e${exponent}`);
  }
  const low = control.low === null ? -Infinity : control.low;
  if (next < low || (control.exclusive && next <= low) || (control.high !== null && next > control.high)) return text;
  return String(next);
}

/** [field, value, default where it differs] of every leaf, as texts. */
export function draftRows(control, node, standard, name, classes) {
  const said = (other) => (other === undefined ? "–" : leafText(control, other, classes));
  const mark = standard !== undefined && sameDraft(control, node, standard, classes) ? "" : said(standard);
  if (node !== null && node !== undefined && !node.kept) {
    if (control.kind === "union") {
      const before = standard?.at === node.at ? standard.of[node.at] : undefined;
      const rows = draftRows(control.options[node.at], node.of[node.at], before, name, classes);
      return before === undefined && rows.length ? [[rows[0][0], rows[0][1], mark], ...rows.slice(1)] : rows;
    }
    if (control.kind === "value") {
      const inner = classes[control.class].fields.flatMap((field) =>
        draftRows(field.control, node[field.name], field.required ? undefined : field.default, name ? `${name}.${field.name}` : field.name, classes),
      );
      return name ? [[name, control.label, standard === undefined ? "–" : ""], ...inner] : inner;
    }
    if (control.kind === "tuple" && node.length) return node.flatMap((item, at) => draftRows(control.item, item, undefined, `${name}[${at}]`, classes));
    if (control.kind === "sites" && node.length) return node.flatMap(([pattern, item]) => draftRows(control.item, item, undefined, `${name}[${JSON.stringify(pattern)}]`, classes));
  }
  return [[name, leafText(control, node, classes), mark]];
}

/** A draft in a few words. */
export function leafText(control, node, classes) {
  if (node === null || node === undefined) return control.kind === "none" ? "None" : "missing";
  if (node.kept) return node.about;
  switch (control.kind) {
    case "union":
      return leafText(control.options[node.at], node.of[node.at], classes);
    case "literal":
      return control.choices[node];
    case "bool":
      return node ? "True" : "False";
    case "str":
      return JSON.stringify(node);
    case "value":
      return control.label;
    case "tuple":
    case "sites":
      return node.length ? `${node.length} ${node.length === 1 ? "item" : "items"}` : "none";
  }
  return String(node);
}
