// The router behind Deno.upgradeWebSocket: ws-kit has no adapter for Deno, so this is what one would do.
import { accepts, router } from "./wskit_router.mjs";

const core = router[Symbol.for("ws-kit.core")] ?? router;

Deno.serve(
  { hostname: "127.0.0.1", port: 0, onListen: ({ port }) => console.log(`listening on ${port}`) },
  (request) => {
    if (!accepts(request.url, request.headers)) return new Response("Unauthorized", { status: 401 });
    const offered = request.headers.get("sec-websocket-protocol")?.split(",")[0].trim();
    const { socket, response } = Deno.upgradeWebSocket(request, offered ? { protocol: offered } : {});
    socket.initialData = { clientId: crypto.randomUUID(), connectedAt: Date.now() };
    socket.onopen = () => core.websocket.open(socket);
    socket.onmessage = (event) => core.websocket.message(socket, event.data);
    socket.onclose = (event) => core.websocket.close(socket, event.code, event.reason);
    return response;
  },
);
