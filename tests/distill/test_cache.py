"""The cache of answers: the teacher's own bits, and never an answer to other pixels."""

import errno
import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from understudy.data import Preprocess
from understudy.distill import Ensemble, Teacher, cache_files
from understudy.distill import cache as caching
from understudy.distill.cache import AnswerCache, Kept
from understudy.distill.cache_rows import pixel_marks
from understudy.distill.teacher import Place

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
    return Counted(network, preprocess=Preprocess(), chunk=8)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (SAMPLES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make(tmp_path):
    return lambda kept=Kept(), **identity: AnswerCache(tmp_path / "cache", {"teacher": "a", **identity}, SAMPLES, kept)  # noqa: B008


@pytest.fixture
def small_files(monkeypatch):
    """Files of three rows each, of 7 logits in fp32 with their check."""
    monkeypatch.setattr(cache_files, "SHARD_BYTES", 3 * (8 + CLASSES * 4) + 5)


def ask(cache, teacher, pixels, ids, view="plain", **more):
    ids = torch.tensor(ids)
    return cache.answer(teacher, pixels[ids], [Place(view, ids)], **more)


def alone(teacher):
    return Teacher(teacher.model, preprocess=teacher.preprocess, chunk=8)


def test_what_was_asked_before_comes_back_in_the_teachers_own_bits(make, teacher, pixels):
    ids = [5, 3, 11, 30]
    first = ask(make(), teacher, pixels, ids, taps=("0",))
    assert teacher.asked == 4
    again = ask(make(), teacher, pixels, [30, 5], taps=("0",))  # another process would open the same files
    assert teacher.asked == 4
    computed = alone(teacher)(pixels[[30, 5]], taps=["0"])
    assert torch.equal(again.logits, computed.logits)
    assert torch.equal(again.features["0"], computed.features["0"])
    assert torch.equal(first.logits[[3, 0]], again.logits)


def test_only_what_is_not_known_is_asked(make, teacher, pixels):
    cache = make()
    ask(cache, teacher, pixels, [0, 1, 2])
    answer = ask(cache, teacher, pixels, [2, 7, 0, 8])
    assert teacher.asked == 5
    assert (cache.counts.hits, cache.counts.misses) == (2, 5)
    assert torch.equal(answer.logits, alone(teacher)(pixels[[2, 7, 0, 8]]).logits)


def test_other_pixels_under_the_same_number_are_asked_anew(make, teacher, pixels):
    ask(make(), teacher, pixels, range(10))
    changed = pixels.clone()
    changed[4, 2, 7, 7] ^= 1
    cache = make()
    ask(cache, teacher, changed, range(10))
    assert teacher.asked == 11
    assert cache.counts.odd == 1


def test_pixels_that_may_change_while_the_program_runs_are_looked_at_each_time(make, teacher, pixels):
    cache = make()
    ask(cache, teacher, pixels, range(10))
    changed = pixels.clone()
    changed[4, 2, 7, 7] ^= 1
    answer = ask(cache, teacher, changed, [3, 4])
    assert teacher.asked == 11
    assert torch.equal(answer.logits, alone(teacher)(changed[[3, 4]]).logits)


def test_pixels_that_cannot_are_looked_at_once_in_each_view(tmp_path, teacher, pixels, monkeypatch):
    cache = AnswerCache(tmp_path, {}, SAMPLES, fixed=True)
    looked = []
    monkeypatch.setattr(caching, "pixel_marks", lambda images: looked.append(len(images)) or pixel_marks(images))
    first = ask(cache, teacher, pixels, [3, 4, 5])
    again = ask(cache, teacher, pixels, [5, 9, 3])
    ask(cache, teacher, pixels, [5, 9, 3])
    ask(cache, teacher, pixels, [5], view="view-1")
    ask(cache, teacher, pixels, [5], view="pass-1")
    ask(cache, teacher, pixels, [5], view="pass-1")
    assert looked == [3, 1, 1, 1, 1]
    assert torch.equal(again.logits[[2, 0]], first.logits[[0, 2]])
    assert (cache.counts.hits, cache.counts.misses) == (2 + 3 + 1, 3 + 1 + 1 + 1)


def test_small_answers_about_fixed_pixels_are_held_once_they_were_found(tmp_path, teacher, pixels, monkeypatch):
    def found(cache):
        for _ in range(2):
            ask(cache, teacher, pixels, [3, 4, 5], taps=("0",))
        for file in cache.folder.glob("*.0"):
            file.write_bytes(bytes(file.stat().st_size))
        return ask(cache, teacher, pixels, [5, 3], taps=("0",))

    wanted = alone(teacher)(pixels[[5, 3]], taps=["0"])
    for held, asked in ((2**20, 3), (0, 3 + 5)):  # where nothing may be held, what is lost on the disk is asked again
        monkeypatch.setattr(caching, "_HELD_BYTES", held)
        answer = found(AnswerCache(tmp_path / str(held), {}, SAMPLES, fixed=True))
        assert torch.equal(answer.logits, wanted.logits)
        assert torch.equal(answer.features["0"], wanted.features["0"])
        assert teacher.asked == asked


def test_views_are_kept_apart_and_what_is_no_view_is_never_kept(make, teacher, pixels):
    cache = make()
    for view in ("plain", "plain", "view-3", "view-3", "", ""):
        ask(cache, teacher, pixels, range(4), view=view)
    assert teacher.asked == 4 + 4 + 4 + 4


def test_a_batch_of_several_views_is_answered_part_by_part(make, teacher, pixels):
    cache = make()
    ask(cache, teacher, pixels, [1, 2], view="view-1")
    places = [Place("view-1", torch.tensor([2, 9])), Place("", torch.tensor([4])), Place("view-2", torch.tensor([2]))]
    images = torch.cat([pixels[[2, 9]], pixels[[20]], pixels[[30]]])
    for asked in (3, 1):
        before = teacher.asked
        answer = cache.answer(teacher, images, places)
        assert teacher.asked - before == asked
        assert torch.equal(answer.logits, alone(teacher)(images).logits)


def test_views_that_come_once_are_kept_only_where_later_runs_shall_find_them(make, teacher, pixels):
    for kept, asked in ((Kept(once=False), 8), (Kept(), 4)):
        teacher.asked = 0
        cache = make(kept)
        for _ in range(2):
            ask(cache, teacher, pixels, range(4), view="pass-0-1")
        assert teacher.asked == asked


def test_a_module_may_be_called_as_what_is_kept(make, pixels):
    network = nn.Sequential()
    network.add_module("flat", nn.Flatten())
    network.add_module("logits", nn.Linear(192, CLASSES))
    network.add_module("about", nn.Linear(CLASSES, CLASSES))
    teacher = Teacher(network.eval(), preprocess=Preprocess(), chunk=8)
    wanted = teacher(pixels[:5], taps=["logits", "about"])
    for _ in range(2):
        found = ask(make(), teacher, pixels, range(5), taps=("logits", "about"))
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.features["logits"], wanted.features["logits"])
        assert torch.equal(found.features["about"], wanted.features["about"])


