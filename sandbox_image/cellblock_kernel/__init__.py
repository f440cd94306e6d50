"""The kernel that runs in every sandbox."""
