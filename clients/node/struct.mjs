// google.protobuf.Struct, as proto-loader shows it, to and from plain objects.

export const toStruct = (object) => ({
  fields: Object.fromEntries(Object.entries(object).map(([name, value]) => [name, toValue(value)])),
});

export const fromStruct = ({ fields }) =>
  Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, fromValue(value)]));

function toValue(value) {
  if (value === null) return { nullValue: "NULL_VALUE" };
  if (typeof value === "number") return { numberValue: value };
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "boolean") return { boolValue: value };
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  if (typeof value === "object") return { structValue: toStruct(value) };
  throw new TypeError(`${typeof value} cannot travel as JSON`);
}

function fromValue(value) {
  if (value.kind === "structValue") return fromStruct(value.structValue);
  if (value.kind === "listValue") return value.listValue.values.map(fromValue);
  return value.kind === "nullValue" ? null : value[value.kind];
}
