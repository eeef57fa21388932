"""`python -m reptrain`."""

from reptrain.cli import main

if __name__ == "__main__":
    main()
