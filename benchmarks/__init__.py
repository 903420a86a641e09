"""How fast trio-wskit is, measured beside its peers: `python -m benchmarks --help`."""
