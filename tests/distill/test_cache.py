"""The cache of answers: the teacher's own bits, and never an answer to other pixels."""

import errno
import os

import pytest
import torch
from torch import nn

from understudy.distill import Teacher
from understudy.distill.cache import AnswerCache, Kept, Place, pixel_marks

SAMPLES, CLASSES = 40, 7


@pytest.fixture
def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())
    return nn.Sequential(body, nn.Linear(16, CLASSES)).eval()


class Counted(Teacher):
    """A teacher that knows how many images it was asked about."""

    asked = 0

    def __call__(self, images, **more):
        self.asked += len(images)
        return super().__call__(images, **more)


@pytest.fixture
def teacher(network):
    from understudy.data import Preprocess

    return Counted(network, preprocess=Preprocess(), chunk=8)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (SAMPLES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make(tmp_path):
    return lambda kept=Kept(), **identity: AnswerCache(tmp_path / "cache", {"teacher": "a", **identity}, SAMPLES, kept)  # noqa: B008


def ask(cache, teacher, pixels, ids, view="plain", **more):
    ids = torch.tensor(ids)
    return cache.answer(teacher, pixels[ids], Place(view, ids), **more)


def test_what_was_asked_before_comes_back_in_the_teachers_own_bits(make, teacher, pixels):
    ids = [5, 3, 11, 30]
    first = ask(make(), teacher, pixels, ids, taps=("0",))
    assert teacher.asked == 4
    again = ask(make(), teacher, pixels, [30, 5], taps=("0",))  # another process would open the same files
    assert teacher.asked == 4
    alone = Teacher(teacher.model, preprocess=teacher.preprocess, chunk=8)(pixels[[30, 5]], taps=["0"])
    assert torch.equal(again.logits, alone.logits)
    assert torch.equal(again.features["0"], alone.features["0"])
    assert torch.equal(first.logits[[3, 0]], again.logits)


def test_only_what_is_not_known_is_asked(make, teacher, pixels):
    cache = make()
    ask(cache, teacher, pixels, [0, 1, 2])
    answer = ask(cache, teacher, pixels, [2, 7, 0, 8])
    assert teacher.asked == 5
    assert (cache.counts.hits, cache.counts.misses) == (2, 5)
    alone = Teacher(teacher.model, preprocess=teacher.preprocess, chunk=8)
    assert torch.equal(answer.logits, alone(pixels[[2, 7, 0, 8]]).logits)


def test_other_pixels_under_the_same_number_are_asked_anew(make, teacher, pixels):
    ask(make(), teacher, pixels, range(10))
    changed = pixels.clone()
    changed[4, 2, 7, 7] ^= 1
    ask(make(), teacher, changed, range(10))
    assert teacher.asked == 11


def test_views_are_kept_apart_and_what_is_no_view_is_never_kept(make, teacher, pixels):
    cache = make()
    for view in ("plain", "plain", "view-3", "view-3", "", ""):
        ask(cache, teacher, pixels, range(4), view=view)
    assert teacher.asked == 4 + 4 + 4 + 4


@pytest.mark.parametrize("damage", ["a row", "a check", "cut rows", "cut checks", "no layout", "layout is no JSON"])
def test_what_is_damaged_on_the_disk_is_asked_again(make, teacher, pixels, damage):
    cache = make()
    wanted = ask(cache, teacher, pixels, range(SAMPLES))
    (rows,) = [path for path in cache.folder.iterdir() if path.name == "logits.plain"]
    checks, layout = (rows.with_name(f"{rows.name}.{end}") for end in ("check", "json"))
    width = CLASSES * 4
    if damage in ("a row", "a check"):
        path, place = (rows, 5 * width + 3) if damage == "a row" else (checks, 5 * 8)
        content = bytearray(path.read_bytes())
        content[place] ^= 0x10
        path.write_bytes(content)
    elif damage.startswith("cut"):
        os.truncate(rows if damage == "cut rows" else checks, 24)
    elif damage == "no layout":
        layout.unlink()
    else:
        layout.write_text("{")
    answer = ask(make(), teacher, pixels, range(SAMPLES))
    assert torch.equal(answer.logits, wanted.logits)
    assert teacher.asked == SAMPLES + (1 if damage in ("a row", "a check") else SAMPLES)


def test_half_precision_comes_back_rounded_and_the_same_whether_asked_or_found(make, teacher, pixels):
    cache = make(Kept(precision="fp16"))
    first, again = (ask(cache, teacher, pixels, range(9)).logits for _ in range(2))
    assert torch.equal(first, again)
    exact = Teacher(teacher.model, preprocess=teacher.preprocess, chunk=8)(pixels[:9]).logits
    assert torch.equal(again, exact.half().float())


def test_the_largest_logits_keep_their_probabilities_and_the_rest_share_what_is_left(make, teacher, pixels):
    cache = make(Kept(top=2))
    found = ask(cache, teacher, pixels, range(6)).logits.softmax(1)
    exact = Teacher(teacher.model, preprocess=teacher.preprocess, chunk=8)(pixels[:6]).logits.softmax(1)
    best = exact.topk(2, dim=1)
    assert torch.allclose(found.gather(1, best.indices), best.values, atol=1e-6)
    rest = (1 - best.values.sum(1, keepdim=True)) / (CLASSES - 2)
    others = torch.ones_like(found, dtype=torch.bool).scatter(1, best.indices, False)
    assert torch.allclose(found[others], rest.expand(-1, CLASSES)[others], atol=1e-6)
    assert cache.counts.mass / cache.counts.kept == pytest.approx(best.values.sum(1).mean().item(), rel=1e-5)


def test_a_full_disk_means_asking_and_is_said(make, teacher, pixels, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = make()
    answers = [ask(cache, teacher, pixels, range(5)).logits for _ in range(2)]
    assert torch.equal(*answers)
    assert teacher.asked == 10
    assert "No space left" in cache.stopped


def test_another_teacher_has_another_folder(make, teacher, pixels):
    ask(make(), teacher, pixels, range(3))
    ask(make(teacher="b"), teacher, pixels, range(3))
    assert teacher.asked == 6


def test_fifty_thousand_answers_of_a_hundred_classes_take_their_own_size_and_a_twentieth(tmp_path):
    cache = AnswerCache(tmp_path, {}, 50_000, Kept(precision="fp16"))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 100)), chunk=1000)
    images = torch.randn(1000, 1, 2, 2)
    for start in range(0, 50_000, 1000):
        cache.answer(teacher, images, Place("plain", torch.arange(start, start + 1000)))
    assert 50_000 * 100 * 2 <= cache.size <= 1.05 * 50_000 * 100 * 2


def test_marks_see_every_byte_and_every_place():
    images = torch.randint(0, 256, (1, 3, 50, 50), dtype=torch.uint8)
    seen = {int(pixel_marks(images))}
    flat = images.flatten()
    for place in range(0, len(flat), 7):
        changed = flat.clone()
        changed[place] += 1
        seen.add(int(pixel_marks(changed.view_as(images))))
    assert len(seen) == 1 + len(range(0, len(flat), 7))
    assert int(pixel_marks(images.flip(-1))) not in seen
