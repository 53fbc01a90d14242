"""How alike two texts are."""

from __future__ import annotations

from collections.abc import Sequence


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 over lower-case words (Lin 2004), in [0, 1]; two empty texts are alike."""
    left, right = candidate.lower().split(), reference.lower().split()
    if not left and not right:
        return 1.0
    common = longest_common_subsequence(left, right)
    if not common:
        return 0.0
    precision, recall = common / len(left), common / len(right)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, by dynamic programming in O(n·m)."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for index, other in enumerate(right, start=1):
            above = row[index]
            row[index] = diagonal + 1 if word == other else max(above, row[index - 1])
            diagonal = above
    return row[-1]
