// The router behind @ws-kit/bun.
import { createBunHandler } from "@ws-kit/bun";
import { accepts, router } from "./wskit_router.mjs";

const { fetch, websocket } = createBunHandler(router, {
  authenticate: (request) => (accepts(request.url, request.headers) ? {} : undefined),
});
const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch, websocket });
console.log(`listening on ${server.port}`);
