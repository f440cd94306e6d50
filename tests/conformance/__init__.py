"""Suites of other projects, unmodified, over bindings of Cellblock. ``python -m tests.conformance`` runs them.

Each suite runs in a virtual environment of its own, with the pinned version of the other project.
"""
