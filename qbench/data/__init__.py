"""Texts, the windows that are drawn from them, and where they lie on the Hub."""
