"""Which places of a student belong to which of the teacher, when both are left to `auto`."""

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def match(student: Shapes, teacher: Shapes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pair feature maps (or tokens) of two models.

    Of each side the last place at a resolution counts: the end of a stage. Where resolutions are shared those are
    paired; else the places are paired by depth.

    Args:
        student: shapes (N, ...) of its candidate places, shallow to deep; pooled vectors are left out.
        teacher: likewise.

    Returns:
        Paths in the student and in the teacher, of one length.
    """
    own, other = _stage_ends(student), _stage_ends(teacher)
    shared = [size for size in own if size in other]
    if shared:
        return tuple(own[size] for size in shared), tuple(other[size] for size in shared)
    students, teachers = tuple(own.values()), tuple(other.values())
    fewer = min(len(students), len(teachers))
    return _by_depth(students, fewer), _by_depth(teachers, fewer)


def _stage_ends(shapes: Shapes) -> dict[tuple[int, ...], str]:
    """The last path at each resolution; of tokens, which have one resolution throughout, every path."""
    tokens = all(len(shape) == 3 for shape in shapes.values())
    if tokens:
        return {(index, *shape[1:2]): path for index, (path, shape) in enumerate(shapes.items())}
    return {shape[2:]: path for path, shape in shapes.items() if len(shape) == 4}


def _by_depth(paths: tuple[str, ...], count: int) -> tuple[str, ...]:
    """As many paths as wanted, evenly from the depth, the deepest among them."""
    return tuple(paths[round((index + 1) * len(paths) / count) - 1] for index in range(count))
