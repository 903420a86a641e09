"""Whose budget is it: functions from a message to the key of a bucket.

The part that says who is in braces, so that on a Redis cluster all buckets of one client live in one slot and can be
paid together.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from trio_wskit._context import Context

__all__ = ["address_key", "per_address", "per_connection", "per_user", "per_user_per_type"]


def per_user_per_type(ctx: Context[Any]) -> str:
    """One budget for each client and each type of message: ``user:{alice}:SAY``; see `per_user`."""
    return f"{per_user(ctx)}:{ctx.type}"


def per_user(ctx: Context[Any]) -> str:
    """One budget for each client, on all its connections: ``user:{alice}``.

    A client is who the app's ``identity`` says it is. Where it names nobody, every connection is a client by itself;
    the anonymous do not share a budget.
    """
    session = ctx.session
    if session.identity == session.client_id:
        return f"connection:{{{session.client_id}}}"
    return f"user:{{{_inside_braces(session.identity)}}}"


def per_connection(ctx: Context[Any]) -> str:
    """One budget for each connection: ``connection:{0193…}``."""
    return f"connection:{{{ctx.client_id}}}"


def per_address(ctx: Context[Any]) -> str:
    """One budget for each address, whoever is there; see `address_key`. Without an address, one for each connection.

    Behind a proxy every address is the proxy's: write a function that reads the header which your proxy sets.
    """
    remote = ctx.session.request.remote
    return per_connection(ctx) if remote is None else address_key(remote)


@lru_cache(maxsize=4096)
def address_key(remote: str) -> str:
    """The key of an address: ``address:{203.0.113.7}``.

    An IPv6 address counts as its /64, which is what one customer has at the least (RFC 6177); one that wraps an IPv4
    address counts as that. What is no address counts as it is.
    """
    try:
        address = ip_address(remote)
    except ValueError:
        return f"address:{{{_inside_braces(remote)}}}"
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped
        if inner is None:
            return f"address:{{{IPv6Address(int(address) >> 64 << 64)}/64}}"
        address = inner
    return f"address:{{{address}}}"


def _inside_braces(text: str) -> str:
    """Text that neither opens nor closes a brace; different texts stay different."""
    if "{" not in text and "}" not in text and "%" not in text:
        return text
    return text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
