// Bun alone, without a framework: its own WebSocket server, zod by hand, its own publish.
import { z } from "zod";

const raw = process.argv[2] === "raw";
const chat = z.strictObject({ roomId: z.string(), seq: z.number().int(), text: z.string() });
const meta = z.looseObject({ correlationId: z.string().optional() });
const Incoming = z.discriminatedUnion("type", [
  z.object({ type: z.literal("ECHO"), meta, payload: chat }),
  z.object({ type: z.literal("SAY"), meta, payload: chat }),
  z.object({ type: z.literal("JOIN"), meta, payload: z.strictObject({ roomId: z.string() }) }),
  z.object({ type: z.literal("GET_USER"), meta, payload: z.strictObject({ id: z.number().int() }) }),
]);

const now = () => ({ timestamp: Date.now() });
const handlers = {
  ECHO: (ws, { payload }) => ws.send(JSON.stringify({ type: "ECHOED", meta: now(), payload })),
  GET_USER: (ws, { meta, payload }) =>
    ws.send(
      JSON.stringify({
        type: "USER",
        meta: { ...now(), correlationId: meta.correlationId },
        payload: { id: payload.id, name: "Ada Lovelace", roles: ["admin", "author"] },
      }),
    ),
  JOIN: (ws, { payload }) => {
    ws.subscribe(payload.roomId);
    ws.send(JSON.stringify({ type: "JOINED", meta: now(), payload }));
  },
  SAY: (_, { payload }) => server.publish(payload.roomId, JSON.stringify({ type: "SAID", meta: now(), payload })),
};

function routed(ws, text) {
  const parsed = Incoming.safeParse(JSON.parse(text));
  if (parsed.success) handlers[parsed.data.type](ws, parsed.data);
  else ws.send(JSON.stringify({ type: "ERROR", meta: now(), payload: { code: "INVALID_ARGUMENT" } }));
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[3]),
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response("no", { status: 400 })),
  websocket: { message: raw ? (ws, text) => ws.send(text) : routed },
});
