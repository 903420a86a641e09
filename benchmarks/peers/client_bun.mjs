// Bun's WebSocket with zod: a promise for each request, with a time limit. (ws-kit's own client package is not on npm;
// this is what it does with a request.)
import { z } from "zod";

const [port, window, seconds] = process.argv.slice(2).map(Number);
const TIMEOUT = 30_000;
const Meta = z.object({ timestamp: z.number().optional(), correlationId: z.string().optional() });
const User = z.strictObject({
  type: z.literal("USER"),
  meta: Meta.strict(),
  payload: z.strictObject({ id: z.number(), name: z.string(), age: z.number() }),
});
const GetUser = z.object({ type: z.literal("GET_USER"), meta: z.any(), payload: z.object({ id: z.number() }) });
const waiting = new Map();
const link = new WebSocket(`ws://127.0.0.1:${port}/`);

link.onmessage = ({ data }) => {
  const envelope = JSON.parse(data);
  const found = waiting.get(envelope.meta?.correlationId);
  if (!found) return;
  waiting.delete(envelope.meta.correlationId);
  clearTimeout(found.timer);
  const reply = User.safeParse(envelope);
  if (reply.success) found.resolve(reply.data);
  else found.reject(new Error(reply.error.message));
};

const request = (payload) =>
  new Promise((resolve, reject) => {
    const id = crypto.randomUUID();
    const timer = setTimeout(() => reject(new Error("timeout")), TIMEOUT);
    waiting.set(id, { resolve, reject, timer });
    const message = { type: "GET_USER", meta: { timestamp: Date.now(), correlationId: id }, payload };
    link.send(JSON.stringify(GetUser.parse(message)));
  });

let asked = 0;
let before;
const begin = performance.now() + Math.min(1, seconds) * 1000;
const end = begin + seconds * 1000;
const cpu = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
const goesOn = () => {
  const now = performance.now();
  if (!before && now >= begin) before = { asked, now, cpu: cpu() };
  asked += 1;
  return now < end;
};
const work = async () => {
  for (let number = 1; goesOn(); number++) {
    const user = await request({ id: number });
    if (user.payload.id !== number) throw new Error("wrong answer");
  }
};
link.onopen = async () => {
  await Promise.all(Array.from({ length: window }, work));
  const found = { requests: asked - before.asked, wall: (performance.now() - before.now) / 1000, cpu: cpu() - before.cpu };
  console.log(JSON.stringify(found));
  process.exit(0);
};
