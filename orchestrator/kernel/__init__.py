"""One kernel: its wire, its start and end, and what travels over the wire.

The one room that speaks Jupyter's protocol. It never decides who gets a kernel.
"""
