"""`python -m foldray`: the same as the `foldray` command."""

from foldray.cli.main import main

if __name__ == "__main__":
    main()
