"""`python -m stepbench`, for torchrun and where the command is not on the path."""

from stepbench.cli.main import main

if __name__ == "__main__":
    main()
