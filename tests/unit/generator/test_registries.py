"""Methods and engines are what their registries list: one file and one line each."""

from pathlib import Path
from typing import get_args

from services.generator import methods
from services.generator.engines import ENGINES
from services.generator.engines.settings import ChatEngineSettings
from services.generator.methods import METHODS
from services.generator.methods.base import AnswerOptions, MethodOptions


def test_every_file_of_the_methods_is_one_method_of_that_name() -> None:
    files = {path.stem for path in Path(methods.__path__[0]).glob("*.py")} - {"__init__", "base"}
    assert files == set(METHODS)
    assert all(kind.__module__.endswith(f".{name}") for name, kind in METHODS.items())


def test_every_kind_of_engine_that_the_settings_accept_can_be_built() -> None:
    assert set(ENGINES) == set(get_args(ChatEngineSettings.model_fields["kind"].annotation))


def test_the_options_of_a_question_override_the_defaults_of_its_method() -> None:
    defaults = MethodOptions(top_k=3, max_searches=4, temperature=0.5)
    assert AnswerOptions().over(defaults) == defaults
    assert AnswerOptions(top_k=5, max_searches=0, seed=0).over(defaults) == MethodOptions(5, 0, 0.5, 0)
