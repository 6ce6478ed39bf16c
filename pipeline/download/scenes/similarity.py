"""The gold score of two scenes: how much of what is told they share.

A group shares with another the weighted mean over what is told of both:
colour (weight 3) and shape (3) count 1 when equal, else 0; size (1) likewise; the count (1)
shares 1 - |difference| / 3. A scene shares with another, under the better of the two ways to
pair up their groups, the weighted mean over groups (6, a group without partner shares nothing),
relation (2, when either scene has one; equal only if the paired groups lie alike) and background
(1, when told). The gold score is 5 * shared^2: squared, so that two scenes that agree in most
words but not in one thing stand clearly apart from two that are the same.
"""

from pipeline.download.scenes.words import Told
from pipeline.download.scenes.world import COUNTS, Group, Scene

HIGHEST = 5.0
"""Gold score of two sentences that tell the same."""

Share = tuple[float, float]
"""A weight, and the share of it that is equal."""


def gold_score(first: Scene, second: Scene, told: Told) -> float:
    """The gold score of two scenes in 0..5, two decimals; the order does not matter."""
    return round(HIGHEST * shared(first, second, told) ** 2, 2)


def shared(first: Scene, second: Scene, told: Told) -> float:
    """The share in 0..1 of what is told that two scenes have in common."""
    if len(first.groups) > len(second.groups):
        first, second = second, first
    turned = tuple(reversed(second.groups))
    straight = _compare_scenes(first, second, second.groups, told, in_order=True)
    return max(straight, _compare_scenes(first, second, turned, told, in_order=False))


def _compare_scenes(
    first: Scene, second: Scene, partners: tuple[Group, ...], told: Told, *, in_order: bool
) -> float:
    related = told.relation and (first.relation or second.relation) is not None
    lie_alike = in_order and first.relation == second.relation
    return _mean(
        [
            (6.0, _compare_groups(first.groups, partners, told)),
            (2.0 if related else 0.0, float(lie_alike)),
            (1.0 if told.background else 0.0, float(first.background == second.background)),
        ]
    )


def _compare_groups(first: tuple[Group, ...], second: tuple[Group, ...], told: Told) -> float:
    paired = zip(first, second, strict=False)
    equal = sum(_compare_group(one, other, told) for one, other in paired)
    return equal / max(len(first), len(second))


def _compare_group(one: Group, other: Group, told: Told) -> float:
    return _mean(
        [
            (3.0, float(one.colour == other.colour)),
            (3.0, float(one.shape == other.shape)),
            (1.0 if all(told.sizes) else 0.0, float(one.size == other.size)),
            (1.0 if told.count else 0.0, 1 - abs(one.count - other.count) / (len(COUNTS) - 1)),
        ]
    )


def _mean(shares: list[Share]) -> float:
    return sum(weight * share for weight, share in shares) / sum(weight for weight, _ in shares)
