"""The paper's own figures (arXiv 2507.00715), which docs/results.md sets beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Published:
    """Ordinary fine-tuning and EARN on one data set with one backbone of 7 billion parameters."""

    dense: tuple[float, float]  # Recall@10, NDCG@10
    earn: tuple[float, float]
    speedup: float  # of wall time, in the largest batch that fits into 80 GB
    cache_reduction: float


# (method, data set, family) -> figures. Its data sets are split by time.
TWINS: Mapping[tuple[str, str, str], Published] = MappingProxyType(
    {
        ("lcrec", "Beauty", "llama"): Published((0.0145, 0.0084), (0.0167, 0.0095), 3.79, 0.805),
        ("lcrec", "Beauty", "qwen2"): Published((0.0145, 0.0087), (0.0155, 0.0091), 2.71, 0.752),
        ("lcrec", "Games", "llama"): Published((0.0167, 0.0106), (0.0180, 0.0107), 3.53, 0.808),
        ("lcrec", "Games", "qwen2"): Published((0.0193, 0.0127), (0.0197, 0.0122), 3.11, 0.751),
        ("lcrec", "ML-1M", "llama"): Published((0.0247, 0.0197), (0.0259, 0.0247), 3.21, 0.797),
        ("lcrec", "ML-1M", "qwen2"): Published((0.0289, 0.0247), (0.0298, 0.0252), 2.84, 0.667),
        ("tiger", "Beauty", "llama"): Published((0.0108, 0.0071), (0.0115, 0.0075), 3.44, 0.809),
        ("tiger", "Beauty", "qwen2"): Published((0.0095, 0.0061), (0.0104, 0.0065), 2.58, 0.755),
        ("tiger", "Games", "llama"): Published((0.0126, 0.0080), (0.0138, 0.0085), 3.12, 0.812),
        ("tiger", "Games", "qwen2"): Published((0.0131, 0.0085), (0.0137, 0.0086), 2.86, 0.721),
        ("tiger", "ML-1M", "llama"): Published((0.0245, 0.0244), (0.0269, 0.0221), 2.85, 0.777),
        ("tiger", "ML-1M", "qwen2"): Published((0.0238, 0.0224), (0.0274, 0.0273), 2.56, 0.455),
    }
)

# Recall@10 of the ablations (LC-Rec, Beauty, Llama, k = 7), by our variants' names.
ABLATIONS: Mapping[str, float] = MappingProxyType(
    {"earn": 0.0174, "untrained": 0.0048, "no-prefix": 0.0172, "no-suffix": 0.0041}
)

# Recall@10 on Amazon Beauty 2014, leave-one-out, full ranking, as TIGER's authors give it (arXiv 2305.05065, table 1).
BEAUTY_LEAVE_ONE_OUT: Mapping[str, float] = MappingProxyType({"TIGER": 0.0648, "SASRec": 0.0605})
