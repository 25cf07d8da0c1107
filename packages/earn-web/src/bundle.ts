/** The files of a bundle: fetched with progress, kept in the browser's cache, held to the sums in the manifest. */

export const GRAPH = "recommend.onnx";
export const ITEMS = "items.json";
const MANIFEST = "manifest.json";
const CACHE = "earn-web";

export class EarnError extends Error {
  override name = "EarnError";
}

interface FileEntry {
  bytes: number;
  sha256: string;
}

export interface Bundle {
  graph: Uint8Array;
  /** Weights that stand beside the graph, by the path that the graph gives them. */
  weights: { path: string; data: Uint8Array }[];
  itemIds: string[];
  titles: string[];
  maxHistory: number;
  /** Width of the graph's search: the most items that it returns. */
  beams: number;
  /** A history and the list that the graph must give for it; bundles of older versions have none. */
  example?: { history: number[]; items: number[] };
}

/** Bytes that are here, and bytes that there are. */
export type Progress = (loaded: number, total: number) => void;

/**
 * Fetches a bundle that `earn compose` completed.
 *
 * @param url the bundle's folder.
 * @throws EarnError a file is missing, cut short or changed, or the bundle has no one graph.
 */
export async function fetchBundle(url: string, onProgress: Progress = () => {}, useCache = true): Promise<Bundle> {
  const folder = url.endsWith("/") ? url : `${url}/`;
  const manifest = JSON.parse(new TextDecoder().decode(await download(folder + MANIFEST)));
  const files: Record<string, FileEntry> = manifest.files ?? {};
  if (!files[GRAPH] || !files[ITEMS]) {
    throw new EarnError(`${folder}: has no ${GRAPH}. Write it: earn compose BUNDLE`);
  }
  const data = Object.keys(files).filter((name) => name.endsWith(".data"));
  const wanted = [GRAPH, ITEMS, ...data];
  const total = wanted.reduce((sum, name) => sum + files[name]!.bytes, 0);
  let before = 0;
  const read = async (name: string): Promise<Uint8Array> => {
    const bytes = await fetchChecked(folder + name, files[name]!, useCache, (part) => onProgress(before + part, total));
    before += bytes.length;
    return bytes;
  };
  const graph = await read(GRAPH);
  const items = JSON.parse(new TextDecoder().decode(await read(ITEMS)));
  const weights = [];
  for (const path of data) weights.push({ path, data: await read(path) });
  return {
    graph,
    weights,
    itemIds: items.item_ids,
    titles: items.titles,
    maxHistory: manifest.limits.history,
    beams: items.beams,
    example: items.example,
  };
}

/** A file whose size and SHA-256 are the manifest's, from the cache where it is there. */
async function fetchChecked(
  url: string,
  entry: FileEntry,
  useCache: boolean,
  onProgress: (bytes: number) => void,
): Promise<Uint8Array> {
  const store = useCache && typeof caches !== "undefined" ? await caches.open(CACHE).catch(() => undefined) : undefined;
  const key = `${url}?sha256=${entry.sha256}`; // another version of the file is another entry
  const kept = await store?.match(key);
  if (kept) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    if (await isWhole(bytes, entry)) {
      onProgress(bytes.length);
      return bytes;
    }
    await store?.delete(key);
  }
  const bytes = await download(url, onProgress);
  if (!(await isWhole(bytes, entry))) {
    throw new EarnError(`${url}: is not the file that the manifest lists (${bytes.length} bytes). Deploy the bundle again.`);
  }
  await store?.put(key, new Response(bytes as BlobPart)).catch(() => {}); // a full disk is no reason to fail
  return bytes;
}

async function isWhole(bytes: Uint8Array, entry: FileEntry): Promise<boolean> {
  if (bytes.length !== entry.bytes) return false;
  if (!globalThis.crypto?.subtle) return true; // pages without https have none; the size has been checked
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as BufferSource));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === entry.sha256;
}

async function download(url: string, onProgress: (bytes: number) => void = () => {}): Promise<Uint8Array> {
  let response: Response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new EarnError(`${url}: cannot be fetched (${error}). Check the address and the network.`);
  }
  if (!response.ok || !response.body) {
    throw new EarnError(`${url}: the server says ${response.status}. Check the address of the bundle.`);
  }
  const parts: Uint8Array[] = [];
  let length = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
    onProgress(length);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
