// node lists.mjs BUNDLE HISTORIES.json [web|node]: the lists of these histories as JSON, from the package as it is built.
// HISTORIES.json: [["50", "172"], ...].

import { readFile } from "node:fs/promises";
import { load } from "../dist/index.js";
import { serve } from "./serve.mjs";

const [folder, file, runtime = "web"] = process.argv.slice(2);
const server = await serve(folder);
try {
  const options = runtime === "node" ? { runtime: await import("onnxruntime-node") } : {};
  let seen = 0;
  const earn = await load(server.url, {
    ...options,
    onProgress: (loaded, total) => (seen = loaded / total),
  });
  const histories = JSON.parse(await readFile(file, "utf8"));
  const lists = [];
  const milliseconds = [];
  for (const history of histories) {
    const start = performance.now();
    lists.push(await earn.recommend(history, { k: 10, excludeHistory: true }));
    milliseconds.push(performance.now() - start);
  }
  const refused = await earn.recommend(["no such item"]).then(() => "", (error) => error.message);
  const skipped = await earn.recommend(["no such item", ...histories[0]], { unknown: "skip", k: 3 });
  console.log(
    JSON.stringify({
      lists: lists.map((list) => list.map(({ id, title, score }) => [id, title, score])),
      median: milliseconds.sort((a, b) => a - b)[milliseconds.length >> 1],
      progress: seen,
      refused,
      skipped: skipped.map((item) => item.id),
    }),
  );
} finally {
  server.close();
}
