"""What every Python of a sandbox does at its start, and what the image adds to matplotlib. Imports nothing but os."""
