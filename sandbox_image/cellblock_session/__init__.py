"""What of a session outlives this kernel: captured, and loaded again, inside the sandbox. Never imported by the host."""
