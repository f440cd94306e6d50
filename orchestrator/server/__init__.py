"""HTTP: one process that owns the kernels of a host, for every other program. It never touches a kernel itself."""
