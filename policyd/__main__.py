"""`python -m policyd` runs the daemon."""

from policyd.daemon import main

if __name__ == "__main__":
    main()
