"""Jupyter's own programs, unmodified, on kernels in sandboxes."""
