"""One kernel: its wire, its start and end, and the requests that travel over the wire.

Only this room speaks Jupyter's protocol. It never decides who gets a kernel.
"""
