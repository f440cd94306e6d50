"""Many hosts: one node on each, kept running; which node gets a session; and the way of each call to it.

Ray places and supervises. The server's native API carries the data. The database decides who owns a session.
"""
