"""`python -m watchman`, where the command `watchman` is not installed."""

from watchman.commands.main import main

if __name__ == "__main__":
    main()
