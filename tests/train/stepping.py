"""Steps of a stage outside the loop."""

from understudy.train.loop import train_step
from understudy.train.stage import ask
from understudy.train.stepper import Lone
from understudy.train.views import Views


def step_each(stage, epoch=0, step=0):
    """One step of every arm, each by itself, on the batches of that step."""
    batches = {name: feed[step] for name, feed in stage.feeds.items()}
    answers = ask(stage.arms, [batches], epoch)[0]
    train_step([Lone(arm) for arm in stage.arms], Views(batches), answers, epoch, step)