def test_what_each_of_several_teachers_says_is_kept_too(make, network, pixels):
    torch.manual_seed(3)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    teacher = Counted(Ensemble([network, other]).eval(), chunk=8)
    pixels = pixels.float()
    wanted = alone(teacher)(pixels[:5])
    for _ in range(2):
        found = ask(make(), teacher, pixels, range(5))
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.members, wanted.members)
    assert teacher.asked == 5


# Damage


@pytest.mark.parametrize(
    ("damage", "asked"),
    [("a row", 1), ("a check", 1), ("cut", SAMPLES), ("longer", SAMPLES), ("no layout", SAMPLES),
     ("layout is no JSON", SAMPLES), ("another layout", SAMPLES)],
)  # fmt: skip
def test_what_is_damaged_on_the_disk_is_asked_again(make, teacher, pixels, damage, asked):
    cache = make()
    wanted = ask(cache, teacher, pixels, range(SAMPLES))
    rows, layout = cache.folder / "logits.plain.0", cache.folder / "logits.layout.json"
    width = 8 + CLASSES * 4
    if damage in ("a row", "a check"):
        content = bytearray(rows.read_bytes())
        content[5 * width + (11 if damage == "a row" else 3)] ^= 0x10
        rows.write_bytes(content)
    elif damage == "cut":
        os.truncate(rows, 24)
    elif damage == "longer":
        os.truncate(rows, 10**6)
    elif damage == "no layout":
        layout.unlink()
    elif damage == "layout is no JSON":
        layout.write_text("{")
    else:
        layout.write_text(json.dumps({"shape": [5], "precision": "fp32", "top": None}))
    for again in (asked, 0):
        teacher.asked, cache = 0, make()
        answer = ask(cache, teacher, pixels, range(SAMPLES))
        assert torch.equal(answer.logits, wanted.logits)
        assert teacher.asked == again
        assert cache.not_whole == (damage in ("cut", "longer") and again > 0)


def test_one_file_that_is_cut_costs_its_own_rows(make, teacher, pixels, small_files):
    cache = make()
    ask(cache, teacher, pixels, range(SAMPLES))
    assert len(list(cache.folder.glob("logits.plain.*"))) == 14
    os.truncate(cache.folder / "logits.plain.4", 50)
    teacher.asked, cache = 0, make()
    ids = torch.randperm(SAMPLES).tolist()
    assert torch.equal(ask(cache, teacher, pixels, ids).logits, alone(teacher)(pixels[ids]).logits)
    assert teacher.asked == 3
    assert cache.not_whole == 1


