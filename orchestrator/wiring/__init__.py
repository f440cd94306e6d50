"""Wiring: makes the parts of one manager, starts and closes them, and runs their background work.

The facade calls it; it never checks the values that a caller passes, and runs no cells. ``Parts`` makes the parts, and
``Lifespan`` starts and closes them.
"""
