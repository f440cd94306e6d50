"""Runs inside the sandboxes: a script of cells for each agent (``*_agent.py``), and the modules that they import.

The host does not trust what this code returns; ``findings.py`` validates it.
"""
