"""The servers we are measured against: one small program each, all doing the work that `benchmarks.work` describes.

Each is run as `python -m benchmarks.peers.NAME raw|routed PORT` (or by Bun or Node) in an environment of its own.
"""
