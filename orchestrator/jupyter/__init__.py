"""Jupyter's own programs around a sandbox: the kernelspec, the relay that it starts, and the provisioner.

This room never speaks to a kernel: it calls the manager, and leaves the clients' sockets to ``broker``.
"""
