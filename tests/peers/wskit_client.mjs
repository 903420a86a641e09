// A client on the raw `ws` package that says, byte for byte, what ws-kit's own client was recorded to say (its client
// package is not on npm), and prints what it gets. Run with the URL of a server.
import WebSocket from "ws";

const link = new WebSocket(process.argv[2] + "/?access_token=token");
const say = (type, payload, correlationId) =>
  link.send(JSON.stringify({ type, meta: { timestamp: 1, ...(correlationId && { correlationId }) }, payload }));

link.on("upgrade", (response) => console.log(JSON.stringify({ clientId: response.headers["x-client-id"] })));
link.on("message", (data, isBinary) => console.log(JSON.stringify({ isBinary, ...JSON.parse(data.toString()) })));
link.on("close", (code, reason) => console.log(JSON.stringify({ closed: code, reason: reason.toString() })));
link.on("open", () => {
  say("HELLO", { name: "Ada" });
  say("GET_USER", { id: "1" }, "req-1");
  say("GET_USER", { id: "none" }, "req-2");
  say("GET_USER", { id: 5 }, "req-3");
  say("COUNT", { to: 2 }, "req-4");
  say("WHAT", {}, "req-5");
  link.send("{");
  say("SUBSCRIBE", { topic: "room:a" }, "req-6");
  say("LIMITED", { key: "x" }, "req-7");
  say("LIMITED", { key: "x" }, "req-8");
  say("LIMITED", { key: "x" }, "req-9");
  say("SAY", { room: "a", text: "to all" });
  say("CLOSE_ME", { code: 4000 });
});
