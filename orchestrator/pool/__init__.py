"""Who gets the next kernel, and how many kernels there may be. It never knows sessions."""
