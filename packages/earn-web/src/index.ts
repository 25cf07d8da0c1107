/**
 * EARN recommenders in the browser and in Node.
 *
 *     const earn = await load("/movies-bundle");
 *     const items = await earn.recommend(["50", "172"], { k: 10, excludeHistory: true });
 *
 * The bundle is one that `earn compose` completed, of either method: beams or all codes at once. The whole search runs
 * inside its graph, in one call of ONNX Runtime.
 */

import * as web from "onnxruntime-web";
import { type Bundle, EarnError, fetchBundle, type Progress } from "./bundle.js";

export { EarnError, type Progress } from "./bundle.js";

/** What this package uses of ONNX Runtime; `onnxruntime-node` has the same. */
export type Runtime = Pick<typeof web, "InferenceSession" | "Tensor" | "env">;

export interface LoadOptions {
  /** Called while files arrive. */
  onProgress?: Progress;
  /** Keep files in the browser's cache (default: true). */
  cache?: boolean;
  /** Compute in a worker, so that the page never waits (default: true in a browser). */
  worker?: boolean;
  /** Threads; more than one needs a page that is isolated across origins (default: ONNX Runtime's choice). */
  threads?: number;
  /** Another build of ONNX Runtime, such as onnxruntime-node. */
  runtime?: Runtime;
  /**
   * Compute by WebGPU where it gives the bundle's example list, else on the CPU; `Earn.refused` says why (default: false).
   * Needs the build of ONNX Runtime that has it: `runtime: await import("onnxruntime-web/webgpu")`.
   */
  webgpu?: boolean;
}

export interface RecommendOptions {
  /** Items to return (default: 10). */
  k?: number;
  /** Item ids that must not come back. */
  exclude?: readonly string[];
  /** The history's items must not come back (default: false). */
  excludeHistory?: boolean;
  /** What to do with ids that the catalog lacks (default: "error"). */
  unknown?: "error" | "skip";
}

export interface Recommendation {
  id: string;
  title: string;
  /** Log-probability of the item's identifier; where all codes are named at once, the sum of their log-probabilities. */
  score: number;
}

export interface Recommendations extends Array<Recommendation> {
  /** Whether these are certainly the best items of the whole catalog. */
  exact?: boolean;
}

/**
 * Loads a bundle.
 *
 * @param url the bundle's folder, with manifest.json in it.
 * @throws EarnError a file is missing or changed, or ONNX Runtime cannot load the graph.
 */
export async function load(url: string, options: LoadOptions = {}): Promise<Earn> {
  const bundle = await fetchBundle(url, options.onProgress, options.cache ?? true);
  const runtime = options.runtime ?? web;
  if (!options.runtime) {
    web.env.wasm.proxy = options.worker ?? typeof document !== "undefined";
    if (options.threads !== undefined) web.env.wasm.numThreads = options.threads;
  }
  const open = async (provider: string, refused = ""): Promise<Earn> => {
    const session = await runtime.InferenceSession.create(bundle.graph, {
      executionProviders: [provider],
      externalData: bundle.weights,
    });
    return new Earn(runtime, session, bundle, provider, refused);
  };
  let refused = "";
  if (options.webgpu) {
    try {
      const earn = await open("webgpu");
      refused = await earn.check();
      if (!refused) return earn;
    } catch (error) {
      refused = `WebGPU fails: ${error}`;
    }
  }
  try {
    return await open(options.runtime ? "cpu" : "wasm", refused);
  } catch (error) {
    throw new EarnError(`${url}: ONNX Runtime cannot load the graph (${error}). Write it again: earn compose BUNDLE`);
  }
}

/** A bundle that is ready to answer. */
export class Earn {
  readonly #runtime: Runtime;
  readonly #session: web.InferenceSession;
  readonly #bundle: Bundle;
  readonly #index: Map<string, number>;

