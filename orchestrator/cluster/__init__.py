"""Hosts that form one Cellblock: it places one node on each, keeps its server running, and never carries a cell's data.

Ray places and supervises. The server's native API carries the data. The database decides who owns a session.
"""
