"""Puts the summary of results/ between its marks in the README: python experiments/readme.py"""

from pathlib import Path

from qbench.record import write_atomic
from qbench.report import summary

README = Path(__file__).parent.parent / "README.md"

if __name__ == "__main__":
    before, _, after = README.read_text().split("nano_summary -->")
    shown = f"nano_summary -->\n```text\n{summary(README.parent / 'results')}```\n<!-- /nano_summary -->"
    write_atomic(README, before + shown + after)
