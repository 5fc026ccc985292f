"""The ledger: signed manifests, the state they act on, and replaying them (protocol §12, §13)."""
