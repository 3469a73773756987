"""The paper's printed numbers and the rules that audit them; reads no record."""
