"""Text made safe for Markdown and LaTeX."""

_TEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "–": "--",
    "…": r"\dots{}",
    **{c: f"${m}$" for c, m in zip("<>±−×", ("<", ">", r"\pm", "-", r"\times"))},
    **{c: f"${m}$" for c, m in zip("↓↑→≥≤", (r"\downarrow", r"\uparrow", r"\rightarrow", r"\ge", r"\le"))},
    **{c: f"${m}$" for c, m in zip("Δαλ", (r"\Delta", r"\alpha", r"\lambda"))},
}


def tex(text: str) -> str:
    """``text`` for LaTeX, in one line; the signs that the tables use become commands."""
    return "".join(_TEX.get(c, c) for c in text.replace("\n", " "))


def md(text: str) -> str:
    """``text`` for a cell of a Markdown table, in one line."""
    return text.replace("|", r"\|").replace("\n", " ")
