"""Our own servers, through the public API: one small program for each transport."""
