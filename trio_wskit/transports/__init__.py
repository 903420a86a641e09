"""Ways to carry a WebSocket: one file each, all with the same seam (`trio_wskit.abc.Transport`)."""
