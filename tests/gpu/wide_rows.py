"""Random rows for the model of ``qwen_folder``, which has a larger vocabulary than those of other tests."""

from functools import partial

from tests.fakes.train_rows import random_rows

WIDE_VOCABULARY = 1024
wide_rows = partial(random_rows, vocabulary=WIDE_VOCABULARY)
