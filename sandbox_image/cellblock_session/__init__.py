"""What of a session outlives this kernel: captured and loaded inside the sandbox, never by the host."""
