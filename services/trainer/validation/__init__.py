"""Validates the policy during training, on questions that it is not trained on.

What is validated. A validation answers every question of ``validation.questions`` once, greedily, with the search loop,
the worker and the reward of the training. It belongs to one policy version: the weights that the engine serves when it
starts. The next publication waits for its end, with every engine alike, and each sampled token must name that version.
So a validation that is slower than a step delays the step; it never mixes versions.

When. The version that the run starts with, every ``validation.every`` steps, and the last. A validation runs beside the
step that follows its version:

    synchronous    rollouts of step 8 | update of step 8            | publish version 8
                                      | validation of version 7 ... |
    staleness > 0  rollouts and update of step 8                    | publish version 8
                   validation of version 7 .....................    |

In a synchronous run it starts when the step's rollouts have ended, so it is in no lockstep batch with them, and the
publication after it empties the engine's caches: the run trains the same bits as one without validation. With
staleness, its rollouts join the running batches, as late groups do.

What a resume finds. A validated step has a checkpoint, scored questions are rows of ``validation/step_N.jsonl``, and
unscored trajectories are kept beside them. A run that is stopped during a validation does not count the step beside it:
the resumed run repeats its update from the same rollouts, and answers only the questions without a row. Best version
and early stop follow from the lines in ``metrics.jsonl``, so there is no other state.

What is never a zero. An outage opens the circuit breaker of the training, and questions that it lost are answered again
after it. A question that a service refuses has no value, and is counted.
"""
