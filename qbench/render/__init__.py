"""Tables of text cells as csv, Markdown, LaTeX and text, and the style of figures; knows no record."""
