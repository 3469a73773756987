"""Every number and table that the text in paper/ quotes, as LaTeX macros."""
