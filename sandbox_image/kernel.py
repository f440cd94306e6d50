"""The program that a sandbox runs. Python compiles this file at every start; every other module is compiled already."""

from cellblock_kernel.app import main

if __name__ == "__main__":  # a child of multiprocessing's "spawn" imports this file too
    main()
