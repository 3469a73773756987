"""The paper's tables with our numbers beside the printed ones."""
