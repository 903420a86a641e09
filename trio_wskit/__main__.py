"""`python -m trio_wskit` is `trio-wskit`."""

from trio_wskit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
