"""The stages of a classification run: which arms are trained together, and what each learns from."""

from collections.abc import Mapping, Sequence

from torch import nn

from understudy.data import Feed, Preprocess
from understudy.distill import Distiller, Learner, Mutual, Objective, Teacher
from understudy.distill.pretraining import Pretraining
from understudy.distill.recorded import RecordedTeacher
from understudy.errors import UserError
from understudy.recipe.schema import Method, Train
from understudy.tasks.classify.objectives import labels, objectives
from understudy.tasks.classify.pace import compiles
from understudy.tasks.classify.task import METRIC, Classify
from understudy.tasks.classify.variants import Planned, distilled_arms
from understudy.train.arm import Arm, Role
from understudy.train.layout import laid_out
from understudy.train.stage import Stage, joined


def stage_name(seed: int, generation: int) -> str:
    """The name of the stage of a seed's students of one generation."""
    return f"seed-{seed}" if generation == 1 else f"seed-{seed}-generation-{generation}"


def name_of_seeds(seeds: Sequence[int]) -> str:
    """The name of the stage of several seeds' students."""
    return f"seeds-{seeds[0]}-to-{seeds[-1]}"


def every_stage(task: Classify) -> list[tuple[Stage, int]]:
    """Every stage of a run with untrained teachers, and how often it is done: shows what does not fit.

    Args:
        task: with its data read.

    Raises:
        UserError: something does not fit.
    """
    recipe, seed = task.recipe, task.recipe.seed
    stages = [
        (teacher_stage(task, name, seed), recipe.teacher_seeds)
        for name, section in recipe.teachers.items()
        if section.is_trained
    ]
    teachers = {"teacher": task.recorded or _untrained(task, seed)}
    task.start_students_from(teachers["teacher"])
    for name, section in recipe.all_assistants.items():
        above = next(reversed(teachers.values()))
        if section.is_trained:
            stages.append((assistant_stage(task, name, above), 1))
        teachers[name] = task.as_teacher(task.build(name, seed), name)
    for generation in range(1, 1 + max(method.generations for method in recipe.method)):
        before = init_stage(task, seed, teachers, generation)
        stages += [(before, recipe.seeds)] if before is not None else []
        stages.append((student_stage(task, seed, teachers, generation=generation), recipe.seeds))
        for name in _of_generation(task, generation):
            teachers[name] = task.as_teacher(task.build("student", seed), "student")
    return stages


def _untrained(task: Classify, seed: int) -> Teacher:
    modules = {name: task.build(name, seed) for name in task.recipe.teachers}
    return task.as_teacher(task.ensemble(modules) if len(modules) > 1 else modules["teacher"])


def teacher_stage(task: Classify, which: str, seed: int) -> Stage:
    """Training a teacher alone, on every labelled sample.

    Args:
        task: with its data read.
        which: the teacher's name.
        seed: of the run.
    """
    settings = task.recipe.train_of(task.recipe.teachers[which])
    module = task.build(which, seed)
    feed = task.feed("teacher", seed, settings)
    learner = _learner(task, module, [labels(1.0, settings)], None, task.preprocess(which, module))
    arm = _arm(
        task,
        which,
        "teacher",
        learner,
        settings,
        feed,
        on="teacher",
        seed=seed,
        preprocess=task.preprocess(which, module),
    )
    return _stage(task, f"{which}-{seed}", [arm], {"teacher": feed})


def assistant_stage(task: Classify, which: str, taught_by: Teacher) -> Stage:
    """Training an assistant by the recipe's first method.

    Args:
        task: with its data read.
        which: the assistant's name.
        taught_by: the one before it in the chain.
    """
    seed = task.recipe.seed
    settings = task.recipe.train_of(task.recipe.all_assistants[which])
    module = task.build(which, seed)
    feed = task.feed("students", seed, settings)
    preprocess = task.preprocess(which, module)
    learner = _learner(task, module, _objectives(task, task.recipe.method[0], ()), taught_by, preprocess)
    arm = _arm(task, which, "other", learner, settings, feed, on="students", seed=seed, preprocess=preprocess)
    return _stage(task, f"{which}-{seed}", [arm], {"students": feed})


def student_stage(
    task: Classify, seed: int, teachers: Mapping[str, Teacher], *, generation: int = 1, equal_time: float = 1.0
) -> Stage:
    """Training a seed's students of one generation together: in the first the controls alone, the others taught.

    Args:
        task: with its data read.
        seed: of the run.
        teachers: who teaches, by name: teachers, assistants, and the arms of the generation before.
        generation: counted from 1.
        equal_time: for the control of that name, how many times longer it may train.
    """
    feeds = {"students": task.feed("students", seed)}
    pace = feeds["students"]
    arms = []
    if generation == 1:
        if task.recipe.data.transfer != "none":
            feeds["control"] = task.feed("control", seed)
        arms += _controls(task, seed, pace, "control" if "control" in feeds else "students", equal_time)
    for name, planned in _of_generation(task, generation).items():
        learner = _taught(task, name, planned, seed, teachers)
        arms.append(_arm(task, name, "distilled", learner, task.recipe.train, pace, on="students", seed=seed))
    return _stage(task, stage_name(seed, generation), arms, feeds)


def stage_of_seeds(task: Classify, seeds: Sequence[int], teachers: Mapping[str, Teacher]) -> Stage:
    """Training the students of several seeds at once.

    Args:
        task: with its data read.
        seeds: of the run.
        teachers: as for `student_stage`.
    """
    return joined([student_stage(task, seed, teachers) for seed in seeds], name_of_seeds(seeds))


