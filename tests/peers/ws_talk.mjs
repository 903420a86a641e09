// A client on `ws` from npm: does with the server at argv[2] what tests/interop/test_peers.py says, and prints what it saw.
import { once } from "node:events";
import WebSocket from "ws";

const url = process.argv[2];
const saw = {};

const open = async (options = {}) => {
  const socket = new WebSocket(url, options);
  const waiting = [];
  const arrived = [];
  socket.on("message", (data, isBinary) => {
    const message = { ...JSON.parse(data.toString()), isBinary };
    if (waiting.length) waiting.shift()(message);
    else arrived.push(message);
  });
  socket.closed = once(socket, "close").then(([code, reason]) => [code, reason.toString()]);
  socket.next = () => (arrived.length ? Promise.resolve(arrived.shift()) : new Promise((done) => waiting.push(done)));
  socket.say = (type, payload, meta) => socket.send(JSON.stringify({ type, meta, payload }));
  const upgrade = once(socket, "upgrade");
  await once(socket, "open");
  const [response] = await upgrade;
  socket.answer = response.headers;
  return socket;
};

// Messages, whole and in pieces, text and binary, small and large.
const one = await open();
saw.clientId = one.answer["x-client-id"];
saw.extensions = one.extensions;
one.say("SAY", { text: "grüß 🎉" });
saw.text = await one.next();
one.send(Buffer.from(JSON.stringify({ type: "SAY", payload: { text: "binary" } })), { binary: true });
saw.binary = await one.next();
one.say("SAY", { text: "x".repeat(300_000) });
saw.large = (await one.next()).payload.text.length;
for (const [index, piece] of ['{"type":"SAY",', '"payload":{"te', 'xt":"pieces"}}'].entries())
  one.send(piece, { fin: index === 2 });
saw.pieces = await one.next();
one.say("ADD", { a: 2, b: 3 }, { correlationId: "c1" });
saw.reply = await one.next();
one.say("NOPE", {}, { correlationId: "c2" });
saw.error = (await one.next()).payload.code;
one.send("not JSON");
saw.malformed = (await one.next()).payload.code;

// Many at once, in order.
for (let number = 0; number < 2000; number++) one.say("SAY", { text: String(number) });
saw.inOrder = true;
for (let number = 0; number < 2000; number++) saw.inOrder &&= (await one.next()).payload.text === String(number);

// Pings either way.
one.ping("are you there?");
saw.pong = (await once(one, "pong"))[0].toString();
await once(one, "ping");
one.say("SAY", { text: "pinged" });
saw.afterPing = await one.next();

// Topics.
const two = await open({ perMessageDeflate: true });
saw.declined = two.extensions;
for (const socket of [one, two]) {
  socket.say("JOIN", { room: "lobby" });
  await socket.next();
}
one.say("SHOUT", { room: "lobby", text: "hello" });
saw.published = await Promise.all([one.next(), two.next()]);

// Closes either way.
two.close(4001, "bye");
saw.closed = await two.closed;
one.say("LEAVE", { code: 4002 });
saw.sentAway = await one.closed;

// A broken protocol.
const three = await open();
three._socket.write(Buffer.from([0x81, 0x80, 1, 2, 3, 4, 0x83, 0x80, 1, 2, 3, 4]));
saw.broken = (await three.closed)[0];

console.log(JSON.stringify(saw));
