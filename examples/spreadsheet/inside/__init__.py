"""What runs inside the sandboxes: one script of cells per agent (``*_agent.py``), and the modules that they import.

Nothing here is trusted by the host once it has been sent; the host checks what comes back in ``findings.py``.
"""
