"""Lets frameworks use Cellblock, one module each. They call the manager as any user does, and own no behaviour of it.

Each module is an extra, and imports its framework only if that is needed for its types.
"""
