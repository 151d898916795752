// Which parts of the model write the answer? One analysis of lensd from Node.js.
// usage: node attribute.mjs [PROMPT] [HOST:PORT]
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { explain } from "./status.mjs";
import { fromStruct, toStruct } from "./struct.mjs";

const [prompt = "The capital of France is", target = process.env.LENSD_TARGET ?? "127.0.0.1:50051"] =
  process.argv.slice(2);

const includeDirs = [fileURLToPath(new URL("../../proto", import.meta.url))];
const options = { includeDirs, keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const { lensd } = grpc.loadPackageDefinition(protoLoader.loadSync("lensd/v1/analysis.proto", options));
const client = new lensd.v1.AnalysisService(target, grpc.credentials.createInsecure());

const call = client.Analyze({ analyzer: "dla", params: toStruct({ prompt, unit: "component" }) });
const rows = [];
let isCompleted = false;
let hasFailed = false;

call.on("data", ({ event, ...response }) => {
  if (event === "completed") isCompleted = true;
  if (event === "warning") console.error(`warning ${response.warning.reason}: ${response.warning.message}`);
  if (event !== "result") return;
  const result = response.result;
  if (result.value === "table" && result.name === "contributions") rows.push(...tableRows(result.table));
  if (result.value === "record") {
    const { target, logit, completeness_error } = fromStruct(result.record);
    console.log(`${prompt} → ${JSON.stringify(target)}, logit ${logit.toFixed(4)}`);
    console.log(`the contributions add up to it within ${completeness_error.toExponential(1)}`);
  }
});
call.on("error", (error) => {
  hasFailed = true;
  console.error(explain(error));
  process.exitCode = 1;
});
call.on("end", () => {
  if (hasFailed) return;
  // A stream that ends without `completed` is truncated, whatever has arrived.
  if (!isCompleted) {
    console.error("the stream ended early: the results are incomplete");
    process.exitCode = 1;
    return;
  }
  rows.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  for (const row of rows.slice(0, 8)) {
    console.log(`${row.value.toFixed(4).padStart(9)}  ${row.kind} ${row.layer ?? ""}`.trimEnd());
  }
});

/** Rows of a columnar table; null where a value is missing. */
function tableRows({ columns }) {
  const lists = columns.map((column) => [column.name, column[column.values].values, new Set(column.null_rows)]);
  return Array.from(lists[0]?.[1] ?? [], (_, i) =>
    Object.fromEntries(lists.map(([name, values, nulls]) => [name, nulls.has(i) ? null : values[i]])),
  );
}
