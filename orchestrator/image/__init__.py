"""What a sandbox is made of: the base, the wheels and the build. It never runs a kernel."""
