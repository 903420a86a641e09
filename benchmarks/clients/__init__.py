"""Clients that do the same: each program takes PORT WINDOW SECONDS, and prints what it has measured of itself."""
