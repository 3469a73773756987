"""How the nano models of the package were made, from the root of a clone: `python -m experiments.nano_training.train`.

trainings.py  shape and schedule of each model
tokenizer.py  a byte-level BPE of 1024 entries
train.py      next-token training on the embedded world
outliers.py   a function-preserving rescale of a few channels
quiz.py       accuracy by subject: the check of a training
"""