  /**
   * Use `load`.
   *
   * @param provider what computes: "webgpu", "wasm" or "cpu".
   * @param refused why WebGPU, which was asked for, is not used; else "".
   */
  constructor(
    runtime: Runtime,
    session: web.InferenceSession,
    bundle: Bundle,
    readonly provider: string,
    readonly refused: string,
  ) {
    this.#runtime = runtime;
    this.#session = session;
    this.#bundle = bundle;
    this.#index = new Map(bundle.itemIds.map((id, index) => [id, index]));
  }

  /** The catalog's items. */
  get items(): readonly { id: string; title: string }[] {
    return this.#bundle.itemIds.map((id, index) => ({ id, title: this.#bundle.titles[index] ?? "" }));
  }

  /** Why this provider's lists cannot be trusted: the bundle's example gives another list, or there is none; else "". */
  async check(): Promise<string> {
    const { example, itemIds } = this.#bundle;
    if (!example) return "the bundle has no example list to check. Write it again: earn compose BUNDLE";
    const ids = (items: readonly number[]): string[] => items.map((item) => itemIds[item]!);
    const list = await this.recommend(ids(example.history), { k: example.items.length });
    const [got, want] = [list.map((item) => item.id).join(" "), ids(example.items).join(" ")];
    return got === want ? "" : `${this.provider} gives ${got} where the bundle's example list is ${want}`;
  }

  /** The title of an item, "" where it has none or is not in the catalog. */
  title(id: string): string {
    return this.#bundle.titles[this.#index.get(id) ?? -1] ?? "";
  }

  /**
   * The best next items for a history, best first; fewer than k only if the catalog has no more.
   *
   * @param history item ids, oldest first.
   * @throws EarnError an unknown item, an empty history, or a k out of range.
   */
  async recommend(history: readonly string[], options: RecommendOptions = {}): Promise<Recommendations> {
    const { k = 10, exclude = [], excludeHistory = false, unknown = "error" } = options;
    if (!Number.isInteger(k) || k < 1 || k > this.#bundle.beams) {
      throw new EarnError(`k is ${k}. This graph returns 1 to ${this.#bundle.beams} items. For more: earn export --max-beams`);
    }
    const known = this.#indices(history, unknown).slice(-this.#bundle.maxHistory);
    if (known.length === 0) throw new EarnError("The history has no known item. Give at least one item of the catalog.");
    const excluded = this.#indices(excludeHistory ? [...exclude, ...history] : exclude, unknown);
    const { items, scores, count, exact, status } = await this.#session.run({
      history: this.#row(known),
      excluded: this.#row(excluded),
      k: new this.#runtime.Tensor("int64", BigInt64Array.of(BigInt(k)), [1]),
    });
    if ((status!.data as BigInt64Array)[0] !== 0n) {
      throw new EarnError("The graph gives what is no number: its weights are damaged. Deploy the bundle again.");
    }
    const found = Number((count!.data as BigInt64Array)[0]);
    const list: Recommendations = Array.from((items!.data as BigInt64Array).slice(0, found), (item, place) => ({
      id: this.#bundle.itemIds[Number(item)]!,
      title: this.#bundle.titles[Number(item)]!,
      score: (scores!.data as Float32Array)[place]!,
    }));
    list.exact = Boolean((exact!.data as Uint8Array)[0]);
    return list;
  }

  #row(indices: readonly number[]): web.Tensor {
    return new this.#runtime.Tensor("int64", BigInt64Array.from(indices, BigInt), [1, indices.length]);
  }

  #indices(ids: readonly string[], unknown: "error" | "skip"): number[] {
    const indices: number[] = [];
    for (const id of ids) {
      const index = this.#index.get(String(id));
      if (index !== undefined) indices.push(index);
      else if (unknown === "error") {
        throw new EarnError(`The catalog has no item "${id}". Check the id, or skip it: unknown: "skip".`);
      }
    }
    return indices;
  }
}
