"""Texts, their places on the Hub and on disk, and the windows drawn from them."""
