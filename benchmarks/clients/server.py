"""The server that all clients ask; it is not measured."""

from __future__ import annotations

import sys

from benchmarks.clients.messages import GetUser, User
from trio_wskit import App, Context, Router, run

router = Router()


@router.rpc(GetUser)
def get_user(ctx: Context[GetUser]) -> User:
    return User(id=ctx.payload.id, name="Ada Lovelace", age=36)


if __name__ == "__main__":
    run(App(router), "127.0.0.1", int(sys.argv[1]))
