"""lm-eval's side of the evaluation: tasks, requests, the model that answers them."""
