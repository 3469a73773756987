"""What one cell does, phase by phase, in operations, traffic and launches: before anything runs.

Sizes of data are counted, not guessed, with Qwen3's tokenizer (nano: its own). WikiText-2's raw test set has 299,078
tokens, of which 146 windows of 2,048 are read; C4's 256 windows are 524,288. ``TASKS`` holds what lm-eval's requests
amount to when stretches that they share are forwarded once (``prefix_tree``, 2,048 tokens a pass).
HellaSwag's were counted on 1,916 of its 10,042 questions and multiplied.
"""

from dataclasses import dataclass

from qbench.plan import costs
from qbench.shape import Shape

WINDOWS = {"wikitext2": 299_078, "c4": 256 * 2048, "nano": 30_785}  # tokens of each text


@dataclass(frozen=True)
class Size:
    """A task: its questions, tokens forwarded, (query, key) pairs of attention, positions at which logits are taken."""

    questions: int
    tokens: int
    pairs: int
    scored: int


TASKS = {
    "piqa": Size(1838, 80_315, 141_011_716, 83_560),
    "arc_easy": Size(2376, 82_814, 148_363_997, 42_762),
    "arc_challenge": Size(1172, 51_987, 90_145_454, 28_482),
    "hellaswag": Size(10_042, 1_224_000, 2_103_407_000, 931_000),
    "winogrande": Size(1267, 27_332, 50_944_226, 14_206),
    "boolq": Size(3270, 410_188, 734_291_348, 6540),
    "mmlu": Size(14_042, 1_336_681, 3_297_311_649, 56_168),
    "mmlu_hendrycks": Size(14_042, 1_336_681, 3_297_311_649, 56_168),  # as mmlu: the same questions, other spaces
    "nano_world": Size(737, 4497, 921_155, 2948),
}


@dataclass
class Work:
    """Operations in 16 bits and in float32, bytes read and written element by element, kernels that wait for Python."""

    flops16: float = 0.0
    flops32: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, k) + getattr(other, k) for k in self.__dataclass_fields__))

    def times(self, n: float) -> "Work":
        return Work(*(getattr(self, k) * n for k in self.__dataclass_fields__))

    def seconds(self, machine) -> float:
        """One after another, nothing overlapped."""
        rated = self.flops16 / machine.flops16 + self.flops32 / machine.flops32
        return rated + self.bytes / machine.bandwidth + self.launches * machine.launch


def _forward(flops: float, dtype: str) -> Work:
    return Work(flops32=flops) if dtype == "float32" else Work(flops16=flops)


def calibrate(shape: Shape, cls: type, method: dict, n: int, length: int, dtype: str) -> Work:
    """Forward passes over the calibration tokens; how many depends on what the method sees (``qbench.stream``)."""
    whole = costs.forward_flops(shape, n, length)
    flops = whole * (2 if cls.calibrates_on == "block" else 1)
    if cls.name == "awq" and method.get("loss") == "module":
        tokens, last = n * length * shape.layers, shape.linears[-1]
        down = 2 * last[0] * last[1] * tokens
        passes = method["n_scale"] + 1
        flops += passes * (whole + down) + 2 * whole  # attention, MLP and down_proj anew for each exponent
    return _forward(flops, dtype)


def statistics(shape: Shape, tokens: int) -> Work:
    """A Gram of every stage's inputs, for the method or for the reported error."""
    return Work(flops32=shape.layers * sum(costs.gram_flops(K, tokens) for K, _, _ in shape.stages))


def solve(shape: Shape, cls: type, method: dict) -> Work:
    """The method's own arithmetic on every linear, and the error of each."""
    name, grid, total = cls.name, method.get("grid") or {}, Work()
    for K, names, folds in shape.stages:
        group = K if grid.get("group_size", -1) == -1 else grid["group_size"]
        if name in ("gptq", "billm"):
            total += Work(flops32=costs.factor_flops(K), launches=20)
        if name == "gptq":  # linears of a stage share their column loop
            total += Work(launches=8 * K + 12 * (K // group))
        for linear, N in names.items():
            total += Work(flops32=costs.error_flops(N, K), bytes=costs.round_bytes(N, K, 2), launches=30)
            if name == "gptq":
                total += Work(flops32=costs.columns_flops(N, K), bytes=8 * N * K * 64)
            elif name == "awq":
                clipped = method["n_clip"] if not linear.endswith(tuple(method["unclipped"])) else 0
                scales = method["n_scale"] if folds else 0
                gemms = costs.scale_search_flops(N, K, scales) + costs.clip_search_flops(N, K, group, clipped)
                moved = costs.round_bytes(N, K, scales + clipped)
                total += Work(flops32=gemms, bytes=moved, launches=30 * (scales + clipped))
            elif name == "billm":
                blocks = -(-K // method["block_size"])
                search = costs.binary_search_bytes(N, K, method["max_salient"])
                steps = costs.SALIENT_LAUNCHES * method["max_salient"] + costs.SPLIT_LAUNCHES * 81
                total += Work(flops32=costs.block_columns_flops(N, K), bytes=search, launches=blocks * steps)
    return total.times(shape.layers)


def evaluate(shape: Shape, part: dict, dtype: str) -> tuple[Work, list[str]]:
    """One evaluation; and what in it is not known, and so not counted."""
    if "source" in part:
        return _text(shape, part, dtype)
    total, unknown = Work(), []
    for task in part["tasks"]:
        if task not in TASKS:
            unknown.append(f"task {task} (its size is not known; not counted)")
            continue
        size = TASKS[task]
        asked = part.get("limit") and part["limit"] * (57 if "mmlu" in task else 1)
        share = min(1.0, asked / size.questions) if asked else 1.0
        flops = 2 * shape.linear_parameters * size.tokens + costs.pair_flops(shape, size.pairs)
        total += _forward((flops + costs.head_flops(shape, size.scored)) * share, dtype)
    return total, unknown


def _text(shape, part, dtype):
    source, window = part["source"] or "nano", part.get("window") or (256 if part["source"] == "nano" else 2048)
    if part.get("path") or source not in WINDOWS:
        return Work(), [f"text {part.get('path') or source} (its size is not known; not counted)"]
    windows = WINDOWS[source] // window
    windows = windows if part.get("limit") is None else min(windows, part["limit"])
    kinds = 2 if part["_target_"].endswith("Divergence") else 1  # both heads are applied
    flops = kinds * costs.head_flops(shape, windows * (window - 1))
    head = Work(flops16=flops) if part.get("logits") == "model" and dtype != "float32" else Work(flops32=flops)
    return _forward(costs.forward_flops(shape, windows, window), dtype) + head, []
