"""An embedded world and three small Qwen3 models trained on it, so that the whole study runs offline.

``experiments/nano_training`` of the repository trained the models and gave them the outlier channels of large models.

    lexicon.yaml  the words and phrasings
    facts.py      people, towns and trades, drawn from a seed
    world.py      documents about them (train, calib, test) and four-choice questions
    models/       nano-s, nano-m, nano-l: bf16 checkpoints with tokenizer and training log
"""
