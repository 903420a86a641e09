// A ws-kit server on Bun that shares its topics over Redis: `bun wskit_redis.mjs REDIS_PORT [CHANNEL_PREFIX]`.
// @ws-kit/redis is not on npm's registry, so the adapter is written here, to what that package does on the wire
// (tests/data/redis/120-redis-pubsub.json): PUBLISH prefix+topic with the envelope as JSON, one PSUBSCRIBE prefix*, and
// delivery only of what the broker gives back. Everything else is ws-kit's own.
import { createBunHandler } from "@ws-kit/bun";
import { memoryPubSub } from "@ws-kit/memory";
import { withPubSub } from "@ws-kit/pubsub";
import { createRouter, message, rpc, withZod, z } from "@ws-kit/zod";

const [port, prefix = ""] = process.argv.slice(2);

// As much of RESP2 as pub/sub needs. `onPush` gets each array that comes.
const dial = async (onPush) => {
  let data = Buffer.alloc(0);
  const line = (at) => {
    const end = data.indexOf("\r\n", at);
    return end < 0 ? undefined : [data.toString("utf8", at + 1, end), end + 2];
  };
  const parse = (at) => {
    const head = line(at);
    if (!head) return undefined;
    const [text, next] = head;
    const kind = String.fromCharCode(data[at]);
    if (kind === "$") {
      const end = next + Number(text);
      return data.length < end + 2 ? undefined : [data.toString("utf8", next, end), end + 2];
    }
    if (kind !== "*") return [kind === ":" ? Number(text) : text, next];
    const items = [];
    let here = next;
    for (let n = Number(text); n > 0; n--) {
      const item = parse(here);
      if (!item) return undefined;
      items.push(item[0]);
      here = item[1];
    }
    return [items, here];
  };
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port: Number(port),
    socket: {
      data(_, chunk) {
        data = Buffer.concat([data, chunk]);
        for (let came = parse(0); came; came = parse(0)) {
          data = data.subarray(came[1]);
          if (Array.isArray(came[0])) onPush(came[0]);
        }
      },
    },
  });
  return (...words) =>
    socket.write(`*${words.length}\r\n${words.map((w) => `$${Buffer.byteLength(w)}\r\n${w}\r\n`).join("")}`);
};

const publish = await dial(() => {});
const local = memoryPubSub();
const adapter = {
  ...local,
  async publish(envelope) {
    publish("PUBLISH", prefix + envelope.topic, JSON.stringify(envelope));
    return { ok: true, capability: "unknown" };
  },
  async start(onRemote) {
    const { promise, resolve } = Promise.withResolvers();
    const subscribe = await dial((push) => {
      if (push[0] === "psubscribe") resolve();
      if (push[0] === "pmessage") onRemote(JSON.parse(push[3]));
    });
    subscribe("PSUBSCRIBE", `${prefix}*`);
    await promise;
    return () => {};
  },
};

const Sub = rpc("SUB", { topic: z.string() }, "DONE", { ok: z.boolean() });
const Pub = rpc("PUB", { topic: z.string(), text: z.string(), excludeSelf: z.boolean() }, "DONE", { ok: z.boolean() });
const News = message("NEWS", { text: z.string() }, { tag: z.string().optional() });

const router = createRouter()
  .plugin(withZod())
  .plugin(withPubSub({ adapter }));
router.rpc(Sub, async (ctx) => {
  await ctx.topics.subscribe(ctx.payload.topic);
  ctx.reply({ ok: true });
});
router.rpc(Pub, async (ctx) => {
  const { topic, text, excludeSelf } = ctx.payload;
  const result = await ctx.publish(topic, News, { text }, { excludeSelf, meta: { tag: "t" } });
  ctx.reply({ ok: result.ok });
});
await router.pubsub.init();

const { fetch, websocket } = createBunHandler(router, { authenticate: () => ({}) });
const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch, websocket });
console.log(`listening on ${server.port}`);
