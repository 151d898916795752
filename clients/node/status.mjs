// What a lensd error says beyond its message: reason, field violations, when to try again.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const includeDirs = [".", "../../proto"].map((folder) => fileURLToPath(new URL(folder, import.meta.url)));
const types = protoLoader.loadSync(["google/rpc/status.proto", "error_details.proto"], {
  includeDirs,
  keepCase: true,
  longs: Number,
  defaults: true,
});

/** A gRPC error as text: code, reason, message, and a line for each field violation. */
export function explain(error) {
  const details = readDetails(error);
  const reason = details["google.rpc.ErrorInfo"]?.reason ?? "";
  const violations = details["google.rpc.BadRequest"]?.field_violations ?? [];
  const delay = details["google.rpc.RetryInfo"]?.retry_delay;
  return [
    `${grpc.status[error.code]} ${reason}: ${error.details}`,
    ...violations.map(({ field, description }) => `  ${field}: ${description}`),
    ...(delay ? [`  try again in ${delay.seconds + delay.nanos / 1e9} s`] : []),
  ].join("\n");
}

/** The details by message name; those of a type not in error_details.proto are left out. */
function readDetails(error) {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!packed) return {}; // made by gRPC itself: nobody answered, for example
  const found = types["google.rpc.Status"].deserialize(packed).details.map(({ type_url, value }) => {
    const name = type_url.split("/").pop();
    return [name, types[name]?.deserialize(value)];
  });
  return Object.fromEntries(found);
}
