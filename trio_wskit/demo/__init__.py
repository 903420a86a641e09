"""The example: a chat server in one file, `chat.py`, and one page, `page.html`. Run `python -m trio_wskit.demo`."""
