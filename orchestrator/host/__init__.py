"""The machine below: its packages, its Docker daemon and its weaknesses. This package never touches a sandbox."""
