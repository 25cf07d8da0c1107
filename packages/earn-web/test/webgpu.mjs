// node webgpu.mjs BUNDLE: whether WebGPU is used where it is right, wrong or absent, as JSON. No GPU is needed: a stand-in
// for ONNX Runtime computes on the CPU, and either leaves the items as they are, turns them round, or has no WebGPU.

import * as web from "onnxruntime-web";
import { load } from "../dist/index.js";
import { serve } from "./serve.mjs";

const turned = (session) => ({
  run: async (feeds) => {
    const answers = await session.run(feeds);
    return { ...answers, items: { data: answers.items.data.toReversed() } };
  },
});
const absent = () => {
  throw new Error("no adapter");
};

const server = await serve(process.argv[2]);
try {
  const cases = {};
  for (const [name, gpu] of Object.entries({ right: (session) => session, wrong: turned, absent })) {
    const create = async (graph, { executionProviders: [provider], ...rest }) => {
      const session = await web.InferenceSession.create(graph, { executionProviders: ["wasm"], ...rest });
      return provider === "webgpu" ? gpu(session) : session;
    };
    const runtime = { Tensor: web.Tensor, env: web.env, InferenceSession: { create } };
    const { provider, refused } = await load(server.url, { runtime, webgpu: true });
    cases[name] = { provider, refused };
  }
  console.log(JSON.stringify(cases));
} finally {
  server.close();
}
