"""The gateway speaks Jupyter Server's kernels API. It owns no kernel: each one is a session of the directory."""
