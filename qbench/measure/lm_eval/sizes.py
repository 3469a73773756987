"""How large the tasks are, counted with Qwen3's tokenizer (nano_world: its own), so that a plan need not load them.

The counts are of lm-eval's requests when stretches that they share are forwarded once (``prefix_tree``, 2,048 tokens
per pass). HellaSwag's were counted on 1,916 of its 10,042 questions and multiplied.
"""

from typing import NamedTuple


class Size(NamedTuple):
    """Questions, tokens forwarded, (query, key) pairs of attention, and positions at which logits are taken."""

    questions: int
    tokens: int
    pairs: int
    scored: int


SIZES = {
    "piqa": Size(1838, 80_315, 141_011_716, 83_560),
    "arc_easy": Size(2376, 82_814, 148_363_997, 42_762),
    "arc_challenge": Size(1172, 51_987, 90_145_454, 28_482),
    "hellaswag": Size(10_042, 1_224_000, 2_103_407_000, 931_000),
    "winogrande": Size(1267, 27_332, 50_944_226, 14_206),
    "boolq": Size(3270, 410_188, 734_291_348, 6540),
    "mmlu": Size(14_042, 1_336_681, 3_297_311_649, 56_168),
    "mmlu_hendrycks": Size(14_042, 1_336_681, 3_297_311_649, 56_168),  # mmlu's questions with other spaces
    "nano_world": Size(737, 4497, 921_155, 2948),
}
