// Node with ws: a route table and zod by hand, a room is a set of sockets.
import { WebSocketServer } from "ws";
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

const rooms = new Map();
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
    if (!rooms.has(payload.roomId)) rooms.set(payload.roomId, new Set());
    rooms.get(payload.roomId).add(ws);
    ws.on("close", () => rooms.get(payload.roomId).delete(ws));
    ws.send(JSON.stringify({ type: "JOINED", meta: now(), payload }));
  },
  SAY: (_, { payload }) => {
    const text = JSON.stringify({ type: "SAID", meta: now(), payload });
    for (const member of rooms.get(payload.roomId) ?? []) member.send(text);
  },
};

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[3]), perMessageDeflate: false });
server.on("connection", (ws) => {
  ws.on("error", () => {});
  ws.on("message", (data) => {
    if (raw) return ws.send(data, { binary: false });
    const parsed = Incoming.safeParse(JSON.parse(data.toString()));
    if (parsed.success) handlers[parsed.data.type](ws, parsed.data);
    else ws.send(JSON.stringify({ type: "ERROR", meta: now(), payload: { code: "INVALID_ARGUMENT" } }));
  });
});