def init_stage(task: Classify, seed: int, teachers: Mapping[str, Teacher], generation: int) -> Stage | None:
    """What some methods train before a generation's students, as arms called NAME-init; None where none does.

    Args:
        task: with its data read.
        seed: of the run.
        teachers: as for `student_stage`.
        generation: counted from 1.
    """
    feed = task.feed("students", seed)
    arms = []
    for name, planned in _of_generation(task, generation).items():
        if not planned.method.has_init_stage:
            continue
        distiller = _taught(task, name, planned, seed, teachers, init=True)
        described = planned.method.objectives
        assert isinstance(distiller, Distiller)  # peers have no init stage
        mine = zip(distiller.objective_list()[-len(described) :], described, strict=True)
        ours = [objective for objective, section in mine if section.init]
        own_parts = all(hasattr(objective.loss, "pretrained") for objective in ours)
        learner = Pretraining(distiller, ours) if own_parts else distiller
        epochs = max(section.init or 0 for section in described)
        arms.append(
            _arm(
                task, f"{name}-init", "other", learner, task.recipe.train, feed, on="students", seed=seed, epochs=epochs
            )
        )
    if not arms:
        return None
    return _stage(task, f"{stage_name(seed, generation)}-init", arms, {"students": feed}, scored=False)


def _of_generation(task: Classify, generation: int) -> dict[str, Planned]:
    arms = distilled_arms(task.recipe)
    return {name: planned for name, planned in arms.items() if planned.generation == generation}


def _controls(task: Classify, seed: int, pace: Feed, on: str, equal_time: float) -> list[Arm]:
    settings = task.recipe.train
    arms = []
    for name in task.recipe.control if isinstance(task.recipe.control, tuple) else ():
        module = task.build("student", seed)
        smoothing = 0.1 if name == "label_smoothing" else None
        epochs = max(1, round(settings.epochs * equal_time)) if name == "equal_time" else None
        arm_name = "student_alone" if name == "train" else f"student_{name}"
        learner = _learner(task, module, [labels(1.0, settings, smoothing)], None, task.preprocess("student", module))
        role = "control" if name == "train" else "other"
        arms.append(_arm(task, arm_name, role, learner, settings, pace, on=on, seed=seed, epochs=epochs))
    return arms


def _taught(
    task: Classify, name: str, planned: Planned, seed: int, teachers: Mapping[str, Teacher], *, init: bool = False
) -> Learner:
    """A student with what it learns from; for an init stage with the weights of that stage."""
    method = planned.method
    module = task.build(name, seed)
    if method.peers:
        students = [module, *task.peers(method, seed)]
        example = task.example(task.preprocess(name, module))
        return Mutual(
            students=students, objectives=_objectives(task, method, (), among_peers=True), example=example
        ).to(task.device)
    names = list(task.recipe.teachers)
    one_of_several = planned.taught_by in names and len(names) > 1
    members = (names.index(planned.taught_by),) if one_of_several else ()
    teacher = teachers["teacher" if one_of_several else planned.taught_by]
    wanted = _objectives(task, method, members, init=init)
    return _learner(task, module, wanted, teacher, task.preprocess(name, module))


def _learner(
    task: Classify, module: nn.Module, wanted: list[Objective], teacher: Teacher | None, preprocess: Preprocess
) -> Distiller:
    example = task.example(preprocess)
    if isinstance(teacher, RecordedTeacher):
        _refuse_network_losses(wanted, teacher)
    learner = Distiller(student=module, teacher=teacher, objectives=wanted, example=example).to(task.device)
    if learner.needs_input_gradients and teacher is not None and teacher.preprocess not in (None, preprocess):
        raise UserError(
            "a loss compares gradients with respect to the input: give teacher and student the same size, mean and std"
        )
    return learner


def _refuse_network_losses(wanted: list[Objective], teacher: RecordedTeacher) -> None:
    for objective in wanted:
        if objective.needs_input_gradients or {"teacher_model", "teacher_head"} & set(objective.needs):
            raise UserError(
                f"holds answers alone, '{objective.name}' runs the teacher itself: take a method that compares logits",
                where=teacher.name,
            )


def _objectives(
    task: Classify, method: Method, members: tuple[int, ...], *, init: bool = False, among_peers: bool = False
) -> list[Objective]:
    return objectives(
        method,
        len(task.source.train),
        settings=task.recipe.train,
        members=members or None,
        init=init,
        among_peers=among_peers,
        two_views=task.recipe.data.second_view is not None,
    )


def _stage(task: Classify, name: str, arms: Sequence[Arm], feeds: dict[str, Feed], *, scored: bool = True) -> Stage:
    pace = feeds.get("students") or feeds["teacher"]
    return Stage(
        name,
        tuple(arms),
        feeds,
        pace.steps_per_pass,
        evaluate=task.evaluate if scored else None,
        metric=METRIC,
        device=task.device,
        ahead=task.ahead if any(arm.distiller.teacher is not None for arm in arms) else 1,
        compiled=compiles(task, arms, feeds, steps=pace.steps_per_pass),
    )


def _arm(
    task: Classify,
    name: str,
    role: Role,
    learner: Learner,
    settings: Train,
    pace: Feed,
    *,
    on: str,
    seed: int,
    preprocess: Preprocess | None = None,
    epochs: int | None = None,
) -> Arm:
    preprocess = preprocess or task.preprocess(name.removesuffix("-init"), learner.student)
    networks = learner.students if isinstance(learner, Mutual) else [learner.student]
    half = settings.precision in ("bf16", "fp16")
    return Arm(
        name,
        role,
        learner,
        settings,
        feed=on,
        preprocess=laid_out(preprocess, networks, task.example(preprocess), half=half),
        steps_per_epoch=pace.steps_per_pass,
        epochs=epochs,
        seed=seed,
    )
