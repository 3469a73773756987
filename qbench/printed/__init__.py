"""The paper's printed numbers, and which of them are in doubt; reads no record."""
