"""What a sandbox runs. All else is compiled when the image is made; this file is, at every start."""

from cellblock_kernel.app import main

main()
