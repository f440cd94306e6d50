"""What a sandbox may use: policy files, seccomp profiles and data folders. This package never starts anything."""
