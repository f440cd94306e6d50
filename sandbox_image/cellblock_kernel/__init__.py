"""The Jupyter kernel that runs in every sandbox. It is not a security boundary."""
