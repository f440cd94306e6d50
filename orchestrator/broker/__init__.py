"""The broker lets any number of stock Jupyter clients use one session. It owns no kernel, and runs nothing but cells.

A client's execute request is a cell of the session. The kernel never sees a client's key, address or message.
"""
