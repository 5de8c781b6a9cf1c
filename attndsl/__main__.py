"""`python -m attndsl`: the command line."""

from attndsl.cli import main

if __name__ == "__main__":
    main()
