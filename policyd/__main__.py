"""`python -m policyd` runs the daemon."""

from policyd.start import main

if __name__ == "__main__":
    main()
