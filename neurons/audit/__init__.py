"""Walking a run with read access only: whether its ledger follows from itself, and its receipts from the payloads."""