def test_a_full_disk_means_asking_and_is_said(make, teacher, pixels, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = make()
    answers = [ask(cache, teacher, pixels, range(5)).logits for _ in range(2)]
    assert torch.equal(*answers)
    assert teacher.asked == 10
    assert "No space left" in cache.stopped
    assert not list(cache.folder.glob("logits.plain.*"))


def test_a_limit_of_the_system_on_files_means_asking_and_what_was_kept_before_is_still_found(
    make, teacher, pixels, small_files
):
    ask(make(), teacher, pixels, range(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
    try:
        cache = make()
        answer = ask(cache, teacher, pixels, range(8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(answer.logits, alone(teacher)(pixels[:8]).logits)
    assert (cache.counts.hits, cache.counts.misses) == (3, 5)
    assert "File too large" in cache.stopped


def test_a_folder_that_cannot_be_made_means_asking(tmp_path, teacher, pixels):
    (tmp_path / "file").write_text("")
    cache = AnswerCache(tmp_path / "file", {}, SAMPLES)
    assert torch.equal(ask(cache, teacher, pixels, range(5)).logits, alone(teacher)(pixels[:5]).logits)
    assert "Not a directory" in cache.stopped


_WRITER = """
import sys, torch
from pathlib import Path
from torch import nn
from understudy.distill import Teacher, cache_files
from understudy.distill.cache import AnswerCache, Kept
from understudy.distill.teacher import Place
cache_files.SHARD_BYTES = 500
torch.manual_seed(0)
teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)).eval(), chunk=8)
images = torch.randn(3000, 3, 2, 2)
cache = AnswerCache(Path(sys.argv[1]), {}, 3000)
for ids in torch.randperm(3000, generator=torch.Generator().manual_seed(int(sys.argv[2]))).split(20):
    found = cache.answer(teacher, images[ids], [Place("plain", ids)]).logits
    assert torch.equal(found, teacher(images[ids]).logits)
assert not cache.stopped and not cache.counts.odd, cache
print(cache.counts.misses)
"""


def test_two_processes_may_fill_one_cache_at_once(tmp_path):
    begun = [
        subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    asked = [int(process.communicate()[0]) for process in begun]
    assert [process.returncode for process in begun] == [0, 0]
    assert sum(asked) >= 3000
    again = subprocess.run(
        [sys.executable, "-c", _WRITER, tmp_path, "7"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(again.stdout) == 0


# Less than every bit


def test_half_precision_comes_back_rounded_and_the_same_whether_asked_or_found(make, teacher, pixels):
    cache = make(Kept(precision="fp16"))
    first, again = (ask(cache, teacher, pixels, range(9), taps=("0",)) for _ in range(2))
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.features["0"], again.features["0"])
    assert torch.equal(again.logits, alone(teacher)(pixels[:9]).logits.half().float())


def test_the_largest_logits_keep_their_probabilities_and_the_rest_share_what_is_left(make, teacher, pixels):
    cache = make(Kept(top=2))
    found = ask(cache, teacher, pixels, range(6)).logits.softmax(1)
    exact = alone(teacher)(pixels[:6]).logits.softmax(1)
    best = exact.topk(2, dim=1)
    assert torch.allclose(found.gather(1, best.indices), best.values, atol=1e-6)
    rest = (1 - best.values.sum(1, keepdim=True)) / (CLASSES - 2)
    others = torch.ones_like(found, dtype=torch.bool).scatter(1, best.indices, False)
    assert torch.allclose(found[others], rest.expand(-1, CLASSES)[others], atol=1e-6)
    for again in (cache, make(Kept(top=2))):
        ask(again, teacher, pixels, range(6))
        assert again.counts.mass / again.counts.weighed == pytest.approx(best.values.sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kept", [Kept(), Kept("fp16"), Kept("fp16", top=3), Kept("bf16", top=1), Kept(top=5)])
def test_one_image_is_found_as_well_as_many(make, teacher, pixels, kept):
    cache = make(kept)
    many = ask(cache, teacher, pixels, range(9)).logits
    for number in range(9):
        assert torch.equal(ask(cache, teacher, pixels, [number]).logits, many[number : number + 1])
    assert teacher.asked == 9


def test_another_teacher_has_another_folder(make, teacher, pixels):
    ask(make(), teacher, pixels, range(3))
    ask(make(teacher="b"), teacher, pixels, range(3))
    assert teacher.asked == 6


# Size


def test_fifty_thousand_answers_of_a_hundred_classes_take_their_own_size_and_a_twentieth(tmp_path):
    cache = AnswerCache(tmp_path, {}, 50_000, Kept(precision="fp16"))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 100)), chunk=1000)
    images = torch.randn(1000, 1, 2, 2)
    for start in range(0, 50_000, 1000):
        cache.answer(teacher, images, [Place("plain", torch.arange(start, start + 1000))])
    assert 50_000 * 100 * 2 <= cache.size <= 1.05 * 50_000 * 100 * 2


def test_a_million_samples_have_no_file_that_is_large_and_mostly_empty(tmp_path):
    cache = AnswerCache(tmp_path, {}, 1_000_000, Kept(precision="fp16"))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 1000)), chunk=10)
    ids = torch.tensor([3, 999_999, 31_000])
    cache.answer(teacher, torch.randn(3, 1, 2, 2), [Place("plain", ids)])
    sizes = [file.stat().st_size for file in cache.folder.glob("logits.plain.*")]
    assert len(sizes) == 2
    assert max(sizes) <= 2**26
    assert cache.size >= sum(sizes)  # no holes: what is mapped is there


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
