/** The fields of a request, by their names in lower case. No name is inherited. */
export type Fields = Readonly<Partial<Record<string, string>>>;

/** An object that V8 knows by its shape, unlike one without a prototype: the same fields are then found faster. */
export function noFields(): Record<string, string> {
  return Object.create(nothing);
}

const nothing = Object.create(null);

/** As Node does. `name` in lower case. False for a second one of a field that must be alone. */
export function addField(headers: Record<string, string>, name: string, value: string): boolean {
  const before = headers[name];
  if (before === undefined) headers[name] = value;
  else if (name === "cookie") headers[name] = `${before}; ${value}`;
  else if (single.has(name)) return before === value;
  else headers[name] = `${before}, ${value}`;
  return true;
}

const single: ReadonlySet<string> = new Set([
  "authorization",
  "content-length",
  "content-type",
  "host",
]);

/** The name of a field in lower case; undefined for what is none. */
export function toFieldName(text: string): string | undefined {
  const known = fieldNames.get(text);
  if (known !== undefined) return known;
  if (!isToken.test(text)) return undefined;
  const name = text.toLowerCase();
  if (fieldNames.size < fieldNamesMax && text.length <= fieldNameLengthMax)
    fieldNames.set(text, name);
  return name;
}

/** The first that were sent: those of the usual clients, if nobody hurries to be in their way. */
const fieldNames = new Map<string, string>();
const fieldNamesMax = 256;
const fieldNameLengthMax = 64;

/** Fields of a request, over any HTTP: what Node allows over HTTP/2. */
export const fieldsMax = 128;

export const isToken = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
/** No space and no control character; bytes beyond ASCII are for others to judge. */
export const isVisible = /^[\x21-\x7e\x80-\xff]*$/;
/** Of a Content-Length: what a number holds exactly. */
export const isLength = /^\d{1,15}$/;
