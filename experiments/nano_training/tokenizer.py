"""The tokenizer of the nano models: a byte-level BPE of 1024 entries trained on the world's own text.

Words are split with their leading space, and a colon stays with its word, so that `Answer:` is one token
and an answer after it starts at a token boundary. Digits stand alone, as in Qwen3. Any bytes round-trip.
"""

from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qbench.nano import world
from qbench.nano.facts import WAVE, build

VOCABULARY = 1024
PIECES = r" ?\p{N}|'s| ?\p{L}+:?|(?:[^\p{L}\p{N} ]| (?![\p{L}\p{N}]))+"


def train(n_documents: int = 30_000, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train on documents of the train split about the first wave of people; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[world.SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(world.documents("train", world=build(people=WAVE)), n_documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=world.SEPARATOR,
        pad_token=world.SEPARATOR,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
