"""The example: a chat server in one file (`chat.py`) and one page (`page.html`). Start it with `python -m trio_wskit.demo`."""
