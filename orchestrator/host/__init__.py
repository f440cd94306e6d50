"""The machine below: packages, the Docker daemon and its weaknesses. It never touches a running sandbox."""
