// node lists.mjs BUNDLE HISTORIES.json [web|node]: the lists of these histories as JSON, from the package as it is built.
// HISTORIES.json: [["50", "172"], ...]. The bundle is served over HTTP from this process, as an app would have it.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";
import { load } from "../dist/index.js";

const [folder, file, runtime = "web"] = process.argv.slice(2);
const server = createServer(async (request, response) => {
  try {
    response.end(await readFile(join(folder, normalize(decodeURIComponent(request.url)))));
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
try {
  const options = runtime === "node" ? { runtime: await import("onnxruntime-node") } : {};
  let seen = 0;
  const earn = await load(`http://127.0.0.1:${server.address().port}/`, {
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
