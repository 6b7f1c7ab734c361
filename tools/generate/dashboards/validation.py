"""Builds the row of the training dashboard about validations."""

from tools.generate.dashboards.panels import Json, graph, rate, stat
from tools.generate.dashboards.run_queries import PICK, T, gauge, query


def validation_panels() -> list[Json]:
    """Return the panels: accuracy, difference from the start, best step, patience, rollouts, time."""
    return [
        graph(
            "Accuracy and reward",
            "short",
            [
                gauge("validation_success_ratio", "accuracy"),
                gauge("validation_reward", "reward"),
                gauge("validation_best", "best"),
            ],
            "Greedy, on questions that are not trained on; 0 without validation.",
        ),
        graph(
            "Difference from the first",
            "short",
            [
                gauge("validation_difference", "difference"),
                gauge("validation_difference_low", "95 % from"),
                gauge("validation_difference_high", "95 % to"),
            ],
            "Question by question; if the interval leaves 0 out, chance does not explain it.",
        ),
        stat("p-value", "short", [gauge("validation_p_value")], "Of the difference from the first validation."),
        stat(
            "Best and last step",
            "short",
            [gauge("validation_best_step", "best"), gauge("validation_step", "last")],
            "The checkpoint of the best one is kept.",
        ),
        graph(
            "Without improvement",
            "short",
            [gauge("validation_without_improvement")],
            "Validations in a row; at validation.patience the run ends.",
        ),
        graph(
            "Questions not scored yet",
            "short",
            [gauge("validation_pending"), gauge("validation_unscorable", "refused")],
            "Of the validation in progress; 0 if none runs.",
        ),
        graph(
            "Rollouts of validations",
            "reqps",
            [query(rate(f"{T}_validation_rollouts_total", PICK, "outcome"), "{{outcome}}")],
            "Counted apart from those of the training.",
        ),
        graph(
            "Time of a validation",
            "s",
            [
                gauge("validation_duration_seconds", "total"),
                query(
                    'max by (job, instance) (searchrl_trainer_step_phase_seconds{$pick,phase="validation"})', "waited"
                ),
            ],
            "waited: the time by which it was slower than the step beside it.",
        ),
    ]
