"""The audit of the paper's printed tables, by rules that know no answer: ``python -m experiments.audit``."""
