// A bundle's folder over HTTP from this process, as an app would have it: { url, close }.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";

export async function serve(folder) {
  const server = createServer(async (request, response) => {
    response.setHeader("connection", "close"); // an idle connection that the server ends looks like a failed fetch
    try {
      response.end(await readFile(join(folder, normalize(decodeURIComponent(request.url)))));
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}
