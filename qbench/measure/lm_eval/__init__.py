"""lm-eval's side of the evaluation: its tasks, their requests, and the model that answers them."""
