"""Four methods in one comparison against four runs of one: what it saves that arms share each teacher pass.

With T for the teacher's forward and S for a student's step, sharing costs (T + 4S) where four runs cost 4 (T + S).
No cache on either side.

    python benchmarks/sharing.py [--rounds 3]
"""

import argparse
import statistics

from common import describe_machine, record
from pairs import RESNETS, in_turns, milliseconds, ratio, stage_of, stepping, task_of, teacher_of, training

METHODS = ("kd", "dkd", "dist", "nkd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", nargs=2, default=RESNETS, metavar=("TEACHER", "STUDENT"))
    arguments = parser.parse_args()
    task = task_of(*arguments.pair, cache="off", method=list(METHODS))
    teacher = teacher_of(task)
    stage, control, distilled = stage_of(task, teacher)
    sides = {"together": stepping(training(stage, distilled)), "plain": stepping(training(stage, control))}
    for arm in stage_of(task, teacher)[2]:
        sides[arm.name] = stepping(training(stage, [arm]))
    times = in_turns(sides, rounds=arguments.rounds, count=stage.ahead)
    apart = [sum(times[arm.name][number] for arm in distilled) for number in range(arguments.rounds)]
    student = statistics.median(times["plain"])
    forward = statistics.median(apart) / len(METHODS) - student
    expected = (forward + len(METHODS) * student) / (len(METHODS) * (forward + student))
    text = (
        f"{' to '.join(arguments.pair)}, {', '.join(METHODS)}: a step of all in one comparison "
        f"{milliseconds(times['together'])} ms, in four runs {milliseconds(apart)} ms, ratio "
        f"{ratio(times['together'], apart)} over {arguments.rounds} rounds; (T + 4S) / 4(T + S) is {expected:.2f}"
    )
    print(text)
    record("sharing", text, describe_machine())


if __name__ == "__main__":
    main()
