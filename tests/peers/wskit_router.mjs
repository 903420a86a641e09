// A ws-kit server's router, written as its documents say. Bun and Deno serve the same one; its timers are short.
import { memoryPubSub, memoryRateLimiter } from "@ws-kit/memory";
import { withPubSub } from "@ws-kit/pubsub";
import { rateLimit } from "@ws-kit/rate-limit";
import { createRouter, message, rpc, withZod, z } from "@ws-kit/zod";

const Hello = message("HELLO", { name: z.string() });
const Greeting = message("GREETING", { text: z.string() });
const Say = message("SAY", { room: z.string(), text: z.string() });
const Said = message("SAID", { room: z.string(), text: z.string() });
const CloseMe = message("CLOSE_ME", { code: z.number().int() });
const GetUser = rpc("GET_USER", { id: z.string() }, "USER", { name: z.string() });
const Count = rpc("COUNT", { to: z.number().int() }, "COUNTED", { n: z.number().int() });
const Limited = rpc("LIMITED", { key: z.string() }, "PASSED", { n: z.number().int() });
const Subscribe = rpc("SUBSCRIBE", { topic: z.string() }, "SUBSCRIBED", { topic: z.string() });
const Unsubscribe = rpc("UNSUBSCRIBE", { topic: z.string() }, "UNSUBSCRIBED", { topic: z.string() });
const Never = rpc("NEVER", undefined, "USER", { name: z.string() });

const limit = rateLimit({
  limiter: memoryRateLimiter({ capacity: 2, tokensPerSecond: 1 }),
  key: (ctx) => ctx.clientId,
  cost: (ctx) => (ctx.type === "LIMITED" ? 1 : 0),
});

export const router = createRouter()
  .plugin(withZod())
  .plugin(withPubSub({ adapter: memoryPubSub() }));
router.use(limit);
router.on(Hello, (ctx) => {
  ctx.send(Greeting, { text: `hello ${ctx.payload.name}` });
});
router.on(CloseMe, (ctx) => ctx.ws.close(ctx.payload.code, "as you wish"));
router.on(Say, async (ctx) => {
  await ctx.publish(`room:${ctx.payload.room}`, Said, ctx.payload);
});
router.rpc(GetUser, (ctx) => {
  if (ctx.payload.id === "none") return ctx.error("NOT_FOUND", "no such user", { id: "none" });
  if (ctx.payload.id === "busy") {
    return ctx.error("UNAVAILABLE", "busy", undefined, { retryable: true, retryAfterMs: 20 });
  }
  ctx.reply({ name: `user ${ctx.payload.id}` });
});
router.rpc(Count, async (ctx) => {
  for (let n = 1; n <= ctx.payload.to; n++) {
    await ctx.progress({ n });
    await new Promise((done) => setTimeout(done, 5));
  }
  await ctx.reply({ n: ctx.payload.to });
});
router.rpc(Limited, (ctx) => ctx.reply({ n: 1 }));
router.rpc(Never, () => {});
router.rpc(Subscribe, async (ctx) => {
  await ctx.topics.subscribe(ctx.payload.topic);
  ctx.reply(ctx.payload);
});
router.rpc(Unsubscribe, async (ctx) => {
  await ctx.topics.unsubscribe(ctx.payload.topic);
  ctx.reply(ctx.payload);
});

// What both hosts ask of who connects: "expired" is a token that is not taken, no token at all is one that is.
export const accepts = (url, headers) => {
  const offered = (headers.get("sec-websocket-protocol") ?? "").split(",").map((one) => one.trim());
  const tokens = [new URL(url).searchParams.get("access_token"), headers.get("authorization"), ...offered];
  return !tokens.some((token) => token?.includes("expired"));
};
