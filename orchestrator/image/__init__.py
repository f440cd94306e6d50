"""The sandbox image: its base, its wheels and its build. This package never runs a kernel."""
