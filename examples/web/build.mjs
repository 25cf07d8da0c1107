// node build.mjs BUNDLE SITE: a folder that any web server can serve: the page, earn-web, ONNX Runtime and the bundle.
//
// BUNDLE is a folder that `earn compose` completed. earn-web must be built before: npm install && npm run build there.

import { cp, mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [bundle, site] = process.argv.slice(2);
if (!bundle || !site) throw new Error("Give a bundle and the folder to write: node build.mjs BUNDLE SITE");
const here = dirname(fileURLToPath(import.meta.url));
const web = join(here, "../../packages/earn-web");
const ort = join(web, "node_modules/onnxruntime-web/dist");

const manifest = JSON.parse(await readFile(join(bundle, "manifest.json"), "utf8"));
const deployed = ["recommend.onnx", "items.json", ...Object.keys(manifest.files).filter((name) => name.endsWith(".data"))];
const files = [
  ...["index.html", "page.mjs", "page.css"].map((name) => [join(here, name), name]),
  ...(await readdir(join(web, "dist"))).filter((name) => name.endsWith(".js")).map((name) => [join(web, "dist", name), `earn-web/${name}`]),
  ...["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"].map((name) => [join(ort, name), `ort/${name}`]),
  ...["manifest.json", ...deployed].map((name) => [join(bundle, name), `bundle/${name}`]),
];
for (const [from, to] of files) {
  await mkdir(dirname(join(site, to)), { recursive: true });
  await cp(from, join(site, to));
}
// The service worker keeps all of it, under a name that changes with the bundle.
const worker = await readFile(join(here, "worker.js"), "utf8");
const version = manifest.files["recommend.onnx"].sha256.slice(0, 16);
const kept = ["./", ...files.map(([, to]) => to)];
await writeFile(join(site, "worker.js"), worker.replace("VERSION", version).replace("FILES", JSON.stringify(kept)));
