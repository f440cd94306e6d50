"""What a sandbox may use: the policy file, its seccomp profile and its data folders. It never starts anything."""
