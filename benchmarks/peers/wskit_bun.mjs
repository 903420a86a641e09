// ws-kit on Bun with zod, as its documents say: withZod, withPubSub over the memory adapter, createBunHandler.
// (Its other adapter, bunPubSub, delivers nothing: its subscribe does nothing.)
import { createBunHandler } from "@ws-kit/bun";
import { memoryPubSub } from "@ws-kit/memory";
import { withPubSub } from "@ws-kit/pubsub";
import { createRouter, message, rpc, withZod, z } from "@ws-kit/zod";

const chat = { roomId: z.string(), seq: z.number().int(), text: z.string() };
const Echo = message("ECHO", chat);
const Echoed = message("ECHOED", chat);
const Join = message("JOIN", { roomId: z.string() });
const Joined = message("JOINED", { roomId: z.string() });
const Say = message("SAY", chat);
const Said = message("SAID", chat);
const GetUser = rpc("GET_USER", { id: z.number().int() }, "USER", {
  id: z.number().int(),
  name: z.string(),
  roles: z.array(z.string()),
});

const router = createRouter()
  .plugin(withZod())
  .plugin(withPubSub({ adapter: memoryPubSub() }));
router.on(Echo, (ctx) => ctx.send(Echoed, ctx.payload));
router.rpc(GetUser, (ctx) => ctx.reply({ id: ctx.payload.id, name: "Ada Lovelace", roles: ["admin", "author"] }));
router.on(Join, async (ctx) => {
  await ctx.topics.subscribe(`room:${ctx.payload.roomId}`);
  ctx.send(Joined, ctx.payload);
});
router.on(Say, async (ctx) => {
  await ctx.publish(`room:${ctx.payload.roomId}`, Said, ctx.payload);
});
const { fetch, websocket } = createBunHandler(router);
Bun.serve({ hostname: "127.0.0.1", port: Number(process.argv[3]), fetch, websocket });
