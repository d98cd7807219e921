"""The CIFAR model families that distillation papers compare on; `table.py` lists them by recipe name."""
