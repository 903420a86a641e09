"""What is asked, and what is answered."""

from __future__ import annotations

from trio_wskit import Rpc, message


@message("USER")
class User:
    id: int
    name: str
    age: int


@message("GET_USER")
class GetUser(Rpc[User]):
    id: int
