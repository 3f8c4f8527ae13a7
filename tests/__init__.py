"""What policyd promises, one test a promise."""
